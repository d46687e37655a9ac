// File descriptors of this process that a forked child must not keep: sockets, listeners, wake-ups.
//
// A child of fork() shares its parent's descriptors, so that a connection would not end, and a port would not get free,
// before the child ends as well. In a forked child each descriptor that a FileDescriptor owns becomes /dev/null before
// fork() returns there. Its number stays taken, so that the copies of the parent's objects can close it without harm.
// (Programs that are executed get none: all are opened with close-on-exec.)
#pragma once

#include <utility>

namespace distnet {

// Thread safety: one thread at a time uses one object; any number of threads open, close and fork.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  // Takes ownership of `fd`; negative: of none. A fork between its opening and this call leaves it in the child: open()
  // has no such gap.
  explicit FileDescriptor(int fd);
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() { reset(); }

  // Owns what `open_it` returns, which must not wait: no other thread forks, opens or closes meanwhile.
  template <typename Open>
  static FileDescriptor open(const Open& open_it) {
    const NoFork no_fork;
    FileDescriptor owner;
    owner.fd_ = open_it();
    if (owner.fd_ >= 0) {
      add(owner.fd_);
    }
    return owner;
  }

  int get() const { return fd_; }
  // Gives up ownership: a child keeps the descriptor from now on.
  int release();
  // Closes it, if there is one.
  void reset();
  explicit operator bool() const { return fd_ >= 0; }

 private:
  // While one lives, fork() waits.
  class NoFork {
   public:
    NoFork();
    NoFork(const NoFork&) = delete;
    NoFork& operator=(const NoFork&) = delete;
    ~NoFork();
  };
  static void add(int fd);  // with NoFork
  static void remove(int fd);

  int fd_ = -1;
};

}  // namespace distnet
