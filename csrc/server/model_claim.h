// Who brings the model to a server that was started without one: one client at a time, and after it the next that
// offers.
//
// Thread safety: all methods, from any number of threads.
#pragma once

#include "base/waiting.h"

namespace distnet {

class ModelClaim {
 public:
  enum class Outcome : std::uint8_t { kThere, kYours };

  // Waits until the model is there or, where the caller offers one, until it may bring it. Throws
  // Error(kDeadlineExceeded) where neither happened in time, Error(kPeerClosed) where the server stops.
  Outcome wait(bool offers, const Deadline& deadline);
  // The caller that got kYours reports how it went.
  void brought();
  void give_up();
  void stop();

 private:
  Mutex mutex_;
  Condition changed_;
  bool claimed_ = false;
  bool there_ = false;
  bool stopping_ = false;
};

}  // namespace distnet
