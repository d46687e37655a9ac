// A connected stream of bytes: a Unix or TCP socket. It makes all socket calls of a connection, so that an encrypted
// stream can take its place without a change in the code above.
//
// Thread safety: one thread may send while another receives; any thread may call shutdown(), which ends both.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <sys/socket.h>
#include <sys/uio.h>

#include "base/descriptor.h"
#include "base/time.h"
#include "transport/address.h"

namespace distnet {

// The spans of memory that one system call sends from or receives into, in order.
class Buffers {
 public:
  bool full() const { return count_ == kMost; }
  void add(const void* data, std::uint64_t bytes) {
    if (bytes != 0 && !full()) {
      entries_[count_++] = {const_cast<void*>(data), bytes};
    }
  }

 private:
  friend class Stream;
  static constexpr std::size_t kMost = 64;

  std::array<iovec, kMost> entries_{};
  std::size_t count_ = 0;
};

class Stream {
 public:
  Stream() = default;
  explicit Stream(FileDescriptor fd) : fd_(std::move(fd)) {}

  // Throws Error(kConnect) when nobody listens, Error(kDeadlineExceeded) when nobody answers, Error(kUnauthorized) when
  // a Unix socket's listener runs as another user, to whom nothing is said.
  static Stream connect(const Address& address, const Deadline& deadline, const Interrupt& interrupt);

  // Return how many bytes moved at once, and 0 when the call would have to wait. Throw Error(kPeerClosed).
  std::size_t send_some(std::span<const std::byte> bytes);
  std::size_t receive_some(std::span<std::byte> bytes);
  std::size_t send_some(const Buffers& buffers);
  std::size_t receive_some(const Buffers& buffers);
  // The same with descriptors, over a Unix socket. Descriptors travel with the first byte.
  std::size_t send_some(std::span<const std::byte> bytes, std::span<const int> fds);
  std::size_t receive_some(std::span<std::byte> bytes, std::vector<FileDescriptor>& fds);

  // Move all of the bytes. Throw Error(kPeerClosed), and Error(kDeadlineExceeded) when a deadline is given.
  void send_all(std::span<const std::byte> bytes, const Deadline* deadline = nullptr, const Interrupt& interrupt = {});
  void receive_all(std::span<std::byte> bytes, const Deadline* deadline = nullptr, const Interrupt& interrupt = {});

  // Waits until the stream may be read (or written). Returns false when the deadline passed first.
  bool wait(short events, const Deadline* deadline, const Interrupt& interrupt) const;

  // Sets the congestion control of a connection within this host, and leaves other connections as they are. One that
  // paces, such as BBR, costs up to half of the rate within a host.
  void prefer_within_host(const std::string& congestion_control);
  // Lets about so many bytes that are sent, and not received yet, lie in the system, on a connection within this host.
  // What is sent both ways at once then stays in the cache until it is received.
  void keep_short_within_host(int bytes);
  // Makes the system give up a TCP connection whose peer has not answered for this long, even when it is idle.
  void give_up_after(double seconds);

  bool peer_is_this_user() const;  // Unix sockets: the peer runs as our user, or as root
  bool is_unix() const;
  // Returns the numeric address of the host at the other end of a TCP connection; empty where that is this host.
  std::string peer_host() const;
  // Returns a descriptor that polls readable when the process at the other end of a Unix socket has ended; empty when
  // there is none. Throws Error(kTransport) when this process has no descriptor left for it.
  FileDescriptor watch_peer_process() const;
  void shutdown();            // any thread; wakes every wait on this stream
  void shutdown_receiving();  // any thread; what has arrived can still be read
  int poll_fd() const { return fd_.get(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }

 private:
  bool is_within_host() const;  // over TCP

  FileDescriptor fd_;
};

}  // namespace distnet
