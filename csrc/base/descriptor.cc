#include "base/descriptor.h"

#include <atomic>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/error.h"

namespace distnet {
namespace {

// The set of owned descriptors, as bits. A forked child reads it where only async-signal-safe functions may be called.
// So nothing here moves once it is made, and reading takes no lock and allocates nothing.
class OwnedNumbers {
 public:
  void add(int fd) {
    const auto number = static_cast<std::size_t>(fd);
    DISTNET_INVARIANT(number < kPages * kPageNumbers);
    std::atomic<Page*>& page = pages_[number / kPageNumbers];
    if (page.load(std::memory_order_relaxed) == nullptr) {
      page.store(new Page{}, std::memory_order_release);  // kept until the process ends; pairs with for_each()
    }
    word_of(*page.load(std::memory_order_relaxed), number).fetch_or(bit_of(number), std::memory_order_relaxed);
  }

  void remove(int fd) {
    const auto number = static_cast<std::size_t>(fd);
    Page* const page = pages_[number / kPageNumbers].load(std::memory_order_relaxed);
    word_of(*page, number).fetch_and(~bit_of(number), std::memory_order_relaxed);
  }

  template <typename Visit>
  void for_each(const Visit& visit) const {
    for (std::size_t index = 0; index < kPages; ++index) {
      const Page* const page = pages_[index].load(std::memory_order_acquire);  // pairs with add()
      for (std::size_t word = 0; page != nullptr && word < kPageWords; ++word) {
        for (std::uint64_t bits = page->words[word].load(std::memory_order_relaxed); bits != 0; bits &= bits - 1) {
          visit(static_cast<int>(index * kPageNumbers + word * 64 + static_cast<std::size_t>(std::countr_zero(bits))));
        }
      }
    }
  }

 private:
  static constexpr std::size_t kPageWords = 64;
  static constexpr std::size_t kPageNumbers = kPageWords * 64;
  static constexpr std::size_t kPages = 1024;  // for 4 million descriptors, 4 times as many as Linux allows by default
  struct Page {
    std::atomic<std::uint64_t> words[kPageWords];
  };

  static std::atomic<std::uint64_t>& word_of(Page& page, std::size_t number) {
    return page.words[number % kPageNumbers / 64];
  }
  static std::uint64_t bit_of(std::size_t number) { return std::uint64_t{1} << (number % 64); }

  std::atomic<Page*> pages_[kPages] = {};
};

constinit OwnedNumbers owned;  // never destroyed: threads may close descriptors while the process exits
constinit std::mutex changes;  // held while a descriptor is opened or closed, and by fork(): the table is then exact

constinit std::atomic<std::uint32_t> forks{0};  // written in a child before fork() returns there

int open_nothing() { return ::open("/dev/null", O_RDWR | O_CLOEXEC); }

// Runs in the forked child before fork() returns, so it makes async-signal-safe calls only.
void replace_all() {
  int nothing = open_nothing();
  const int opened = nothing;
  owned.for_each([&](int fd) {
    if (nothing < 0) {
      ::close(fd);  // no number was free: this one is now
      nothing = open_nothing();
    }
    if (nothing >= 0 && nothing != fd) {
      ::dup3(nothing, fd, O_CLOEXEC);
    }
  });
  if (opened >= 0) {
    ::close(opened);
  }
}

void before_fork() { changes.lock(); }
void after_fork_in_parent() { changes.unlock(); }
void after_fork_in_child() {
  const int error = errno;
  forks.fetch_add(1, std::memory_order_relaxed);
  replace_all();
  errno = error;
  changes.unlock();
}

}  // namespace

std::uint32_t fork_number() { return forks.load(std::memory_order_relaxed); }

bool is_descriptor_shortage(int error) { return error == EMFILE || error == ENFILE; }

std::string no_descriptor_left(const std::string& what) {
  rlimit limit{};
  const bool known = getrlimit(RLIMIT_NOFILE, &limit) == 0;
  return "no file descriptor is left for " + what + ": the process may have " +
         (known ? std::to_string(limit.rlim_cur) : std::string("too few")) +
         " of them. Raise that limit where the process starts (ulimit -n); servers of processes=True, `distnet serve` " +
         "and `distnet run` raise it by themselves as far as the system lets them";
}

void FileDescriptor::watch_forks() {
  static const int status = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  if (status != 0) {
    throw Error(ErrorCode::kConfig, "no memory to watch for forks");
  }
}

FileDescriptor::NoFork::NoFork() { changes.lock(); }
FileDescriptor::NoFork::~NoFork() { changes.unlock(); }

FileDescriptor::FileDescriptor(int fd) : fd_(fd) {
  if (fd_ >= 0) {
    watch_forks();
    const NoFork no_fork;
    add(fd_);
  }
}

void FileDescriptor::add(int fd) { owned.add(fd); }
void FileDescriptor::remove(int fd) { owned.remove(fd); }

int FileDescriptor::release() {
  if (fd_ >= 0) {
    const NoFork no_fork;
    remove(fd_);
  }
  return std::exchange(fd_, -1);
}

void FileDescriptor::reset() {
  if (fd_ >= 0) {
    const NoFork no_fork;
    remove(fd_);
    ::close(fd_);
  }
  fd_ = -1;
}

}  // namespace distnet
