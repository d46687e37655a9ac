// Who is let in, told why not, or kept waiting, at the limits of the process.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/platform.h"
#include "base/random.h"
#include "check.h"
#include "served_case.h"

namespace {

using namespace served;
using Call = Client::Call;

std::atomic<int> failing_allocations{0};  // how many of the accepting thread's allocations fail next

bool fails_now() {
  char name[16] = {};
  return failing_allocations.load(std::memory_order_relaxed) > 0 &&
         pthread_getname_np(pthread_self(), name, sizeof name) == 0 && std::strncmp(name, "accepts", 7) == 0 &&
         failing_allocations.fetch_sub(1, std::memory_order_relaxed) > 0;
}

// Takes every descriptor that the process may still have, under a low limit.
class NoneLeft {
 public:
  NoneLeft() {
    getrlimit(RLIMIT_NOFILE, &before_);
    rlimit low = before_;
    low.rlim_cur = 200;
    setrlimit(RLIMIT_NOFILE, &low);
    while (true) {
      FileDescriptor one = FileDescriptor::open(create_event_file);
      if (!one) {
        return;
      }
      taken_.push_back(std::move(one));
    }
  }
  NoneLeft(const NoneLeft&) = delete;
  NoneLeft& operator=(const NoneLeft&) = delete;
  ~NoneLeft() { setrlimit(RLIMIT_NOFILE, &before_); }
  // For the test's own connections.
  void let_go(int count) { taken_.resize(taken_.size() - static_cast<std::size_t>(count)); }

 private:
  rlimit before_{};
  std::vector<FileDescriptor> taken_;
};

}  // namespace

// NOLINTBEGIN(cppcoreguidelines-no-malloc)
// Not inlined: the compiler would take their halves for mismatched ones.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  void* const memory = fails_now() ? nullptr : std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
// NOLINTEND(cppcoreguidelines-no-malloc)

TEST(memory_that_the_accepting_thread_lacks_for_a_moment_ends_nothing) {
  for (const char* const address : {"shm://", "tcp://127.0.0.1:0"}) {
    Served server({.address = address});
    for (int count = 1; count < 12; ++count) {
      failing_allocations = count;
      // A client may have been let in and then have lacked something; the next one is served.
      static_cast<void>(code_of([&] { Worker(server.address(), 0, shm(), 5.0).call(Call::kPull); }));
      failing_allocations = 0;
      Worker worker(server.address(), 0, shm());
      worker.call(Call::kPull);
    }
    server.stop();
  }
}

TEST(at_the_limit_of_descriptors_a_newcomer_is_refused_by_name_and_the_rest_goes_on) {
  for (const char* const address : {"shm://", "tcp://127.0.0.1:0"}) {
    const Transport& transport = address[0] == 's' ? shm() : tcp();
    Served server({.semantics = "sync", .workers = 1, .floats = 5000, .address = address});
    Worker worker(server.address(), 0, transport);
    CHECK_EQUAL(worker.call(Call::kPushPull, 1.0F), -1.0F);
    {
      NoneLeft none_left;
      for (int left = 1; left < 8; ++left) {
        none_left.let_go(1);
        std::string why;
        try {
          Worker(server.address(), std::nullopt, transport, 10.0).call(Call::kPull);
        } catch (const Error& error) {
          CHECK(error.code() == ErrorCode::kTransport || error.code() == ErrorCode::kConnect);
          why = error.what();
        }
        CHECK(left > 5 || why.find("no file descriptor is left") != std::string::npos);
        CHECK_EQUAL(worker.call(Call::kPushPull, 1.0F), -static_cast<float>(left + 1));
      }
    }
    Worker late(server.address(), std::nullopt, transport);
    late.call(Call::kPull);
    server.stop();
  }
}
