#include "client/client.h"

#include <algorithm>

#include <unistd.h>

#include "base/error.h"
#include "kernels/kernels.h"

namespace distnet {
namespace {

// The endpoints of all shards: given, or told by the first one. A server that listens on every interface names itself
// by a wildcard; the host we reached it by stands in for that.
std::vector<Endpoint> find_shards(const ClientOptions& options, const Interrupt& interrupt) {
  std::vector<Endpoint> endpoints = parse_address(options.address);
  if (endpoints.size() > 1) {
    return endpoints;
  }
  const Endpoint first = endpoints.front();
  const ProbeReply reply = Link::probe(first, Deadline::after(options.deadline_s), interrupt);
  if (reply.directory.empty()) {
    return endpoints;
  }
  endpoints = parse_address(reply.directory);
  for (Endpoint& endpoint : endpoints) {
    if (endpoint.transport == TransportKind::kTcp && (endpoint.name == "0.0.0.0" || endpoint.name == "::")) {
      endpoint.name = first.name;
    }
  }
  return endpoints;
}

}  // namespace

Client::Client(const ClientOptions& options, const Manifest& initial, std::span<const float* const> initial_tensors,
               const Interrupt& interrupt)
    : options_(options), process_(getpid()) {
  const std::vector<Endpoint> endpoints = find_shards(options, interrupt);
  const auto shards = static_cast<std::uint32_t>(endpoints.size());
  Link::Options link;
  link.transport = options.transport;
  link.tuning = options.tuning;
  link.hello.role = options.rank ? Role::kWorker : Role::kObserver;
  link.hello.rank = options.rank.value_or(0);
  link.hello.deadline_s = options.deadline_s;
  for (std::uint32_t i = 0; i < shards; ++i) {
    link.endpoint = endpoints[i];
    if (!initial.empty()) {
      link.initial = InitialParameters{initial, shard_range(initial, i, shards), initial_tensors};
    }
    Shard shard;
    shard.link = std::make_unique<Link>(link, interrupt);
    shards_.push_back(std::move(shard));
  }
  lay_out();
}

Client::~Client() = default;

void Client::lay_out() {
  manifest_ = shards_.front().link->welcome().manifest;
  std::uint64_t at = 0;
  max_inflight_ = kMaxInFlight;
  for (Shard& shard : shards_) {
    const Welcome& welcome = shard.link->welcome();
    if (welcome.manifest != manifest_ || welcome.range.begin != at) {
      throw Error(ErrorCode::kManifestMismatch,
                  "the servers of this address do not hold the shards of one model, in order; check the order of its "
                  "endpoints");
    }
    for (std::size_t i = 0; i < manifest_.tensors.size(); ++i) {
      const Tensor& tensor = manifest_.tensors[i];
      const std::uint64_t begin = std::max(tensor.offset, welcome.range.begin);
      const std::uint64_t end = std::min(tensor.offset + tensor.count, welcome.range.end);
      if (begin < end) {
        shard.pieces.push_back({i, begin - tensor.offset, begin - welcome.range.begin, end - begin});
      }
    }
    shard.flat_offset = at;
    shard.last.version = welcome.version;
    shard.parameters_version = welcome.version;
    shard.last.round = welcome.round;
    at = welcome.range.end;
    max_inflight_ = std::min(max_inflight_, welcome.max_inflight);
    joins_all_ = welcome.joins_all;
    clip_norm_ = welcome.clip_norm;
    rounds_begun_ = std::max(rounds_begun_, welcome.round);
  }
  if (at < manifest_.size) {
    throw Error(ErrorCode::kManifestMismatch, "the servers of this address hold only the first " + std::to_string(at) +
                                                  " of " + std::to_string(manifest_.size) +
                                                  " elements; name all of them");
  }
  flat_floats_ = at;
  flat_ = Region::private_memory(std::max<std::uint64_t>(at, 1) * sizeof(float));
  for (Shard& shard : shards_) {
    // A replica fills whole pages: it must not reach into the next shard's.
    const std::uint64_t end = shard.link->welcome().range.end;
    shard.delivers =
        (end % kPageFloats == 0 || end == at) && shard.link->channel().place_replica(flat() + shard.flat_offset);
  }
}

bool Client::has_average() const {
  return std::ranges::all_of(shards_,
                             [](const Shard& shard) { return shard.link->welcome().average_offset_bytes != 0; });
}

TransportKind Client::transport() const {
  const bool all_local = std::ranges::all_of(
      shards_, [](const Shard& shard) { return shard.link->channel().kind() == TransportKind::kShm; });
  return all_local ? TransportKind::kShm : TransportKind::kTcp;
}

void Client::check_usable() const {
  if (getpid() != process_) {
    throw Error(ErrorCode::kConfig, "this client was made before a fork; connect anew in the child");
  }
  if (closed_) {
    throw Error(ErrorCode::kPeerClosed, "this client is closed; connect anew");
  }
  if (!broken_.empty()) {
    throw Error(ErrorCode::kPeerClosed, broken_);
  }
}

void Client::close(const Interrupt& interrupt) {
  if (closed_) {
    return;
  }
  check_usable();
  for (Outstanding& outstanding : outstanding_) {
    outstanding.abandoned = true;
  }
  drain_abandoned(interrupt);
  for (Shard& shard : shards_) {
    shard.link->say_goodbye(interrupt);
  }
  abandon();
}

void Client::abandon() {
  closed_ = true;
  if (getpid() != process_) {
    return;  // after a fork the connections are the parent's
  }
  for (Shard& shard : shards_) {
    shard.link->abandon();
  }
}

std::string Client::stats(const Interrupt& interrupt) {
  check_usable();
  std::string json = "[";
  for (Shard& shard : shards_) {
    json += (json.size() > 1 ? ", " : "") + shard.link->stats(interrupt);
  }
  return json + "]";
}

bool Client::optimizer_state(std::uint32_t slot, std::span<float* const> targets, const Interrupt& interrupt) {
  check_usable();
  for (Shard& shard : shards_) {
    const std::vector<float> state = shard.link->optimizer_state(slot, interrupt);
    if (state.empty()) {
      return false;
    }
    for (const TensorPiece& piece : shard.pieces) {
      std::copy_n(state.data() + piece.shard_offset, piece.count, targets[piece.tensor] + piece.tensor_offset);
    }
  }
  return true;
}

bool Client::unsent(std::span<float* const> targets) {
  bool any = false;
  for (Shard& shard : shards_) {
    const std::span<const float> left = shard.link->channel().unsent();
    any |= !left.empty();
    for (const TensorPiece& piece : shard.pieces) {
      float* const to = targets[piece.tensor] + piece.tensor_offset;
      if (left.empty()) {
        std::fill_n(to, piece.count, 0.0F);
      } else {
        std::copy_n(left.data() + piece.shard_offset, piece.count, to);
      }
    }
  }
  return any;
}

void Client::restore_unsent(std::span<const float* const> tensors) {
  if (std::ranges::all_of(shards_, [](const Shard& shard) { return shard.link->channel().unsent().empty(); })) {
    throw Error(ErrorCode::kConfig, "nothing is left unsent here: gradients travel as they are");
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!all_finite(tensors[i], manifest_.tensors[i].count)) {
      throw Error(ErrorCode::kNonFiniteGradient, "what was left unsent holds NaN or infinity; nothing was restored");
    }
  }
  for (Shard& shard : shards_) {
    const std::span<float> left = shard.link->channel().unsent();
    for (const TensorPiece& piece : shard.pieces) {
      if (!left.empty()) {
        std::copy_n(tensors[piece.tensor] + piece.tensor_offset, piece.count, left.data() + piece.shard_offset);
      }
    }
  }
}

std::vector<std::uint64_t> Client::versions() const {
  std::vector<std::uint64_t> versions;
  for (const Shard& shard : shards_) {
    versions.push_back(shard.last.version);
  }
  return versions;
}

std::uint64_t Client::accepted() const {
  const auto least = std::ranges::min_element(shards_, {}, [](const Shard& shard) { return shard.last.accepted; });
  return least->last.accepted;
}

std::uint64_t Client::applied() const {
  const auto least = std::ranges::min_element(shards_, {}, [](const Shard& shard) { return shard.last.applied; });
  return least->last.applied;
}

std::uint64_t Client::staleness() const {
  const auto most = std::ranges::max_element(shards_, {}, [](const Shard& shard) { return shard.last.staleness; });
  return most->last.staleness;
}

std::uint64_t Client::round() const {
  const auto most = std::ranges::max_element(shards_, {}, [](const Shard& shard) { return shard.last.round; });
  return most->last.round;
}

}  // namespace distnet
