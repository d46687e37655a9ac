#include "transport/stream.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include "base/error.h"
#include "base/platform.h"
#include "base/waiting.h"
#include "transport/connector.h"
#include "transport/socket_address.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace distnet {
namespace {

constexpr std::size_t kMaxDescriptors = 8;  // in one message

std::string reason() { return std::strerror(errno); }

// Returns how many bytes a call moved, 0 when it would have to wait. Throws when it failed.
std::size_t moved(ssize_t bytes, bool asked_for_none) {
  if (bytes > 0 || (bytes == 0 && asked_for_none)) {
    return static_cast<std::size_t>(bytes);
  }
  if (bytes < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
    return 0;
  }
  if (bytes < 0 && errno == ETIMEDOUT) {
    throw Error(ErrorCode::kDeadlineExceeded, "the peer's host has not answered for longer than the timeout");
  }
  throw Error(ErrorCode::kPeerClosed,
              "the peer closed the connection (" + (bytes < 0 ? reason() : std::string("end of stream")) + ")");
}

msghdr message_of(const iovec* buffers, std::size_t count) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(buffers);
  message.msg_iovlen = count;
  return message;
}

void take_descriptors(const msghdr& message, std::vector<FileDescriptor>& fds) {
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(const_cast<msghdr*>(&message), header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      fds.emplace_back(fd);
    }
  }
  if (fds.size() > kMaxDescriptors) {
    throw Error(ErrorCode::kProtocol, "a message with more than 8 file descriptors");
  }
}

}  // namespace

Stream Stream::connect(const Address& address, const Deadline& deadline, const Interrupt& interrupt) {
  Stream stream = Connector(address.text(), resolve(address, false, deadline, interrupt)).connect(deadline, interrupt);
  if (address.within_host() && !stream.peer_is_this_user()) {  // it took the name first
    throw Error(ErrorCode::kUnauthorized, "the server at " + address.text() +
                                              " runs as another user; gradients go to servers of your own, or root's");
  }
  return stream;
}

bool Stream::is_within_host() const {
  SocketAddress peer;
  peer.bytes = sizeof peer.storage;
  if (getpeername(fd_.get(), reinterpret_cast<sockaddr*>(&peer.storage), &peer.bytes) != 0) {
    return false;
  }
  peer.family = peer.storage.ss_family;
  return is_loopback(peer);
}

void Stream::keep_short_within_host(int bytes) {
  if (is_within_host()) {
    setsockopt(fd_.get(), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
  }
}

void Stream::prefer_within_host(const std::string& congestion_control) {
  if (is_within_host() && !congestion_control.empty()) {
    setsockopt(fd_.get(), IPPROTO_TCP, TCP_CONGESTION, congestion_control.data(),
               static_cast<socklen_t>(congestion_control.size()));  // fails when the system does not have it
  }
}

std::size_t Stream::send_some(std::span<const std::byte> bytes) {
  return moved(::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), bytes.empty());
}

std::size_t Stream::receive_some(std::span<std::byte> bytes) {
  return moved(::recv(fd_.get(), bytes.data(), bytes.size(), 0), bytes.empty());
}

std::size_t Stream::send_some(const Buffers& buffers) {
  const msghdr message = message_of(buffers.entries_.data(), buffers.count_);
  return moved(::sendmsg(fd_.get(), &message, MSG_NOSIGNAL), buffers.count_ == 0);
}

std::size_t Stream::receive_some(const Buffers& buffers) {
  msghdr message = message_of(buffers.entries_.data(), buffers.count_);
  return moved(::recvmsg(fd_.get(), &message, 0), buffers.count_ == 0);
}

std::size_t Stream::send_some(std::span<const std::byte> bytes, std::span<const int> fds) {
  DISTNET_INVARIANT(fds.size() <= kMaxDescriptors);
  const iovec entry{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message = message_of(&entry, 1);
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  return moved(::sendmsg(fd_.get(), &message, MSG_NOSIGNAL), bytes.empty());
}

std::size_t Stream::receive_some(std::span<std::byte> bytes, std::vector<FileDescriptor>& fds) {
  const iovec entry{bytes.data(), bytes.size()};
  msghdr message = message_of(&entry, 1);
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const std::size_t received = moved(::recvmsg(fd_.get(), &message, MSG_CMSG_CLOEXEC), bytes.empty());
  if (received != 0) {
    take_descriptors(message, fds);
    if ((message.msg_flags & MSG_CTRUNC) != 0) {
      throw Error(ErrorCode::kTransport, no_descriptor_left("the shared memory that the peer passes"));
    }
  }
  return received;
}

bool Stream::wait(short events, const Deadline* deadline, const Interrupt& interrupt) const {
  while (true) {
    pollfd entry{fd_.get(), events, 0};
    const Deadline next_look =
        Deadline::after(interrupt ? std::chrono::duration<double>(kInterruptInterval).count() : 3600.0);
    const bool until_deadline = deadline != nullptr && deadline->left() < next_look.left();
    if (poll_until(std::span(&entry, 1), until_deadline ? *deadline : next_look) > 0) {
      return true;
    }
    if (interrupt) {
      interrupt();
    }
    if (deadline != nullptr && deadline->expired()) {
      return false;
    }
  }
}

void Stream::send_all(std::span<const std::byte> bytes, const Deadline* deadline, const Interrupt& interrupt) {
  Deadline next_look = Deadline::after(kInterruptInterval);
  while (!bytes.empty()) {
    bytes = bytes.subspan(send_some(bytes));
    if (!bytes.empty() && !wait(POLLOUT, deadline, interrupt)) {
      throw Error(ErrorCode::kDeadlineExceeded, "the peer takes no more bytes");
    }
    if (interrupt && next_look.expired()) {  // a peer that always takes some is no reason not to look
      interrupt();
      next_look = Deadline::after(kInterruptInterval);
    }
  }
}

void Stream::receive_all(std::span<std::byte> bytes, const Deadline* deadline, const Interrupt& interrupt) {
  while (!bytes.empty()) {
    bytes = bytes.subspan(receive_some(bytes));
    if (!bytes.empty() && !wait(POLLIN, deadline, interrupt)) {
      throw Error(ErrorCode::kDeadlineExceeded, "the peer was silent for longer than the timeout");
    }
  }
}

bool Stream::peer_is_this_user() const {
  ucred credentials{};
  socklen_t bytes = sizeof credentials;
  return getsockopt(fd_.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) == 0 &&
         (credentials.uid == geteuid() || credentials.uid == 0);
}

bool Stream::is_unix() const {
  int domain = 0;
  socklen_t bytes = sizeof domain;
  return getsockopt(fd_.get(), SOL_SOCKET, SO_DOMAIN, &domain, &bytes) == 0 && domain == AF_UNIX;
}

std::string Stream::peer_host() const {
  SocketAddress peer;
  peer.bytes = sizeof peer.storage;
  if (getpeername(fd_.get(), peer.get(), &peer.bytes) != 0) {
    throw Error(ErrorCode::kPeerClosed, "the peer closed the connection (" + reason() + ")");
  }
  peer.family = peer.get()->sa_family;
  std::array<char, NI_MAXHOST> host{};
  if (peer.family == AF_UNIX || is_loopback(peer) ||
      getnameinfo(peer.get(), peer.bytes, host.data(), host.size(), nullptr, 0, NI_NUMERICHOST) != 0) {
    return "";
  }
  return host.data();
}

FileDescriptor Stream::watch_peer_process() const {
  const auto check_shortage = [] {
    if (is_descriptor_shortage(errno)) {
      throw Error(ErrorCode::kTransport, no_descriptor_left("watching the peer's process"));
    }
  };
  int process = -1;
  socklen_t bytes = sizeof process;
  if (getsockopt(fd_.get(), SOL_SOCKET, SO_PEERPIDFD, &process, &bytes) == 0) {
    return FileDescriptor(process);
  }
  check_shortage();
  ucred credentials{};  // for kernels before Linux 6.5
  bytes = sizeof credentials;
  if (getsockopt(fd_.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) == 0 && credentials.pid > 0) {
    const int opened = open_process(credentials.pid);
    if (opened < 0) {
      check_shortage();
    }
    return FileDescriptor(opened);
  }
  return {};
}

void Stream::give_up_after(double seconds) {
  SocketAddress peer;
  peer.bytes = sizeof peer.storage;
  if (getpeername(fd_.get(), peer.get(), &peer.bytes) != 0 || peer.get()->sa_family == AF_UNIX) {
    return;
  }
  const double most_ms = std::min(seconds * 1e3, 1e9);
  const auto timeout_ms = static_cast<unsigned int>(std::max(most_ms, 1.0));
  const int on = 1;
  const int idle_s = static_cast<int>(std::clamp(seconds / 2, 1.0, 7200.0));
  const int interval_s = static_cast<int>(std::clamp(seconds / 6, 1.0, 600.0));
  const int probes = 3;
  setsockopt(fd_.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
  setsockopt(fd_.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd_.get(), IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
  setsockopt(fd_.get(), IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
  setsockopt(fd_.get(), IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

void Stream::shutdown() {
  if (fd_) {
    ::shutdown(fd_.get(), SHUT_RDWR);
  }
}

void Stream::shutdown_receiving() {
  if (fd_) {
    ::shutdown(fd_.get(), SHUT_RD);
  }
}

}  // namespace distnet
