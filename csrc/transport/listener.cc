#include "transport/listener.h"

#include <cerrno>
#include <cstring>

#include <netinet/in.h>
#include <unistd.h>

#include "base/error.h"
#include "transport/socket_address.h"

namespace distnet {
namespace {

constexpr int kListenBacklog = 128;
constexpr double kLookUpSeconds = 30.0;  // of the name of a host to listen at

std::string reason() { return std::strerror(errno); }

}  // namespace

Listener::Listener(const Address& address) : address_(address) {
  std::string why = "no address";
  for (SocketAddress& candidate : resolve(address, true, Deadline::after(kLookUpSeconds), {})) {
    FileDescriptor fd =
        FileDescriptor::open([&] { return ::socket(candidate.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); });
    if (!fd && is_descriptor_shortage(errno)) {
      throw Error(ErrorCode::kTransport, no_descriptor_left("listening at " + address.text()));
    }
    const int on = 1;
    if (candidate.family != AF_UNIX) {
      setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    }
    if (!fd || ::bind(fd.get(), candidate.get(), candidate.bytes) != 0 || ::listen(fd.get(), kListenBacklog) != 0) {
      why = reason();
      continue;
    }
    if (!address_.within_host()) {
      SocketAddress bound;
      bound.bytes = sizeof bound.storage;
      getsockname(fd.get(), bound.get(), &bound.bytes);
      const auto* const inet = reinterpret_cast<const sockaddr_in*>(&bound.storage);
      address_.port = ntohs(inet->sin_port);  // at the same place in sockaddr_in6
    }
    fd_ = std::move(fd);
    return;
  }
  throw Error(ErrorCode::kConnect, "cannot listen at " + address.text() + " (" + why +
                                       "); choose another address, or port 0 for any free port");
}

Stream Listener::accept(bool& exhausted) {
  SocketAddress peer;
  peer.bytes = sizeof peer.storage;
  FileDescriptor fd =
      FileDescriptor::open([&] { return ::accept4(fd_.get(), peer.get(), &peer.bytes, SOCK_NONBLOCK | SOCK_CLOEXEC); });
  exhausted = !fd && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM);
  if (!fd) {
    return {};
  }
  peer.family = peer.get()->sa_family;
  tune_socket(fd.get(), peer);
  return Stream(std::move(fd));
}

void Listener::shutdown() {
  if (fd_) {
    ::shutdown(fd_.get(), SHUT_RDWR);
  }
  fd_ = {};
}

}  // namespace distnet
