// What becomes of a push: entered into its session's ledger, counted, and told to its client, in one hop each.
//
// Thread safety: all methods, from any number of threads; for one push, one at a time.
//
// Invariants
// - A push is accepted once, then settled once: applied, refused, or abstained. Between the two it is inside the accept
//   gate.
// - Bytes that wait for a push are saved or dropped before it leaves the gate, so a cut has those of its pushes.
// - A session's outlet stays attached for as long as a push of the session is in flight: its data loop waits for the
//   end of each before it lets the outlet go.
#pragma once

#include <array>
#include <atomic>
#include <vector>

#include "base/waiting.h"
#include "server/accept_gate.h"
#include "server/in_flight.h"
#include "server/metrics.h"
#include "server/saved_bytes.h"
#include "sessions/session_table.h"
#include "transport/channel.h"

namespace distnet {

// Which session is carried by which channel now.
//
// Thread safety: all methods, from any number of threads.
class Outlets {
 public:
  Outlets() : outlets_(kMaxSessions) {}

  void attach(std::uint32_t session, Outlet& outlet);
  void detach(std::uint32_t session);
  // Null where none is attached.
  Outlet* of(std::uint32_t session) const { return outlets_[session].load(std::memory_order_acquire); }
  // Versions that clients have let go are unpinned. An outlet that is being detached waits for the end of it.
  void collect_released();

 private:
  std::vector<std::atomic<Outlet*>> outlets_;  // stores release what attach() made ready; loads acquire it
  Mutex mutex_;                                // guards the list below, and that its outlets live
  std::vector<std::uint32_t> attached_;
};

class Settlement {
 public:
  Settlement(SessionTable& sessions, Outlets& outlets, Metrics& metrics, SavedBytes& saved)
      : sessions_(sessions), outlets_(outlets), metrics_(metrics), saved_(saved) {}

  void accept(PushEntry& push);      // waits while the gate is closed
  bool try_accept(PushEntry& push);  // returns false instead
  void draft(const PushEntry& push, std::uint32_t buffer, std::uint64_t elements);
  void apply(const PushEntry& push, std::uint64_t version_before);
  void refuse(const PushEntry& push);
  // Settles an abstention. Nothing was to be applied, so nothing is missing: it counts as far as its session has come,
  // and the bytes that wait for it are saved.
  void abstain(const PushEntry& push);
  // Refuses a push whose gradient the server found not to be finite. `in_part`: what came before that was applied.
  // `replied`: the client hears of it with the reply to its next request.
  void refuse_not_finite(const PushEntry& push, bool in_part, bool replied);

  // Sleeps until `settled` returns true, which it may do whenever a push is settled; also looks now and then.
  template <typename Settled>
  void wait_until(const Settled& settled) {
    waiters_.fetch_add(1, std::memory_order_seq_cst);  // pairs with settle(): it sees the waiter, or we what it settled
    while (true) {
      const std::uint32_t seen = settlements_.load(std::memory_order_seq_cst);
      if (settled()) {
        break;
      }
      futex_wait(settlements_, seen, kMostSleep);
    }
    waiters_.fetch_sub(1, std::memory_order_relaxed);
  }

  AcceptGate& gate() { return gate_; }

 private:
  static constexpr milliseconds kMostSleep{100};  // bounds how late the end of a session is noticed

  void enter(PushEntry& push);
  void settle(const PushEntry& push, Ledger& ledger);

  SessionTable& sessions_;
  Outlets& outlets_;
  Metrics& metrics_;
  SavedBytes& saved_;
  std::atomic<std::uint64_t> orders_{0};
  std::atomic<std::uint32_t> waiters_{0};
  std::atomic<std::uint32_t> settlements_{0};  // counted while somebody waits
  AcceptGate gate_;
};

}  // namespace distnet
