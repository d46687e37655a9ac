#include "store/store.h"

#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"
#include "base/waiting.h"
#include "kernels/kernels.h"

namespace distnet {

void Update::wait_finished() const {
  // Pairs with the release in end().
  wait_while(done_, std::uint32_t{kPending});
}

void Update::finish(std::uint64_t version_before) {
  on_applied(version_before);
  end(kApplied);
}

void Update::finish_refused(bool in_part) {
  on_refused(in_part);
  end(kRefused);
}

void Update::end(Done how) {
  // Pairs with finished() and wait_finished(): a thread that sees the word set may reset or destroy the update. The
  // wake-up that follows uses only its address.
  done_.store(how, std::memory_order_release);
  wake_all(done_);
}

void Update::reset() {
  // Only the owner of a finished (or fresh) update calls this; the next submit publishes it.
  wants_pin = false;
  tells_drafts = false;
  redrafted = false;
  pin.release();
  spoilt_term = 0;
  stopped.store(false, std::memory_order_relaxed);
  rate.reset();
  done_.store(kPending, std::memory_order_relaxed);
}

Store::Store(std::uint64_t floats) : cut_(floats), set_rate_(std::numeric_limits<double>::quiet_NaN()) {}

std::optional<double> Store::set_rate() const {
  const double rate = set_rate_.load(std::memory_order_acquire);  // pairs with set_learning_rate()
  return std::isnan(rate) ? std::nullopt : std::optional(rate);
}

void Store::check_size(std::size_t elements, const char* what) const {
  if (elements == size()) {
    return;
  }
  throw Error(ErrorCode::kConfig, std::string(what) + " has " + std::to_string(elements) + " floats: expected " +
                                      std::to_string(size()) + ", as many as there are parameters");
}

std::size_t Store::cut_vectors() const {
  return (ema_offset_bytes() != 0 ? 2U : 1U) + static_cast<std::size_t>(state_vectors());
}

void Store::start_from(const StoreState& state) {
  if (!state.ema.empty()) {
    check_size(state.ema.size(), "an average");
  }
  if (state.state_vectors.size() != static_cast<std::size_t>(state_vectors())) {
    throw Error(ErrorCode::kConfig, "the optimizer keeps " + std::to_string(state_vectors()) +
                                        " state vectors, and what is put back holds " +
                                        std::to_string(state.state_vectors.size()) +
                                        "; use the optimizer that it was taken with");
  }
  for (const std::vector<float>& vector : state.state_vectors) {
    check_size(vector.size(), "a state vector");
  }
  put_back(state);
  if (state.set_rate) {
    set_learning_rate(*state.set_rate);
  }
}

void Store::throw_refused(const char* what) {
  throw Error(ErrorCode::kNonFiniteGradient, std::string("the gradient holds NaN or infinity; ") + what);
}

Arrival::State Store::submit_arriving(Update& update, Arrival& arrival) {
  const Arrival::State state = arrival.wait(size(), kAnyPatience);
  if (state == Arrival::State::kHere) {
    update.on_arrived();
    submit(update);
  }
  return state;
}

std::uint64_t Store::read(std::span<float> out, bool ema) {
  check_size(out.size(), "the target of a read");
  if (ema && ema_offset_bytes() == 0) {
    throw Error(ErrorCode::kConfig, "no moving average is kept here: give the server one with ema_decay=0.999");
  }
  const Pin pinned = pin();
  copy(out.data(), ema ? pinned.ema() : pinned.parameters(), out.size());
  return pinned.version();
}

}  // namespace distnet
