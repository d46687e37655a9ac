#include <cerrno>
#include <cstring>
#include <ctime>
#include <string>

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/descriptor.h"
#include "base/error.h"
#include "base/platform.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace distnet {

void sleep_on_word(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::chrono::nanoseconds timeout) {
  static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));
  timespec relative{};
  relative.tv_sec = static_cast<time_t>(timeout.count() / 1'000'000'000);
  relative.tv_nsec = static_cast<long>(timeout.count() % 1'000'000'000);
  syscall(SYS_futex, &word, FUTEX_WAIT, expected, &relative, nullptr, 0);
}

void wake_sleepers(const std::atomic<std::uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, 0x7fffffff, nullptr, nullptr, 0);
}

namespace {

// Finding the pages of a large file takes long. A signal that comes meanwhile is no failure.
bool allocate_all(int fd, std::size_t bytes) {
  int status = 0;
  do {
    status = fallocate(fd, 0, 0, static_cast<off_t>(bytes));
  } while (status != 0 && errno == EINTR);
  return status == 0;
}

}  // namespace

int create_memory_file() {
  const int fd = memfd_create("distnet", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd >= 0) {
    return fd;
  }
  if (is_descriptor_shortage(errno)) {
    throw Error(ErrorCode::kTransport, no_descriptor_left("shared memory"));
  }
  throw Error(ErrorCode::kConfig, std::string("the system gives no shared memory: ") + std::strerror(errno));
}

void allocate_memory_file(int fd, std::size_t bytes) {
  if (!allocate_all(fd, bytes)) {
    throw Error(ErrorCode::kConfig, "no shared memory of " + std::to_string(bytes) + " bytes: " + std::strerror(errno) +
                                        "; use a smaller model, fewer clients, or the tcp transport");
  }
}

void seal_memory_file(int fd, bool writable_by_peers) {
  const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | (writable_by_peers ? 0 : F_SEAL_FUTURE_WRITE);
  if (fcntl(fd, F_ADD_SEALS, seals) != 0) {
    throw Error(ErrorCode::kConfig,
                std::string("shared memory cannot be sealed (Linux 5.1 or newer can): ") + std::strerror(errno));
  }
}

bool is_sealed_memory_file(int fd, std::size_t bytes) {
  struct stat status{};
  const int seals = fcntl(fd, F_GET_SEALS);
  return seals >= 0 && (seals & F_SEAL_SHRINK) != 0 && fstat(fd, &status) == 0 &&
         static_cast<std::size_t>(status.st_size) == bytes;
}

int create_event_file() { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

void ring_event_file(int fd) {
  const eventfd_t one = 1;
  eventfd_write(fd, one);  // fails only when the counter is full; then it has been rung already
}

void drain_event_file(int fd) {
  eventfd_t count = 0;
  eventfd_read(fd, &count);
}

int open_process(int process) { return static_cast<int>(syscall(SYS_pidfd_open, process, 0)); }

bool exceeds_cache(std::size_t bytes) {
  static const std::size_t cache_bytes = [] {
    const long level3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return level3 > 0 ? static_cast<std::size_t>(level3) : std::size_t{32} << 20U;  // used when the system does not say
  }();
  return bytes > cache_bytes / 4 * 3;
}

std::uint32_t current_core() { return static_cast<std::uint32_t>(sched_getcpu()); }

std::uint32_t usable_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  return sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? static_cast<std::uint32_t>(CPU_COUNT(&allowed)) : 1;
}

// Where the thread may use all cores of its cpuset, it is given all there are in the end, so that it follows a cpuset that
// grows later.
void leave_core() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
    return;
  }
  cpu_set_t others = allowed;
  CPU_CLR(current_core(), &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof(others), &others) != 0) {
    return;
  }
  cpu_set_t all;
  std::memset(&all, 0xFF, sizeof(all));
  cpu_set_t now_allowed;
  CPU_ZERO(&now_allowed);
  sched_setaffinity(0, sizeof(all), &all);
  if (sched_getaffinity(0, sizeof(now_allowed), &now_allowed) != 0 || !CPU_EQUAL(&now_allowed, &allowed)) {
    sched_setaffinity(0, sizeof(allowed), &allowed);
  }
}

std::uint64_t system_random_number() {
  std::uint64_t number = 0;
  if (getrandom(&number, sizeof number, 0) != sizeof number) {
    throw Error(ErrorCode::kConfig, "the system gives no random numbers");
  }
  return number;
}

}  // namespace distnet
