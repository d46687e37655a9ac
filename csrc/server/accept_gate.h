// The gate at the accept point. A cut closes it, waits until the pushes that have passed are settled, and opens it.
//
// Thread safety: pass(), try_pass() and leave() from any number of threads; one thread at a time closes the gate.
//
// Invariants
// - While the gate is closed and nobody is inside, no push is accepted and not settled.
// - A push inside waits for no client and for no push outside, so the gate can always be emptied.
// - Who waits at the gate holds nothing that a push inside needs.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/units.h"
#include "base/waiting.h"

namespace distnet {

class AcceptGate {
 public:
  // A push is accepted: it is inside until leave(). Waits while the gate is closed, which Closed bounds.
  void pass();
  // Returns false where the gate is closed.
  bool try_pass() {
    // Acquire pairs with the release in open(); the addition itself is what close() is ordered against.
    if ((word_.fetch_add(1, std::memory_order_acq_rel) & kClosed) == 0) [[likely]] {
      return true;
    }
    leave();
    return false;
  }
  // The push is settled.
  void leave() {
    // Release pairs with the acquire in wait_until_empty(): the update is complete. Acquire orders this against the
    // others that left.
    if (word_.fetch_sub(1, std::memory_order_acq_rel) == (kClosed | 1U)) [[unlikely]] {
      tell_empty();
    }
  }

  // Keeps the gate closed for as long as it lives.
  class Closed {
   public:
    explicit Closed(AcceptGate& gate) : gate_(gate) { gate.close(); }
    Closed(const Closed&) = delete;
    Closed& operator=(const Closed&) = delete;
    ~Closed() { gate_.open(); }
    // Returns false where the pushes inside were not settled in time.
    bool wait_until_empty(const Deadline& deadline) { return gate_.wait_until_empty(deadline); }

   private:
    AcceptGate& gate_;
  };

 private:
  static constexpr std::uint64_t kClosed = std::uint64_t{1} << 63U;

  bool is_open() const;
  void close();
  void open();
  void tell_empty();
  bool wait_until_empty(const Deadline& deadline);

  alignas(kCacheLineBytes) std::atomic<std::uint64_t> word_{0};  // how many are inside; bit 63: closed
  alignas(kCacheLineBytes) Mutex mutex_;                         // for sleepers alone
  Condition changed_;
};

}  // namespace distnet
