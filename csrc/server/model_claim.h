// Who brings the model to a server that was started without one: one client at a time, and after it the next that
// offers, in the order in which they came.
//
// Thread safety: all methods, from any number of threads.
#pragma once

#include <list>
#include <optional>

#include "base/waiting.h"
#include "server/bell.h"

namespace distnet {

class ModelClaim {
 public:
  enum class Outcome : std::uint8_t { kThere, kYours };

  // Waits until the model is there or, where the client offers one, until it may bring it. While another client brings
  // it, the client is sent heartbeats and waits on. It hears what it waits for by notices. Throws
  // Error(kDeadlineExceeded) when nobody has brought or been bringing it for most of `timeout_s`, so that the client
  // hears why before it gives up; Error(kPeerClosed) when the client has gone, or the server stops.
  Outcome wait(bool offers, ControlConnection& client, double timeout_s);
  // The caller that got kYours reports how it went.
  void brought();
  void give_up();
  void stop();

 private:
  using Lock = std::unique_lock<Mutex>;
  struct Waiter {
    Bell bell{"a client that waits for the model"};
    bool offers = false;
    bool chosen = false;
  };

  // Returns what the wait has come to, and nothing while it goes on.
  std::optional<Outcome> outcome(const Waiter& waiter) const;
  Outcome wait_for_outcome(Lock& lock, const Waiter& self, ControlConnection& client, double timeout_s);
  void choose_next();
  void ring_all();

  Mutex mutex_;
  std::list<Waiter> waiting_;  // in the order in which they came
  bool claimed_ = false;
  bool there_ = false;
  bool stopping_ = false;
};

}  // namespace distnet
