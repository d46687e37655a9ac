// Socket addresses of an Address, and options of a socket for it. Used by stream, connector and listener only.
#pragma once

#include <string>
#include <vector>

#include <sys/socket.h>

#include "base/time.h"
#include "transport/address.h"

namespace distnet {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t bytes = 0;
  int family = AF_UNSPEC;
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

// Throws Error(kConnect) when the host is not known, Error(kDeadlineExceeded) when nobody has said by then.
std::vector<SocketAddress> resolve(const Address& address, bool listening, const Deadline& deadline,
                                   const Interrupt& interrupt);
bool is_loopback(const SocketAddress& address);
// Sets the options of a socket that is or will be connected to `peer`.
void tune_socket(int fd, const SocketAddress& peer);

}  // namespace distnet
