// A host's name that nobody looks up in time: the test has a getaddrinfo() of its own, which waits as slow name servers
// have it wait.
#include <atomic>
#include <chrono>
#include <cstring>

#include <dlfcn.h>
#include <netdb.h>

#include "base/error.h"
#include "base/threads.h"
#include "check.h"
#include "served_case.h"
#include "transport/listener.h"
#include "transport/stream.h"

namespace {

using namespace distnet;
using served::code_of;

std::atomic<bool> answered{false};
std::atomic<int> looking{0};

}  // namespace

extern "C" int getaddrinfo(const char* name, const char* service, const addrinfo* hints, addrinfo** result) {
  using Real = int (*)(const char*, const char*, const addrinfo*, addrinfo**);
  static const auto real = reinterpret_cast<Real>(dlsym(RTLD_NEXT, "getaddrinfo"));
  const bool slow = std::strcmp(name, "slow.test") == 0;
  if (slow && (hints->ai_flags & AI_NUMERICHOST) == 0) {
    ++looking;
    while (!answered) {
      sleep_for(std::chrono::milliseconds(1));
    }
    --looking;
    return real("127.0.0.1", service, hints, result);
  }
  return real(name, service, hints, result);
}

TEST(a_name_that_is_not_looked_up_in_time_ends_by_the_deadline_or_an_interrupt) {
  const Address slow = parse_address("tcp://slow.test:1");
  answered = false;
  const auto begun = now();
  CHECK(code_of([&] { Stream::connect(slow, Deadline::after(0.3), {}); }) == ErrorCode::kDeadlineExceeded);
  CHECK(now() - begun < std::chrono::seconds(20));
  const Interrupt interrupt = [] { throw Error(ErrorCode::kConfig, "Ctrl-C"); };
  CHECK(code_of([&] { Stream::connect(slow, Deadline::after(60.0), interrupt); }) == ErrorCode::kConfig);
  CHECK_EQUAL(looking.load(), 2);  // left behind, until the name servers answer
  answered = true;
  while (looking != 0) {
    sleep_for(Clock::duration{0});
  }
}

TEST(a_name_that_is_looked_up_slowly_is_used_when_it_is_known) {
  const Listener listener(parse_address("tcp://127.0.0.1:0"));
  Address slow = listener.address();
  slow.name = "slow.test";
  answered = false;
  Thread name_server("answers", [] {
    while (looking == 0) {
      sleep_for(Clock::duration{0});
    }
    answered = true;
  });
  CHECK(static_cast<bool>(Stream::connect(slow, Deadline::after(60.0), {})));
  name_server.join();
}

TEST(a_number_needs_no_name_server) {
  const Listener listener(parse_address("tcp://127.0.0.1:0"));
  answered = false;
  CHECK(static_cast<bool>(Stream::connect(listener.address(), Deadline::after(60.0), {})));
  CHECK(code_of([] { Stream::connect(parse_address("tcp://no.such.host.invalid:1"), Deadline::after(60.0), {}); }) ==
        ErrorCode::kConnect);
}
