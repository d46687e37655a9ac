#include "client/client.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <span>

#include "base/descriptor.h"
#include "base/error.h"
#include "base/random.h"
#include "kernels/kernels.h"
#include "wire/client_messages.h"
#include "wire/learning_rate.h"

namespace distnet {
namespace {

void check_names_a_server(const Address& address) {
  if (address.within_host() ? address.name.empty() : address.port == 0) {
    throw Error(ErrorCode::kConfig,
                "the address '" + address.text() + "' names no server; give the one that the server printed");
  }
}

// The addresses of all shards: given, or told by the first one.
std::vector<Address> find_shards(const ClientOptions& options, const Deadline& deadline, const Interrupt& interrupt) {
  std::vector<Address> given = parse_addresses(options.address);
  std::ranges::for_each(given, check_names_a_server);
  if (given.size() > 1) {
    return given;
  }
  const ProbeReply reply = Link::probe(given.front(), deadline, interrupt);
  return reply.directory.empty() ? given : as_reached(given.front(), parse_addresses(reply.directory));
}

// Throws where a shard does not answer; that the system takes a connection for it says nothing. Shard 0 hears of the
// client only afterwards: a client that comes to it and cannot go on would be a worker that died.
void reach_others(const std::vector<Address>& shards, const Deadline& deadline, const Interrupt& interrupt) {
  for (const Address& shard : std::span(shards).subspan(1)) {
    static_cast<void>(Link::probe(shard, deadline, interrupt));
  }
}

}  // namespace

Client::Client(const ClientOptions& options, const Manifest& initial, std::span<const float* const> initial_tensors,
               const Interrupt& interrupt)
    : options_(options), fork_number_(fork_number()) {
  const Interrupt looking = options.waiting.look_and(interrupt);
  const Deadline deadline = Deadline::after(options.timeout_s);
  Link::Options link;
  link.shards = find_shards(options, deadline, looking);
  reach_others(link.shards, deadline, looking);
  link.waiting = options.waiting;
  link.transport = options.transport;
  link.tuning = options.tuning;
  link.hello.role = options.rank ? Role::kWorker : Role::kObserver;
  link.hello.rank = options.rank.value_or(0);
  link.hello.start = options.start;
  link.hello.timeout_s = options.timeout_s;
  link.hello.owner = options.owner;
  link.hello.id = {random_number(), random_number()};
  if (!initial.empty()) {
    if (options.optimizer) {
      check_room(*options.optimizer);
    }
    link.initial = InitialParameters{initial, initial_tensors, options.optimizer};
  }
  for (std::uint32_t i = 0; i < link.shards.size(); ++i) {
    link.shard = i;
    Shard shard;
    shard.link = std::make_unique<Link>(link, interrupt);
    link.hello.grant = shard.link->welcome().grant;  // shard 0's word, for the others
    shards_.push_back(std::move(shard));
  }
  lay_out();
  gatherer_ = std::make_unique<Gatherer>(*shards_.front().link);
  for (Shard& shard : shards_) {
    shard.link->when_lost([this](const Error& why) { lose(why); });
  }
  options_.waiting = {};  // it is the caller's, and may end with this call
}

Client::~Client() {
  for (Shard& shard : shards_) {  // all, before one is gone: each tells the others when it is lost
    shard.link->end();
  }
}

// A client of several shards is of no use without one of them: the others learn of it at once, too.
void Client::lose(const Error& why) {
  {
    const std::lock_guard lock(lost_mutex_);
    if (why_lost_) {
      return;
    }
    why_lost_ = why;
  }
  for (Shard& shard : shards_) {
    shard.link->abandon();
  }
}

// Throws what the connection was lost for, whichever shard's it was.
void Client::check_lost() const {
  const std::lock_guard lock(lost_mutex_);
  if (why_lost_) {
    loss_was_told_ = true;
    throw *why_lost_;
  }
}

// Asks every shard something. Where one of them is lost, the reason is that of the link that was lost first.
template <typename Ask>
void Client::for_each_link(const Ask& ask) {
  try {
    for (Shard& shard : shards_) {
      ask(shard);
    }
  } catch (const Error&) {
    check_lost();
    throw;
  }
}

bool Client::loss_was_told() const {
  const std::lock_guard lock(lost_mutex_);
  return loss_was_told_;
}

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
    shard.slices = slices_of(manifest_, welcome.range);
    shard.flat_offset = at;
    shard.last.version = welcome.version;
    shard.parameters_version = welcome.version;
    shard.last.round = welcome.round;
    at = welcome.range.end;
    max_inflight_ = std::min(max_inflight_, welcome.max_inflight);
    joins_all_ = welcome.joins_all;
    takes_means_ = welcome.takes_means;
    clip_norm_ = welcome.clip_norm;
  }
  rounds_begun_ = shards_.front().link->welcome().round;  // shard 0 decides who is in which round
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

bool Client::has_ema() const {
  return std::ranges::all_of(shards_, [](const Shard& shard) { return shard.link->welcome().ema_offset_bytes != 0; });
}

const Transport& Client::transport() const {
  const bool all_local = std::ranges::all_of(
      shards_, [](const Shard& shard) { return transport_of(shard.link->channel().kind()).within_host; });
  return all_local ? transport_within_host() : transport_between_hosts();
}

void Client::check_usable() const {
  if (fork_number() != fork_number_) {
    throw Error(ErrorCode::kConfig, "this client was made before a fork; connect anew in the child");
  }
  if (closed_) {
    throw Error(ErrorCode::kPeerClosed, "this client is closed; connect anew");
  }
  check_lost();
}

bool Client::closed() const {
  const std::lock_guard lock(lost_mutex_);
  return closed_ || why_lost_.has_value();
}

void Client::drop(std::uint64_t number) {
  const std::lock_guard lock(dropped_mutex_);
  dropped_.push_back(number);
}

void Client::close(const Interrupt& interrupt) {
  if (closed_) {
    return;
  }
  if (loss_was_told()) {
    abandon();  // the caller knows that there is nobody to settle anything with
    return;
  }
  give_up_unfinished();
  const bool broken_off = std::ranges::any_of(outstanding_, &Outstanding::broken_off);
  const Deadline deadline = broken_off ? Deadline::after(kBrokenOffSeconds) : Deadline::forever();
  const Interrupt until_deadline = [&] {
    if (deadline.expired()) {
      throw Error(ErrorCode::kDeadlineExceeded,
                  "the client is closed, but a call that was broken off is not settled: its round waits for others");
    }
    if (interrupt) {
      interrupt();
    }
  };
  try {
    check_usable();
    for (Outstanding& outstanding : outstanding_) {
      outstanding.abandoned = true;
    }
    drain_abandoned(until_deadline);
    for_each_link([&](Shard& shard) { shard.link->say_goodbye(until_deadline); });
  } catch (...) {
    abandon();
    throw;
  }
  abandon();
}

void Client::abandon() {
  closed_ = true;
  if (fork_number() != fork_number_) {
    return;  // after a fork the connections are the parent's
  }
  for (Shard& shard : shards_) {
    shard.link->abandon();
  }
}

bool Client::has_warnings() const {
  return std::ranges::any_of(shards_, [](const Shard& shard) { return shard.link->has_warnings(); });
}

std::vector<std::string> Client::take_warnings() {
  std::vector<std::string> warnings;
  for (Shard& shard : shards_) {
    if (shard.link->has_warnings()) {
      std::ranges::move(shard.link->take_warnings(), std::back_inserter(warnings));
    }
  }
  return warnings;
}

std::string Client::stats(const Interrupt& interrupt) {
  check_usable();
  std::string json = "[";
  for_each_link([&](Shard& shard) {
    json += (json.size() > 1 ? ", " : "") +
            shard.link->ask_text(ControlKind::kStats, {}, ControlKind::kStatsReply, interrupt);
  });
  return json + "]";
}

// ---- waits for the other ranks ----

// Asks shard 0 something. Where the client is lost, the reason is that of the link that was lost first.
template <typename Ask>
auto Client::of_shard_0(const Ask& ask) {
  check_usable();
  try {
    return ask();
  } catch (const Error&) {
    if (shards_.front().link->is_lost()) {
      check_lost();
    }
    throw;
  }
}

void Client::arrive(GatherKind kind, double timeout_s, const Interrupt& interrupt) {
  check_usable();
  if (!options_.rank) {
    throw Error(ErrorCode::kConfig, "an observer is no rank, and nobody waits for it; connect with a rank");
  }
  const Deadline deadline = Deadline::after(timeout_s);
  const Interrupt until_deadline = [&] {
    if (deadline.expired()) {
      throw Error(ErrorCode::kDeadlineExceeded,
                  "the timeout passed before this rank's own pushes were settled: one was broken off, and its round "
                  "waits for others");
    }
    if (interrupt) {
      interrupt();
    }
  };
  finish(begin(Call::kSettle, {}, Then::kAtOnce, until_deadline), {}, until_deadline);
  finished_ = finished_ || kind == GatherKind::kFinish;
  of_shard_0([&] { gatherer_->arrive(kind); });
}

bool Client::wait_for_others(double at_most_s, const Interrupt& interrupt) {
  const bool all_here = of_shard_0([&] { return gatherer_->wait(Deadline::after(at_most_s), interrupt); });
  if (all_here && !finished_) {
    raise_refused_before();  // after finish() the pull that follows does
  }
  return all_here;
}

void Client::stop_waiting(const Interrupt& interrupt) {
  of_shard_0([&] { gatherer_->leave(interrupt); });
  if (!finished_) {
    raise_refused_before();
  }
}

void Client::give_up_waiting() {
  if (fork_number() == fork_number_) {  // else the connections are the parent's
    gatherer_->give_up();
  }
}

std::string Client::awaited(const Interrupt& interrupt) {
  return of_shard_0(
      [&] { return shards_.front().link->ask_text(ControlKind::kAwaited, {}, ControlKind::kAwaitedReply, interrupt); });
}

SnapshotShape Client::begin_snapshot(std::optional<std::uint64_t> at_round, double timeout_s,
                                     const Interrupt& interrupt) {
  check_usable();
  std::vector<Link*> links;
  links.reserve(shards_.size());
  for (const Shard& shard : shards_) {
    links.push_back(shard.link.get());
  }
  snapshot_ = nullptr;  // an older one, before this one asks for its turn
  snapshot_ = std::make_unique<SnapshotReader>(links, at_round, timeout_s, interrupt);
  return snapshot_->shape();
}

SavedByRank Client::read_snapshot(std::span<const std::vector<float*>> vectors, const Interrupt& interrupt) {
  check_usable();
  if (snapshot_ == nullptr || vectors.size() != snapshot_->shape().vectors()) {
    throw Error(ErrorCode::kConfig, "no snapshot was begun, or one with another number of vectors");
  }
  const std::unique_ptr<SnapshotReader> snapshot = std::move(snapshot_);  // it ends here, whatever happens
  snapshot->read(vectors, interrupt);
  return snapshot->take_saved();
}

void Client::set_learning_rate(double learning_rate, const Interrupt& interrupt) {
  check_usable();
  if (options_.owner == 0 && options_.rank.value_or(1) != 0) {
    throw Error(ErrorCode::kConfig,
                (options_.rank ? "rank " + std::to_string(*options_.rank) : std::string("an observer")) +
                    " cannot set the learning rate; call set_learning_rate() of rank 0's client or of the server");
  }
  if (!can_be_rate(learning_rate)) {
    throw Error(ErrorCode::kConfig, "learning_rate is " + std::to_string(learning_rate) +
                                        "; expected a number of at least 0 that float32 can hold");
  }
  if (options_.rank) {  // what this client pushed may still be on its way, and has the former one
    finish(begin(Call::kSettle, {}, Then::kAtOnce, interrupt), {}, interrupt);
  }
  const std::vector<std::byte> message = SetLearningRate{learning_rate}.encode();
  for_each_link([&](Shard& shard) {
    if (!joins_all_ || &shard == &shards_.front()) {  // shard 0 tells the others of each round
      shard.link->ask(ControlKind::kSetLearningRate, message, ControlKind::kLearningRateSet, interrupt);
    }
  });
}

void Client::save_with(std::span<const std::byte> data, const Interrupt& interrupt) {
  check_usable();
  if (!options_.rank) {
    throw Error(ErrorCode::kConfig, "an observer pushes nothing that bytes could be saved with; connect with a rank");
  }
  if (finished_) {
    throw Error(ErrorCode::kConfig,
                "this rank has finished, and pushes no more after finish(): there is no push to save bytes with");
  }
  if (data.size() > kMaxSavedBytes) {
    throw Error(ErrorCode::kConfig, "save_with() got " + std::to_string(data.size()) + " bytes; at most " +
                                        std::to_string(kMaxSavedBytes) +
                                        " are kept for a rank: save what finds the rest again, such as a seed");
  }
  const std::vector<std::byte> message = Save{pushes_ + 1, {data.begin(), data.end()}}.encode();
  SaveAnswer answer;
  for_each_link([&](Shard& shard) {
    if (&shard == &shards_.front()) {
      answer =
          SaveAnswer::decode(shard.link->ask(ControlKind::kSave, message, ControlKind::kSaveAnswer, interrupt).payload);
    }
  });
  if (!answer.why_not.empty()) {
    throw Error(ErrorCode::kConfig, answer.why_not);
  }
}

bool Client::unsent(std::span<float* const> targets) {
  bool any = false;
  for (Shard& shard : shards_) {
    const std::span<const float> left = shard.link->channel().unsent();
    any |= !left.empty();
    for (const TensorSlice& slice : shard.slices) {
      float* const to = targets[slice.tensor] + slice.tensor_offset;
      if (left.empty()) {
        std::fill_n(to, slice.count, 0.0F);
      } else {
        std::copy_n(left.data() + slice.shard_offset, slice.count, to);
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
  unsent_of_changes_.reset();
  for (Shard& shard : shards_) {
    const std::span<float> left = shard.link->channel().unsent();
    for (const TensorSlice& slice : shard.slices) {
      if (!left.empty()) {
        std::copy_n(tensors[slice.tensor] + slice.tensor_offset, slice.count, left.data() + slice.shard_offset);
      }
    }
  }
}

std::vector<std::uint64_t> Client::versions() const {
  std::vector<std::uint64_t> versions;
  versions.reserve(shards_.size());
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
