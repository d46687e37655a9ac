// Accepts connections at a Unix socket with an abstract name, or at a TCP port.
//
// Thread safety: one thread accepts; any thread may call shutdown().
#pragma once

#include "transport/stream.h"

namespace distnet {

class Listener {
 public:
  // Throws Error(kConnect), naming the address, when it is taken.
  explicit Listener(const Address& address);

  const Address& address() const { return address_; }  // holds the port that the system chose for port 0
  // Returns the next connection without waiting, or an empty stream when there is none. Sets `exhausted` when the
  // process has no descriptor left for a connection that waits.
  Stream accept(bool& exhausted);
  int poll_fd() const { return fd_.get(); }
  // Stops listening, so that nobody can connect any more, not even where a forked process holds the socket.
  void shutdown();

 private:
  Address address_;
  FileDescriptor fd_;
};

}  // namespace distnet
