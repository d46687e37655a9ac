#include "transport/socket_address.h"

#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

#include "base/error.h"
#include "base/threads.h"
#include "base/waiting.h"

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

struct LookUp {
  int status = 0;
  std::vector<SocketAddress> addresses;
};

LookUp look_up(const Address& address, bool listening, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | (listening ? AI_PASSIVE : 0);
  addrinfo* found = nullptr;
  LookUp result;
  result.status = getaddrinfo(address.name.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(result.status == 0 ? found : nullptr, &freeaddrinfo);
  for (const addrinfo* at = owner.get(); at != nullptr; at = at->ai_next) {
    SocketAddress one;
    std::memcpy(&one.storage, at->ai_addr, at->ai_addrlen);
    one.bytes = at->ai_addrlen;
    one.family = at->ai_family;
    result.addresses.push_back(one);
  }
  return result;
}

// getaddrinfo() asks name servers for as long as the system's settings say, and nothing ends it before. So a thread of
// its own calls it, which is left behind where it takes too long, and ends with the answer. (getaddrinfo_a() would do
// the same, and exists in one C library only.)
LookUp look_up_in_time(const Address& address, bool listening, const Deadline& deadline, const Interrupt& interrupt) {
  if (simulated()) {
    return look_up(address, listening, 0);
  }
  struct Shared {
    Mutex mutex;
    Condition changed;
    std::optional<LookUp> result;
  };
  const auto shared = std::make_shared<Shared>();
  run_detached("looks a name up", [shared, address, listening] {
    LookUp result;
    try {
      result = look_up(address, listening, 0);
    } catch (const std::exception&) {
      result.status = EAI_MEMORY;
    }
    const std::lock_guard lock(shared->mutex);
    shared->result = std::move(result);
    shared->changed.notify_all();
  });
  std::unique_lock lock(shared->mutex);
  while (!shared->result) {
    if (deadline.expired()) {
      throw Error(ErrorCode::kDeadlineExceeded,
                  "the name servers have not said where " + address.text() + " is; give its number, or ask them again");
    }
    const Deadline next_look = Deadline::after(kInterruptInterval);
    shared->changed.wait_until(lock, next_look.at() < deadline.at() ? next_look : deadline);
    if (!shared->result && interrupt) {
      lock.unlock();
      interrupt();
      lock.lock();
    }
  }
  return std::move(*shared->result);
}

}  // namespace

std::vector<SocketAddress> resolve(const Address& address, bool listening, const Deadline& deadline,
                                   const Interrupt& interrupt) {
  if (address.within_host()) {
    return {unix_address(address.name)};
  }
  LookUp numbers = look_up(address, listening, AI_NUMERICHOST);  // needs nobody's answer
  if (numbers.status == EAI_NONAME) {
    numbers = look_up_in_time(address, listening, deadline, interrupt);
  }
  if (numbers.status != 0) {
    throw Error(ErrorCode::kConnect,
                "the host of " + address.text() + " is not known: " + gai_strerror(numbers.status));
  }
  return std::move(numbers.addresses);
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
