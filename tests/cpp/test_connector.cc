// Which of a host's addresses a client ends up at, and how long it takes where some do not answer.
#include <array>
#include <chrono>
#include <memory>
#include <vector>

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <unistd.h>

#include "base/error.h"
#include "base/threads.h"
#include "check.h"
#include "served_case.h"
#include "transport/connector.h"
#include "transport/listener.h"

namespace {

using namespace distnet;
using served::code_of;

SocketAddress at_port(const char* host, std::uint16_t port) {
  SocketAddress address;
  auto* const inet = reinterpret_cast<sockaddr_in*>(&address.storage);
  inet->sin_family = AF_INET;
  inet->sin_port = htons(port);
  inet_pton(AF_INET, host, &inet->sin_addr);
  address.bytes = sizeof(sockaddr_in);
  address.family = AF_INET;
  return address;
}

// Connects until the queue of a listener that accepts nobody is full.
std::vector<Stream> fill_queue(const SocketAddress& address) {
  std::vector<Stream> waiting;
  while (code_of([&] { waiting.push_back(Connector("a full queue", {address}).connect(Deadline::after(0.2), {})); }) ==
         ErrorCode::kNone) {
  }
  return waiting;
}

// An address whose host never answers: its listener accepts nobody, and its queue is full.
class BlackHole {
 public:
  BlackHole() : listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    SocketAddress any = at_port("127.0.0.1", 0);
    CHECK(::bind(listener_.get(), any.get(), any.bytes) == 0 && ::listen(listener_.get(), 0) == 0);
    address_.bytes = sizeof address_.storage;
    address_.family = AF_INET;
    getsockname(listener_.get(), address_.get(), &address_.bytes);
    waiting_ = fill_queue(address_);
  }
  const SocketAddress& address() const { return address_; }

 private:
  FileDescriptor listener_;
  SocketAddress address_;
  std::vector<Stream> waiting_;
};

// An address where nobody listens.
SocketAddress closed_port() {
  const Listener listener(parse_address("tcp://127.0.0.1:0"));
  return at_port("127.0.0.1", listener.address().port);
}

std::size_t open_descriptors() {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir("/proc/self/fd"), &closedir);
  std::size_t count = 0;
  while (readdir(folder.get()) != nullptr) {
    ++count;
  }
  return count;
}

}  // namespace

TEST(an_address_that_does_not_answer_costs_a_moment_and_not_the_deadline) {
  const BlackHole hole;
  const Listener listener(parse_address("tcp://127.0.0.1:0"));
  const SocketAddress good = at_port("127.0.0.1", listener.address().port);
  const std::size_t before = open_descriptors();
  {
    const auto begun = now();
    const Stream stream =
        Connector("a host", {hole.address(), hole.address(), good}).connect(Deadline::after(60.0), {});
    CHECK(now() - begun >= std::chrono::milliseconds(450) && now() - begun < std::chrono::seconds(20));
    SocketAddress peer;
    peer.bytes = sizeof peer.storage;
    CHECK(getpeername(stream.poll_fd(), peer.get(), &peer.bytes) == 0);
    CHECK_EQUAL(reinterpret_cast<sockaddr_in*>(&peer.storage)->sin_port, htons(listener.address().port));
    CHECK_EQUAL(open_descriptors(), before + 1);  // the others are closed
  }
  CHECK_EQUAL(open_descriptors(), before);
}

TEST(an_address_that_fails_at_once_gives_the_next_its_turn_at_once) {
  const Listener listener(parse_address("tcp://127.0.0.1:0"));
  const SocketAddress good = at_port("127.0.0.1", listener.address().port);
  const std::vector<SocketAddress> addresses(20, closed_port());
  std::vector<SocketAddress> all = addresses;
  all.push_back(good);
  const auto begun = now();
  CHECK(static_cast<bool>(Connector("a host", all).connect(Deadline::after(60.0), {})));
  CHECK(now() - begun < std::chrono::seconds(4));  // 20 head starts would be five
  CHECK(code_of([&] { Connector("a host", addresses).connect(Deadline::after(60.0), {}); }) == ErrorCode::kConnect);
}

TEST(where_nobody_answers_the_deadline_ends_the_attempts_and_an_interrupt_does) {
  const BlackHole hole;
  const std::size_t before = open_descriptors();
  const std::vector<SocketAddress> holes(3, hole.address());
  CHECK(code_of([&] { Connector("a host", holes).connect(Deadline::after(0.6), {}); }) == ErrorCode::kDeadlineExceeded);
  const Interrupt interrupt = [] { throw Error(ErrorCode::kConfig, "Ctrl-C"); };
  CHECK(code_of([&] { Connector("a host", holes).connect(Deadline::after(60.0), interrupt); }) == ErrorCode::kConfig);
  CHECK_EQUAL(open_descriptors(), before);
}

TEST(an_address_that_refuses_while_the_deadline_passes_has_refused) {
  FileDescriptor listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  SocketAddress address;
  address.bytes = sizeof(sa_family_t);  // Linux chooses a name
  address.family = AF_UNIX;
  address.storage.ss_family = AF_UNIX;
  CHECK(::bind(listener.get(), address.get(), address.bytes) == 0 && ::listen(listener.get(), 0) == 0);
  address.bytes = sizeof address.storage;
  CHECK(getsockname(listener.get(), address.get(), &address.bytes) == 0);
  const std::vector<Stream> waiting = fill_queue(address);
  const Deadline deadline = Deadline::after(1.0);
  const Interrupt close_and_wait = [&] {
    listener = FileDescriptor();
    sleep_for(deadline.left());
  };
  CHECK(code_of([&] { Connector("a host", {address}).connect(deadline, close_and_wait); }) == ErrorCode::kConnect);
}
