// Stream sockets: Unix (abstract names) and TCP, with deadlines on every wait.
//
// Thread safety: one thread may send while another receives; shutdown() may be called from any thread and ends both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "base/time.h"
#include "transport/address.h"

namespace distnet {

// A connected stream. All sockets are non-blocking underneath; the calls below wait with poll.
class Socket {
 public:
  Socket() = default;
  explicit Socket(FileDescriptor fd) : fd_(std::move(fd)) {}

  // Throws Error(kConnect) where nobody listens, Error(kDeadlineExceeded) where nobody answers.
  static Socket connect(const Endpoint& endpoint, const Deadline& deadline, const Interrupt& interrupt);

  // Bytes moved at once without waiting: 0 where it would have to wait. Throws Error(kPeerClosed).
  std::size_t send_some(std::span<const std::byte> bytes);
  std::size_t receive_some(std::span<std::byte> bytes);

  // All of the bytes. Throws Error(kPeerClosed), and Error(kDeadlineExceeded) where a deadline is given.
  void send_all(std::span<const std::byte> bytes, const Deadline* deadline = nullptr, const Interrupt& interrupt = {});
  void receive_all(std::span<std::byte> bytes, const Deadline* deadline = nullptr, const Interrupt& interrupt = {});

  // Waits until the socket may be read (or written), at most to the deadline. False: it passed.
  bool wait(short events, const Deadline* deadline, const Interrupt& interrupt) const;

  // Sets the congestion control of a connection within this host, for which a pacing one such as BBR costs up to half
  // the rate. Not of others.
  void prefer_within_host(const std::string& congestion_control);

  bool peer_is_this_user() const;  // Unix sockets: the peer runs as our user, or as root
  void shutdown();                 // any thread; wakes every wait on this socket
  void shutdown_receiving();       // any thread; what has arrived can still be read
  int fd() const { return fd_.get(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }

 private:
  FileDescriptor fd_;
};

class Listener {
 public:
  Listener() = default;
  // Throws Error(kConnect) naming the endpoint where it is taken.
  explicit Listener(const Endpoint& endpoint);

  const Endpoint& endpoint() const { return endpoint_; }  // with the port that port 0 became
  // The next connection; an empty socket after shutdown().
  Socket accept();
  void shutdown();

 private:
  Endpoint endpoint_;
  FileDescriptor fd_;
  FileDescriptor wake_;
};

}  // namespace distnet
