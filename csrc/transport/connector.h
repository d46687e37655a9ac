// Connects to one of a host's addresses: tries them side by side, so that one that does not answer costs the others a
// moment only (RFC 8305, "Happy Eyeballs").
//
// The families of addresses take turns, the system's first choice first. Each address has a head start of 250 ms over
// the next one, or until it fails. The first that answers is taken and all others are closed.
//
// Thread safety: one thread.
#pragma once

#include <string>
#include <vector>

#include "transport/socket_address.h"
#include "transport/stream.h"

namespace distnet {

class Connector {
 public:
  static constexpr double kHeadStartSeconds = 0.25;

  // `where` is what messages call the host.
  Connector(std::string where, std::vector<SocketAddress> candidates);

  // Throws Error(kConnect) when every address fails, Error(kDeadlineExceeded) when none has answered.
  Stream connect(const Deadline& deadline, const Interrupt& interrupt);

 private:
  struct Attempt {
    FileDescriptor fd;
    std::size_t candidate = 0;
    bool in_progress = true;  // else a Unix listener's queue is full, and connect() is called again
  };

  Stream start_next();
  Stream try_again(Attempt& attempt);
  Stream take_answered(const Deadline& until);

  const std::string where_;
  std::vector<SocketAddress> candidates_;
  std::size_t next_ = 0;
  std::vector<Attempt> attempts_;
  std::string why_ = "no address";  // the last one failed
};

}  // namespace distnet
