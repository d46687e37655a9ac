#include "store/mutex_store.h"

#include <utility>

#include "base/error.h"
#include "base/kernels.h"

namespace distnet {

MutexStore::MutexStore(const UpdateRuleSpec& rule, std::span<const float> initial)
    : rule_(rule, initial.size()), layout_(initial.size(), rule_.averages()), state_(rule_, initial.size()) {
  buffers_.push_back({layout_.make_buffer()});
  layout_.fill(buffers_.front().memory, initial);
}

void MutexStore::submit(Update& update) {
  const std::lock_guard apply_lock(apply_mutex_);
  const std::uint64_t version_before = version_.load(std::memory_order_relaxed);  // written under apply_mutex_ only
  const std::uint32_t from = newest_;
  const std::uint32_t to = free_buffer();
  write_version(from, to, update.gradient, version_before);
  {
    const std::lock_guard pins_lock(pins_mutex_);
    newest_ = to;
    // Pairs with version(): who sees this number finds at least this version when it pins.
    version_.store(version_before + 1, std::memory_order_release);
  }
  update.finish(version_before);
}

// Called under apply_mutex_, so a buffer found free stays free: only the newest can be pinned anew.
std::uint32_t MutexStore::free_buffer() {
  {
    const std::lock_guard pins_lock(pins_mutex_);
    for (std::uint32_t index = 0; index < buffers_.size(); ++index) {
      if (index != newest_ && buffers_[index].pins == 0) return index;
    }
  }
  Region memory = layout_.make_buffer();
  const std::lock_guard pins_lock(pins_mutex_);
  buffers_.push_back({std::move(memory)});
  return static_cast<std::uint32_t>(buffers_.size() - 1);
}

// Called under apply_mutex_, which alone lets buffers_ grow.
void MutexStore::write_version(std::uint32_t from, std::uint32_t to, const JoinedGradient& gradient,
                               std::uint64_t update) const {
  ParameterVectors vectors;
  vectors.in = layout_.parameters(buffers_[from].memory);
  vectors.out = layout_.parameters(buffers_[to].memory);
  vectors.average_in = layout_.average(buffers_[from].memory);
  vectors.average_out = layout_.average(buffers_[to].memory);
  state_.attach(vectors);
  rule_.apply(vectors, gradient, 0, layout_.size, update);
}

Pin MutexStore::pin() {
  const std::lock_guard pins_lock(pins_mutex_);
  Buffer& newest = buffers_[newest_];
  ++newest.pins;
  return {newest_, version_.load(std::memory_order_relaxed), layout_.parameters(newest.memory),
          layout_.average(newest.memory)};
}

void MutexStore::unpin(const Pin& pin) {
  const std::lock_guard pins_lock(pins_mutex_);
  DISTNET_INVARIANT(pin.buffer < buffers_.size() && buffers_[pin.buffer].pins > 0);
  --buffers_[pin.buffer].pins;
}

const Region& MutexStore::buffer(std::uint32_t index) const {
  const std::lock_guard pins_lock(pins_mutex_);
  if (index >= buffers_.size()) {
    throw Error(ErrorCode::kProtocol, "there is no parameter buffer " + std::to_string(index));
  }
  return buffers_[index].memory;
}

void MutexStore::read_slot(int slot, std::span<float> out) {
  check_slot(slot);
  check_size(out.size(), "the target of a read");
  const std::lock_guard apply_lock(apply_mutex_);
  copy(out.data(), state_.slot(slot), out.size());
}

void MutexStore::apply(std::span<const float> gradient) {
  check_size(gradient.size(), "a gradient");
  const float* const term = gradient.data();
  Update update;
  update.gradient.terms = {&term, 1};
  submit(update);
}

}  // namespace distnet
