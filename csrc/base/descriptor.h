// Owns the file descriptors that a forked child must not keep: sockets, listeners, wake-ups.
//
// A child of fork() shares its parent's descriptors. A connection would then not end, and a port would not become free,
// before the child ends as well. So every descriptor that a FileDescriptor owns becomes /dev/null in a forked child
// before fork() returns there. Its number stays taken, so that the copies of the parent's objects can close it without
// harm. Programs that are executed get no descriptor, because all are opened with close-on-exec.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace distnet {

// How many forks made this process since its first ancestor that had a descriptor here. Two equal numbers, read in
// processes of one line, are of one process; reading it costs nothing, where getpid() is a system call. Any thread.
std::uint32_t fork_number();

// Returns whether a system call failed because the process, or the system, has no descriptor left.
bool is_descriptor_shortage(int error);
// Says that none is left for `what`, how many the process may have, and what to do.
std::string no_descriptor_left(const std::string& what);

// Thread safety: one thread at a time uses an object; any number of threads may open, close and fork.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  // Takes ownership of `fd`; owns nothing when it is negative. A child that is forked between the opening of `fd` and
  // this call keeps it; open() leaves no such gap.
  explicit FileDescriptor(int fd);
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() { reset(); }

  // Owns the descriptor that `open_it` returns. No other thread forks, opens or closes meanwhile, so `open_it` must not
  // wait.
  template <typename Open>
  static FileDescriptor open(const Open& open_it) {
    watch_forks();
    const NoFork no_fork;
    FileDescriptor owner;
    owner.fd_ = open_it();
    if (owner.fd_ >= 0) {
      add(owner.fd_);
    }
    return owner;
  }

  int get() const { return fd_; }
  // Gives up ownership; a forked child keeps the descriptor from now on.
  int release();
  // Closes the descriptor, if there is one.
  void reset();
  explicit operator bool() const { return fd_ >= 0; }

 private:
  // fork() waits while an object of this class lives.
  class NoFork {
   public:
    NoFork();
    NoFork(const NoFork&) = delete;
    NoFork& operator=(const NoFork&) = delete;
    ~NoFork();
  };
  static void watch_forks();  // before the first descriptor is added; throws Error(kConfig)
  static void add(int fd);    // called while a NoFork lives
  static void remove(int fd);

  int fd_ = -1;
};

}  // namespace distnet
