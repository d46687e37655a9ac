// Keeps a version of the parameters unchanged while it is read.
#pragma once

#include <cstdint>
#include <utility>

namespace distnet {

// The store that a pin was taken from.
class PinOwner {
 public:
  // Called once for each pin, from any thread.
  virtual void unpin(std::uint32_t buffer) noexcept = 0;

 protected:
  ~PinOwner() = default;
};

// Keeps one version unchanged until the pin is released or destroyed. Stores that update in place give the live vector
// instead. The owner outlives its pins.
//
// Thread safety: one thread at a time uses a pin; it may move to another thread and be released there.
class Pin {
 public:
  Pin() = default;
  // Called by stores. unpin() will be called with `buffer`.
  Pin(PinOwner& owner, std::uint32_t buffer, std::uint64_t version, const float* parameters, const float* ema)
      : owner_(&owner), parameters_(parameters), ema_(ema), version_(version), buffer_(buffer) {}
  Pin(Pin&& other) noexcept { swap(other); }
  Pin& operator=(Pin&& other) noexcept {
    Pin taken(std::move(other));
    swap(taken);
    return *this;
  }
  Pin(const Pin&) = delete;
  Pin& operator=(const Pin&) = delete;
  ~Pin() { release(); }

  // Unpins now and leaves the pin empty. Does nothing to an empty pin.
  void release() noexcept {
    if (PinOwner* const owner = std::exchange(owner_, nullptr)) {
      owner->unpin(buffer_);
    }
    parameters_ = ema_ = nullptr;
    version_ = 0;
    buffer_ = 0;
  }

  explicit operator bool() const { return owner_ != nullptr; }
  std::uint32_t buffer() const { return buffer_; }  // names the region for readers of other processes
  std::uint64_t version() const { return version_; }
  const float* parameters() const { return parameters_; }
  const float* ema() const { return ema_; }  // null when no average is kept

 private:
  void swap(Pin& other) noexcept {
    std::swap(owner_, other.owner_);
    std::swap(parameters_, other.parameters_);
    std::swap(ema_, other.ema_);
    std::swap(version_, other.version_);
    std::swap(buffer_, other.buffer_);
  }

  PinOwner* owner_ = nullptr;
  const float* parameters_ = nullptr;
  const float* ema_ = nullptr;
  std::uint64_t version_ = 0;
  std::uint32_t buffer_ = 0;
};

}  // namespace distnet
