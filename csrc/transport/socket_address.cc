#include "transport/socket_address.h"

#include <cstddef>
#include <cstring>
#include <memory>

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

#include "base/error.h"

namespace distnet {
namespace {

constexpr int kSocketBufferBytes = 4 << 20;

SocketAddress unix_address(const std::string& name) {
  SocketAddress address;
  auto* const unix_part = reinterpret_cast<sockaddr_un*>(&address.storage);
  const std::string path = "distnet/" + name;  // after a zero byte: an abstract name, which ends with its socket
  unix_part->sun_family = AF_UNIX;
  std::memcpy(unix_part->sun_path + 1, path.data(), path.size());
  address.bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + path.size());
  address.family = AF_UNIX;
  return address;
}

}  // namespace

std::vector<SocketAddress> resolve(const Address& address, bool listening) {
  if (address.within_host()) {
    return {unix_address(address.name)};
  }
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = listening ? AI_PASSIVE : 0;
  addrinfo* found = nullptr;
  const int status = getaddrinfo(address.name.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (status != 0) {
    throw Error(ErrorCode::kConnect, "the host of " + address.text() + " is not known: " + gai_strerror(status));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  std::vector<SocketAddress> addresses;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    SocketAddress one;
    std::memcpy(&one.storage, at->ai_addr, at->ai_addrlen);
    one.bytes = at->ai_addrlen;
    one.family = at->ai_family;
    addresses.push_back(one);
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

void tune_socket(int fd, const SocketAddress& peer) {
  if (peer.family == AF_UNIX) {
    return;
  }
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (is_loopback(peer)) {
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBufferBytes, sizeof kSocketBufferBytes);
  }
}

}  // namespace distnet
