#include "group/mesh.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/ranks_text.h"
#include "base/waiting.h"
#include "sessions/proof.h"

namespace distnet {
namespace {

Proof proof_of(const Joined& joined, MemberStream stream, std::uint32_t from, std::uint32_t to) {
  const JobSecret secret{joined.formed.secret[0], joined.formed.secret[1]};
  return prove(secret, joined.formed.generation, static_cast<std::uint16_t>(stream), from, to);
}

std::span<std::byte> bytes_of(MemberHello& hello) { return {reinterpret_cast<std::byte*>(&hello), sizeof hello}; }

}  // namespace

Stream connect_to_member(const Joined& joined, std::uint32_t own_rank, std::uint32_t rank, MemberStream stream,
                         const Deadline& deadline, const Interrupt& interrupt) {
  MemberHello hello;
  hello.magic = kMagic;
  hello.version = kProtocolVersion;
  hello.stream = stream;
  hello.from = own_rank;
  hello.to = rank;
  hello.generation = joined.formed.generation;
  const Proof proof = proof_of(joined, stream, own_rank, rank);
  hello.proof[0] = proof.high;
  hello.proof[1] = proof.low;
  try {
    Stream connection = Stream::connect(address_of(joined, rank), deadline, interrupt);
    connection.send_all(bytes_of(hello), &deadline, interrupt);
    return connection;
  } catch (const Error& error) {
    throw Error(error.code(), "rank " + std::to_string(own_rank) + " cannot reach rank " + std::to_string(rank) + ": " +
                                  error.what());
  }
}

void Arrivals::add_to(std::vector<pollfd>& polled) const {
  polled.push_back({joined_.listener->poll_fd(), POLLIN, 0});
  for (const Unknown& unknown : unknown_) {
    polled.push_back({unknown.stream.poll_fd(), POLLIN, 0});
  }
}

Deadline Arrivals::next_look() const {
  Deadline next = Deadline::forever();
  for (const Unknown& unknown : unknown_) {
    next = std::min(next, unknown.says_by,
                    [](const Deadline& one, const Deadline& other) { return one.at() < other.at(); });
  }
  return next;
}

// Where there are many, the one that has been silent for longest makes room: a member says who it is as soon as it has
// connected, so strangers who say nothing keep nobody out.
void Arrivals::accept() {
  const bool within_host = joined_.listener->address().within_host();
  for (std::size_t accepted = 0; accepted < kMostUnknown; ++accepted) {
    bool exhausted = false;
    Stream stream = joined_.listener->accept(exhausted);
    if (exhausted) {
      throw Error(ErrorCode::kTransport, no_descriptor_left("a connection from another member of the group"));
    }
    if (!stream) {
      return;
    }
    if (!within_host || stream.peer_is_this_user()) {
      if (unknown_.size() >= kMostUnknown) {
        unknown_.erase(unknown_.begin());
      }
      unknown_.push_back({std::move(stream), {}, 0, Deadline::after(kHandshakeSeconds)});
    }
  }
}

bool Arrivals::is_of_group(const MemberHello& hello) const {
  return hello.magic == kMagic && hello.version == kProtocolVersion && hello.stream <= MemberStream::kMessages &&
         hello.from > own_rank_ && hello.from < joined_.formed.members.size() && hello.to == own_rank_ &&
         hello.generation == joined_.formed.generation &&
         same({hello.proof[0], hello.proof[1]}, proof_of(joined_, hello.stream, hello.from, own_rank_));
}

std::vector<Arrivals::Arrival> Arrivals::take() {
  accept();
  std::vector<Arrival> arrived;
  for (auto at = unknown_.begin(); at != unknown_.end();) {
    bool over = at->says_by.expired();
    try {
      at->received += at->stream.receive_some(bytes_of(at->hello).subspan(at->received));
      if (at->received == sizeof(MemberHello)) {
        over = true;
        if (is_of_group(at->hello)) {
          arrived.push_back({at->hello.from, at->hello.stream, std::move(at->stream)});
        }
      }
    } catch (const Error&) {
      over = true;  // a stranger, or a member whose death the coordinator tells
    }
    at = over ? unknown_.erase(at) : std::next(at);
  }
  return arrived;
}

namespace {

// Those that have no stream yet, of ranks above this one.
std::vector<std::uint32_t> still_missing(const MeshStreams& mesh, std::uint32_t own_rank) {
  std::vector<std::uint32_t> ranks;
  for (std::uint32_t rank = own_rank + 1; rank < mesh.ordered.size(); ++rank) {
    if (!mesh.ordered[rank] || !mesh.named[rank]) {
      ranks.push_back(rank);
    }
  }
  return ranks;
}

}  // namespace

MeshStreams connect_mesh(const Joined& joined, std::uint32_t own_rank, Arrivals& arrivals, const Deadline& deadline,
                         const Interrupt& interrupt) {
  const std::size_t size = joined.formed.members.size();
  MeshStreams mesh;
  mesh.ordered.resize(size);
  mesh.named.resize(size);
  for (std::uint32_t rank = 0; rank < own_rank; ++rank) {
    mesh.ordered[rank] = connect_to_member(joined, own_rank, rank, MemberStream::kOrdered, deadline, interrupt);
    mesh.named[rank] = connect_to_member(joined, own_rank, rank, MemberStream::kNamed, deadline, interrupt);
  }
  while (true) {
    for (Arrivals::Arrival& arrival : arrivals.take()) {
      if (arrival.stream == MemberStream::kMessages) {
        mesh.messages.push_back(std::move(arrival));
      } else {
        std::vector<Stream>& streams = arrival.stream == MemberStream::kOrdered ? mesh.ordered : mesh.named;
        if (!streams[arrival.rank]) {
          streams[arrival.rank] = std::move(arrival.connection);
        }
      }
    }
    const std::vector<std::uint32_t> missing = still_missing(mesh, own_rank);
    if (missing.empty()) {
      return mesh;
    }
    if (deadline.expired()) {
      throw Error(ErrorCode::kDeadlineExceeded,
                  "rank " + std::to_string(own_rank) + " waited for the connections of " + ranks_text(missing));
    }
    std::vector<pollfd> polled;
    arrivals.add_to(polled);
    poll_until(polled, std::min<Clock::duration>(kInterruptInterval, deadline.left()));
    if (interrupt) {
      interrupt();
    }
  }
}

}  // namespace distnet
