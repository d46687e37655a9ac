// Streams between the members of a group. Of two members, the one with the higher rank connects. It proves that it is of
// the group by the group's secret, in the first bytes.
//
// Thread safety: one thread.
#pragma once

#include <cstddef>
#include <vector>

#include "base/waiting.h"
#include "group/joining.h"

namespace distnet {

// Connects to the member of a lower rank, for one purpose.
Stream connect_to_member(const Joined& joined, std::uint32_t own_rank, std::uint32_t rank, MemberStream stream,
                         const Deadline& deadline, const Interrupt& interrupt);

// Takes connections from members of higher ranks, and closes those of strangers.
class Arrivals {
 public:
  struct Arrival {
    std::uint32_t rank = 0;
    MemberStream stream = MemberStream::kOrdered;
    Stream connection;
  };

  // `joined` outlives this.
  Arrivals(const Joined& joined, std::uint32_t own_rank) : joined_(joined), own_rank_(own_rank) {}

  // Takes what has come since the last call, without waiting.
  std::vector<Arrival> take();
  // Adds the descriptors whose readiness means that take() has something to do.
  void add_to(std::vector<pollfd>& polled) const;
  // When take() is to be called again even though nothing is ready: a connection that says nothing is closed.
  Deadline next_look() const;

 private:
  static constexpr std::size_t kMostUnknown = 64;  // that have not said yet who they are
  struct Unknown {
    Stream stream;
    MemberHello hello;
    std::size_t received = 0;
    Deadline says_by = Deadline::forever();
  };

  void accept();
  bool is_of_group(const MemberHello& hello) const;

  const Joined& joined_;
  const std::uint32_t own_rank_;
  std::vector<Unknown> unknown_;
};

struct MeshStreams {
  std::vector<Stream> ordered;  // by rank; own empty
  std::vector<Stream> named;
  std::vector<Arrivals::Arrival> messages;  // that came before this member was ready
};

// Connects all members with each other, for both lanes. Throws Error(kDeadlineExceeded) that names who did not come.
MeshStreams connect_mesh(const Joined& joined, std::uint32_t own_rank, Arrivals& arrivals, const Deadline& deadline,
                         const Interrupt& interrupt);

}  // namespace distnet
