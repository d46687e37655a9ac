#include "transport/stream.h"

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "base/platform.h"

namespace distnet {
namespace {

constexpr int kListenBacklog = 128;
constexpr int kSocketBufferBytes = 4 << 20;
constexpr int kRetryPause_ms = 50;

std::string reason() { return std::strerror(errno); }

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t bytes = 0;
  int family = AF_UNSPEC;
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

SocketAddress unix_address(const std::string& name) {
  SocketAddress address;
  auto* const unix_part = reinterpret_cast<sockaddr_un*>(&address.storage);
  const std::string path = "distnet/" + name;  // behind a zero byte: an abstract name, gone with its socket
  unix_part->sun_family = AF_UNIX;
  std::memcpy(unix_part->sun_path + 1, path.data(), path.size());
  address.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + path.size());
  address.family = AF_UNIX;
  return address;
}

std::vector<SocketAddress> resolve(const Endpoint& endpoint, bool listening) {
  if (endpoint.transport == TransportKind::kShm) {
    return {unix_address(endpoint.name)};
  }
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = listening ? AI_PASSIVE : 0;
  addrinfo* found = nullptr;
  const int status = getaddrinfo(endpoint.name.c_str(), std::to_string(endpoint.port).c_str(), &hints, &found);
  if (status != 0) {
    throw Error(ErrorCode::kConnect, "the host of " + endpoint.text() + " is not known: " + gai_strerror(status));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  std::vector<SocketAddress> addresses;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    SocketAddress address;
    std::memcpy(&address.storage, at->ai_addr, at->ai_addrlen);
    address.bytes = at->ai_addrlen;
    address.family = at->ai_family;
    addresses.push_back(address);
  }
  return addresses;
}

bool is_loopback(const SocketAddress& address) {
  if (address.family == AF_INET) {
    const auto* const inet = reinterpret_cast<const sockaddr_in*>(&address.storage);
    return (ntohl(inet->sin_addr.s_addr) >> 24U) == 127;
  }
  const auto* const inet6 = reinterpret_cast<const sockaddr_in6*>(&address.storage);
  return address.family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&inet6->sin6_addr);
}

void tune(int fd, const SocketAddress& peer) {
  if (peer.family == AF_UNIX) {
    return;
  }
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (is_loopback(peer)) {
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBufferBytes, sizeof kSocketBufferBytes);
  }
}

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

Socket Socket::connect(const Endpoint& endpoint, const Deadline& deadline, const Interrupt& interrupt) {
  std::string why = "no address";
  for (SocketAddress& address : resolve(endpoint, false)) {
    FileDescriptor fd(::socket(address.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd) {
      throw Error(ErrorCode::kConnect, "no socket: " + reason());
    }
    tune(fd.get(), address);
    int status = ::connect(fd.get(), address.get(), address.bytes);
    while (status != 0 && errno == EAGAIN) {  // a Unix listener with many at its door: it says so at once
      if (deadline.expired()) {
        throw Error(ErrorCode::kDeadlineExceeded, "too many wait at " + endpoint.text() + "; is its server stopped?");
      }
      ::poll(nullptr, 0, kRetryPause_ms);
      if (interrupt) {
        interrupt();
      }
      status = ::connect(fd.get(), address.get(), address.bytes);
    }
    Socket socket(std::move(fd));
    if (status != 0 && errno == EINPROGRESS) {
      if (!socket.wait(POLLOUT, &deadline, interrupt)) {
        throw Error(ErrorCode::kDeadlineExceeded,
                    "no answer from " + endpoint.text() + "; is the host up, and the port open?");
      }
      int failure = 0;
      socklen_t bytes = sizeof failure;
      getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &failure, &bytes);
      errno = failure;
    } else if (status == 0) {
      errno = 0;
    }
    if (errno == 0) {
      return socket;
    }
    why = reason();
  }
  throw Error(ErrorCode::kConnect,
              "no server at " + endpoint.text() + " (" + why + "); start it first, or check the address it printed");
}

void Socket::prefer_within_host(const std::string& congestion_control) {
  SocketAddress peer;
  peer.bytes = sizeof peer.storage;
  if (getpeername(fd_.get(), reinterpret_cast<sockaddr*>(&peer.storage), &peer.bytes) != 0) {
    return;
  }
  peer.family = peer.storage.ss_family;
  if (is_loopback(peer) && !congestion_control.empty()) {
    setsockopt(fd_.get(), IPPROTO_TCP, TCP_CONGESTION, congestion_control.data(),
               static_cast<socklen_t>(congestion_control.size()));  // where the system has it
  }
}

std::size_t Socket::send_some(std::span<const std::byte> bytes) {
  const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  if (sent >= 0) {
    return static_cast<std::size_t>(sent);
  }
  if (would_block()) {
    return 0;
  }
  throw Error(ErrorCode::kPeerClosed, "the peer closed the connection (" + reason() + ")");
}

std::size_t Socket::receive_some(std::span<std::byte> bytes) {
  const ssize_t received = ::recv(fd_.get(), bytes.data(), bytes.size(), 0);
  if (received > 0 || (received == 0 && bytes.empty())) {
    return static_cast<std::size_t>(received);
  }
  if (received < 0 && would_block()) {
    return 0;
  }
  throw Error(ErrorCode::kPeerClosed,
              received == 0 ? "the peer closed the connection" : "the peer closed the connection (" + reason() + ")");
}

bool Socket::wait(short events, const Deadline* deadline, const Interrupt& interrupt) const {
  while (true) {
    pollfd entry{fd_.get(), events, 0};
    std::chrono::nanoseconds at_most = std::chrono::hours(1);
    if (interrupt) {
      at_most = kWaitSlice;
    }
    if (deadline != nullptr) {
      at_most = std::min<std::chrono::nanoseconds>(at_most, deadline->left());
    }
    timespec timeout{};
    timeout.tv_sec = static_cast<time_t>(at_most.count() / 1'000'000'000);
    timeout.tv_nsec = static_cast<long>(at_most.count() % 1'000'000'000);
    const int ready = ::ppoll(&entry, 1, &timeout, nullptr);
    if (ready > 0) {
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

void Socket::send_all(std::span<const std::byte> bytes, const Deadline* deadline, const Interrupt& interrupt) {
  while (!bytes.empty()) {
    bytes = bytes.subspan(send_some(bytes));
    if (!bytes.empty() && !wait(POLLOUT, deadline, interrupt)) {
      throw Error(ErrorCode::kDeadlineExceeded, "the peer takes no more bytes");
    }
  }
}

void Socket::receive_all(std::span<std::byte> bytes, const Deadline* deadline, const Interrupt& interrupt) {
  while (!bytes.empty()) {
    bytes = bytes.subspan(receive_some(bytes));
    if (!bytes.empty() && !wait(POLLIN, deadline, interrupt)) {
      throw Error(ErrorCode::kDeadlineExceeded, "the peer was silent for longer than the deadline");
    }
  }
}

bool Socket::peer_is_this_user() const {
  ucred credentials{};
  socklen_t bytes = sizeof credentials;
  return getsockopt(fd_.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) == 0 &&
         (credentials.uid == geteuid() || credentials.uid == 0);
}

void Socket::shutdown() {
  if (fd_) {
    ::shutdown(fd_.get(), SHUT_RDWR);
  }
}

void Socket::shutdown_receiving() {
  if (fd_) {
    ::shutdown(fd_.get(), SHUT_RD);
  }
}

Listener::Listener(const Endpoint& endpoint) : endpoint_(endpoint), wake_(create_event_file()) {
  std::string why = "no address";
  for (SocketAddress& address : resolve(endpoint, true)) {
    FileDescriptor fd(::socket(address.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int on = 1;
    if (address.family != AF_UNIX) {
      setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    }
    if (!fd || bind(fd.get(), address.get(), address.bytes) != 0 || listen(fd.get(), kListenBacklog) != 0) {
      why = reason();
      continue;
    }
    if (endpoint_.transport == TransportKind::kTcp) {
      SocketAddress bound;
      bound.bytes = sizeof bound.storage;
      getsockname(fd.get(), bound.get(), &bound.bytes);
      const auto* const inet = reinterpret_cast<const sockaddr_in*>(&bound.storage);
      endpoint_.port = ntohs(inet->sin_port);  // at the same place in sockaddr_in6
    }
    fd_ = std::move(fd);
    return;
  }
  throw Error(ErrorCode::kConnect, "cannot listen at " + endpoint.text() + " (" + why +
                                       "); choose another address, or port 0 for any free port");
}

Socket Listener::accept() {
  while (true) {
    pollfd entries[2] = {{fd_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
    if (::poll(entries, 2, -1) < 0 && errno != EINTR) {
      return {};
    }
    if (entries[1].revents != 0) {
      return {};
    }
    SocketAddress peer;
    peer.bytes = sizeof peer.storage;
    FileDescriptor fd(accept4(fd_.get(), peer.get(), &peer.bytes, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd) {
      peer.family = peer.get()->sa_family;
      tune(fd.get(), peer);
      return Socket(std::move(fd));
    }
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      pollfd wake_only{wake_.get(), POLLIN, 0};  // out of descriptors: let some end instead of spinning
      ::poll(&wake_only, 1, kRetryPause_ms);
    }
  }
}

void Listener::shutdown() {
  const std::uint64_t one = 1;
  if (wake_ && ::write(wake_.get(), &one, sizeof one) < 0) {
    // The counter is full: the listener is woken already.
  }
}

}  // namespace distnet
