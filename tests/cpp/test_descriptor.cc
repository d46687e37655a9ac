// A forked child holds none of its parent's descriptors.
#include <array>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/descriptor.h"
#include "base/threads.h"
#include "base/waiting.h"
#include "check.h"

namespace {

using namespace distnet;

std::array<FileDescriptor, 2> socket_pair() {
  int ends[2];
  CHECK_EQUAL(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  return {FileDescriptor(ends[0]), FileDescriptor(ends[1])};
}

bool is_dev_null(int fd) {
  struct stat there{}, null{};
  return ::fstat(fd, &there) == 0 && ::stat("/dev/null", &null) == 0 && there.st_rdev == null.st_rdev &&
         (::fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0;
}

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

// A forked child that is there when the constructor returns, and lives until told to end.
class Child {
 public:
  Child() {
    int signs[2];
    CHECK_EQUAL(::pipe(orders_), 0);
    CHECK_EQUAL(::pipe(signs), 0);
    process_ = ::fork();
    if (process_ == 0) {
      ::close(orders_[1]);
      ::close(signs[1]);
      char order = 0;
      while (::read(orders_[0], &order, 1) < 0) {
      }
      ::_exit(0);
    }
    ::close(orders_[0]);
    ::close(signs[1]);
    char sign = 0;
    CHECK_EQUAL(::read(signs[0], &sign, 1), 0);  // its end: the child closed it
    ::close(signs[0]);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    ::close(orders_[1]);
    ::waitpid(process_, nullptr, 0);
  }

 private:
  int orders_[2] = {};
  pid_t process_ = 0;
};

// Runs `look` in a forked child; returns what it says.
template <typename Look>
bool holds_in_child(const Look& look) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(look() ? 0 : 1);
  }
  int status = 0;
  CHECK_EQUAL(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(a_connection_ends_with_its_owner_although_a_child_lives) {
  auto [left, right] = socket_pair();
  const Child child;
  left.reset();
  pollfd entry{right.get(), POLLIN, 0};
  CHECK_EQUAL(poll_until({&entry, 1}, Deadline::after(20.0)), 1);
  char byte = 0;
  CHECK_EQUAL(::recv(right.get(), &byte, 1, 0), 0);
}

TEST(a_name_is_free_as_soon_as_its_listener_is_closed_although_a_child_lives) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ::snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "distnet-test-%d", static_cast<int>(::getpid()));
  const auto listen = [&] {
    FileDescriptor listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const bool free = ::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    return std::pair(std::move(listener), free);
  };
  auto [first, was_free] = listen();
  CHECK(was_free);
  const Child child;
  CHECK(!listen().second);
  first.reset();
  CHECK(listen().second);
}

TEST(a_child_keeps_the_numbers_taken_and_can_destroy_its_copies) {
  auto [left, right] = socket_pair();
  CHECK(holds_in_child([&, &l = left, &r = right] {
    const bool replaced = is_dev_null(l.get()) && is_dev_null(r.get());
    const int number = l.get();
    l.reset();
    return replaced && !is_open(number);
  }));
  CHECK(!is_dev_null(left.get()));
  CHECK_EQUAL(::send(left.get(), "x", 1, 0), 1);  // the parent's own still work
}

TEST(what_was_released_moved_or_closed_is_not_replaced) {
  auto [left, right] = socket_pair();
  FileDescriptor moved = std::move(left);
  const int released = right.release();
  CHECK(holds_in_child([&, &l = left] { return !l && is_dev_null(moved.get()) && !is_dev_null(released); }));
  const int number = moved.get();
  moved.reset();
  const int other = ::fcntl(released, F_DUPFD_CLOEXEC, number);  // somebody else's, with the same number
  CHECK_EQUAL(other, number);
  CHECK(holds_in_child([&] { return !is_dev_null(other); }));
  ::close(other);
  ::close(released);
}

TEST(a_grandchild_holds_none_either) {
  auto [left, right] = socket_pair();
  CHECK(holds_in_child([&, &l = left] {
    const FileDescriptor own = FileDescriptor::open([] { return ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0); });
    return own && holds_in_child([&] { return is_dev_null(l.get()) && is_dev_null(own.get()); });
  }));
}

TEST(a_full_table_of_descriptors_keeps_none_in_the_child_either) {
  auto [left, right] = socket_pair();
  std::vector<int> others;
  for (int fd = ::open("/dev/zero", O_RDONLY); fd >= 0 && others.size() < 200'000; fd = ::dup(fd)) {
    others.push_back(fd);
  }
  const bool held = holds_in_child([&, &l = left, &r = right] { return is_dev_null(l.get()) && is_dev_null(r.get()); });
  for (const int fd : others) {
    ::close(fd);
  }
  CHECK(held);
}

TEST(threads_open_and_close_while_another_forks) {
  std::atomic<bool> over{false};
  std::vector<Thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back("opener", [&] {
      while (!over.load(std::memory_order_relaxed)) {
        const auto socket = FileDescriptor::open([] { return ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0); });
      }
    });
  }
  auto [left, right] = socket_pair();
  bool replaced = true;
  for (int i = 0; i < 20; ++i) {
    replaced = replaced && holds_in_child([&, &l = left] {
                 for (int fd = 3; fd < 64; ++fd) {  // a socket is in none of them
                   struct stat status{};
                   if (::fstat(fd, &status) == 0 && S_ISSOCK(status.st_mode)) {
                     return false;
                   }
                 }
                 return is_dev_null(l.get());
               });
  }
  over.store(true, std::memory_order_relaxed);
  for (Thread& thread : threads) {
    thread.join();
  }
  CHECK(replaced);
}

}  // namespace
