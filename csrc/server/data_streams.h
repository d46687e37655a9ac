// Where the second stream of a session meets its first: the client names the session and shows the secret that its
// welcome gave it.
//
// Thread safety: all methods, from any number of threads.
#pragma once

#include <map>

#include "base/waiting.h"
#include "server/bell.h"
#include "transport/control.h"

namespace distnet {

class DataStreams {
 public:
  // From now on deliver() takes a stream for this session. It rings `bell`, whose descriptor take() gives up for the
  // stream's.
  void expect(const Attach& attach, Bell bell);
  // Waits for that stream. Throws Error(kPeerClosed) when it does not come, the client leaves, or the server stops.
  Stream take(const Attach& attach, const ControlConnection& client, const Deadline& deadline);
  void forget(const Attach& attach);
  // A stream that nobody expects is closed.
  void deliver(const Attach& attach, Stream stream);
  void stop();

 private:
  struct Expected {
    std::uint64_t secret = 0;
    Bell bell;
    Stream stream;  // empty until it came
  };

  Stream end(const Attach& attach);

  Mutex mutex_;
  std::map<std::uint64_t, Expected> expected_;  // by session; an entry stays until its session takes or forgets it
  bool stopping_ = false;
};

}  // namespace distnet
