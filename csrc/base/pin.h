// A version of the parameters held for reading.
#pragma once

#include <cstdint>
#include <utility>

namespace distnet {

// What a store is to its pins.
class PinOwner {
 public:
  // Called once a pin, from any thread.
  virtual void unpin(std::uint32_t buffer) noexcept = 0;

 protected:
  ~PinOwner() = default;
};

// Holds one version, which stays as it is (in place: the live vector) until the pin is released or destroyed. The owner
// outlives its pins.
//
// Thread safety: one thread at a time; it may move to another thread and be released there.
class Pin {
 public:
  Pin() = default;
  // For stores: takes over what unpin() will give back.
  Pin(PinOwner& owner, std::uint32_t buffer, std::uint64_t version, const float* parameters, const float* average)
      : owner_(&owner), parameters_(parameters), average_(average), version_(version), buffer_(buffer) {}
  Pin(Pin&& other) noexcept { swap(other); }
  Pin& operator=(Pin&& other) noexcept {
    Pin taken(std::move(other));
    swap(taken);
    return *this;
  }
  Pin(const Pin&) = delete;
  Pin& operator=(const Pin&) = delete;
  ~Pin() { release(); }

  // Unpins now; the pin is empty then. Does nothing to an empty one.
  void release() noexcept {
    if (PinOwner* const owner = std::exchange(owner_, nullptr)) {
      owner->unpin(buffer_);
    }
    parameters_ = average_ = nullptr;
    version_ = 0;
    buffer_ = 0;
  }

  explicit operator bool() const { return owner_ != nullptr; }
  std::uint32_t buffer() const { return buffer_; }  // names the region for readers of other processes
  std::uint64_t version() const { return version_; }
  const float* parameters() const { return parameters_; }
  const float* average() const { return average_; }  // null where none is kept

 private:
  void swap(Pin& other) noexcept {
    std::swap(owner_, other.owner_);
    std::swap(parameters_, other.parameters_);
    std::swap(average_, other.average_);
    std::swap(version_, other.version_);
    std::swap(buffer_, other.buffer_);
  }

  PinOwner* owner_ = nullptr;
  const float* parameters_ = nullptr;
  const float* average_ = nullptr;
  std::uint64_t version_ = 0;
  std::uint32_t buffer_ = 0;
};

}  // namespace distnet
