// Pieces of memory that one system call sends from or receives into.
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>

#include <sys/socket.h>
#include <sys/uio.h>

#include "base/error.h"
#include "transport/channel.h"

namespace distnet {

class Parts {
 public:
  bool full() const { return count_ == kMost; }
  void add(const void* data, std::uint64_t bytes) {
    if (bytes != 0 && !full()) {
      parts_[count_++] = {const_cast<void*>(data), bytes};
    }
  }

  // Bytes moved at once without waiting: 0 where it would have to wait. Throws Error(kPeerClosed).
  std::uint64_t send(int fd) { return checked(sendmsg(fd, message(), MSG_NOSIGNAL)); }
  std::uint64_t receive(int fd) { return checked(recvmsg(fd, message(), 0)); }

 private:
  static constexpr std::size_t kMost = 64;

  msghdr* message() {
    message_.msg_iov = parts_.data();
    message_.msg_iovlen = count_;
    return &message_;
  }

  static std::uint64_t checked(ssize_t moved) {
    if (moved > 0) {
      return static_cast<std::uint64_t>(moved);
    }
    if (moved < 0 && (errno == EAGAIN || errno == EINTR)) {
      return 0;
    }
    const std::string why = moved < 0 ? std::strerror(errno) : "end of stream";
    throw Error(ErrorCode::kPeerClosed, "the peer closed the connection (" + why + ")");
  }

  std::array<iovec, kMost> parts_{};
  std::size_t count_ = 0;
  msghdr message_{};
};

// Calls `run(pointer, floats)` for what lies of the elements [begin, end) in `pieces`, and `gap(floats)` for what does
// not, in order.
template <typename Piece, typename Run, typename Gap>
void for_each_run(std::span<const Piece> pieces, std::uint64_t begin, std::uint64_t end, const Run& run,
                  const Gap& gap) {
  for (const Piece& piece : pieces) {
    const std::uint64_t piece_end = std::min(piece.offset + piece.count, end);
    if (piece.offset >= end) {
      break;
    }
    if (piece_end <= begin) {
      continue;
    }
    if (piece.offset > begin) {
      gap(piece.offset - begin);
      begin = piece.offset;
    }
    if constexpr (std::is_same_v<Piece, SourcePiece>) {
      run(piece.from + (begin - piece.offset), piece_end - begin);
    } else {
      run(piece.to + (begin - piece.offset), piece_end - begin);
    }
    begin = piece_end;
  }
  if (begin < end) {
    gap(end - begin);
  }
}

}  // namespace distnet
