// Where the second stream of a session meets its first: the client names the session and shows the secret that its
// welcome gave it.
//
// Thread safety: all methods, from any number of threads.
#pragma once

#include <map>

#include "base/waiting.h"
#include "transport/stream.h"

namespace distnet {

class DataStreams {
 public:
  // From now on deliver() takes a stream for this session.
  void expect(const Attach& attach);
  // Waits for that stream. Throws Error(kPeerClosed) where it does not come, or the server stops.
  Stream take(const Attach& attach, const Deadline& deadline);
  void forget(const Attach& attach);
  // A stream that nobody expects is closed.
  void deliver(const Attach& attach, Stream stream);
  void stop();

 private:
  struct Expected {
    std::uint64_t secret = 0;
    Stream stream;  // empty until it came
  };

  Mutex mutex_;
  Condition changed_;
  std::map<std::uint64_t, Expected> expected_;  // by session
  bool stopping_ = false;
};

}  // namespace distnet
