#include "server/shard_server.h"

#include <algorithm>

#include <unistd.h>

#include "base/error.h"
#include "base/platform.h"
#include "base/random.h"
#include "server/memory_bound.h"

namespace distnet {
namespace {

constexpr std::uint64_t kGivenModel = 2;  // even: those that clients bring have odd numbers, newer ones higher ones

Address named(Address address) {
  if (address.within_host() && address.name.empty()) {
    address.name = random_local_name();
  }
  return address;
}

SessionRules rules_of(const ShardSettings& settings) {
  return {settings.shard == 0, settings.joins_all(), settings.policy.workers, settings.reconnect_timeout_s};
}

}  // namespace

ShardServer::ShardServer(ShardSettings settings, const Address& listen)
    : settings_(std::move(settings)),
      nonce_{random_number(), random_number()},
      process_(getpid()),
      sessions_(rules_of(settings_), memory_),
      clients_(*this, sessions_, memory_, traffic_),
      leader_(settings_.shards, settings_.job_secret, *this),
      follower_(settings_.shard, settings_.job_secret, *this),
      door_(*this) {
  address_ = door_.listen(named(listen));
  local_name_ = address_.within_host() ? address_.name : door_.listen(named({Address::Kind::kUnix, "", 0})).name;
}

// A server that cannot stop for want of memory ends the process: its threads use this object.
// NOLINTNEXTLINE(bugprone-exception-escape)
ShardServer::~ShardServer() { stop(); }

// ---- the model ----

RoundPeers& ShardServer::peers() {
  return settings_.shard == 0 ? static_cast<RoundPeers&>(leader_) : static_cast<RoundPeers&>(follower_);
}

void ShardServer::initialise(const Manifest& manifest, ShardRange range, std::span<const float> initial,
                             const RestoredState* restored) {
  make_shard(kGivenModel, settings_, manifest, range, initial, restored);
  clients_.model_was_given();
}

void ShardServer::make_shard(std::uint64_t model, const ShardSettings& settings, const Manifest& manifest,
                             ShardRange range, std::span<const float> initial, const RestoredState* restored) {
  auto shard = std::make_unique<Shard>(settings, manifest, range, initial, memory_, sessions_, peers(), restored);
  {
    const std::lock_guard lock(mutex_);
    if (shard_ && model_ == model) {
      return;  // two clients came at once to use the share
    }
    if (shard_) {
      throw Error(ErrorCode::kConfig, "the server has parameters already");
    }
    for (const std::uint32_t rank : excused_) {
      shard->excuse(rank);
    }
    shard_ = std::move(shard);
    model_ = model;
    share_.reset();
    changed_.notify_all();
  }
  begin_to_follow();
}

void ShardServer::take_share(std::uint64_t model, const Initial& initial, std::vector<float> values) {
  if (settings_.shard == 0) {
    make_shard(model, with_brought(settings_, initial.optimizer), initial.manifest, initial.range, values);
    return;
  }
  const std::lock_guard lock(mutex_);
  if (shard_) {
    throw Error(ErrorCode::kConfig, "the server has parameters already");
  }
  if (share_ && share_->model > model) {
    throw Error(ErrorCode::kConfig, "another client has brought a newer model; this one is not taken");
  }
  // In place of one whose client ended before all shards had theirs.
  share_ = std::make_shared<const Share>(Share{model, initial, std::move(values)});
}

Shard& ShardServer::shard_with(std::uint64_t model) {
  std::unique_lock lock(mutex_);
  if (!shard_ && share_ && share_->model == model) {
    const std::shared_ptr<const Share> share = share_;
    lock.unlock();
    const Initial& initial = share->initial;
    make_shard(share->model, with_brought(settings_, initial.optimizer), initial.manifest, initial.range,
               share->values);
    lock.lock();
  }
  changed_.wait_until(lock, Deadline::after(kHandshakeSeconds), [&] { return shard_ != nullptr || stopping_; });
  if (!shard_ || model_ != model) {
    throw Error(ErrorCode::kProtocol, "this shard does not hold its share of the model that shard 0 serves");
  }
  return *shard_;
}

std::uint64_t ShardServer::name_model() {
  const std::lock_guard lock(mutex_);
  return 2 * models_named_++ + 1;
}

std::uint64_t ShardServer::model() const {
  const std::lock_guard lock(mutex_);
  return model_;
}

bool ShardServer::initialised() const { return model() != 0; }

Shard& ShardServer::shard() {
  const std::lock_guard lock(mutex_);
  if (!shard_) {
    throw Error(ErrorCode::kConfig, "the server has no parameters yet; rank 0 brings them when it connects");
  }
  return *shard_;
}

std::uint64_t ShardServer::read(std::span<float> out, bool ema) {
  Shard& at = shard();
  at.settle_accepted();
  return at.store().read(out, ema);
}

// ---- who comes in ----

ProbeReply ShardServer::describe() const {
  const std::lock_guard lock(mutex_);
  return {{nonce_[0], nonce_[1]}, local_name_, directory_};
}

void ShardServer::serve(Handshake::Step step, Visitor& visitor) {
  const std::span<const std::byte> message = visitor.message.payload;
  if (step == Handshake::Step::kHello) {
    clients_.serve(Hello::decode(message), visitor.control, visitor.within_host);
  } else if (step == Handshake::Step::kBring) {
    clients_.bring(Bring::decode(message), *visitor.control);
  } else if (step == Handshake::Step::kGroup) {
    if (!groups_) {
      throw Error(ErrorCode::kConfig, "this server hosts no groups of ranks; shard 0 of a job does");
    }
    groups_->serve(visitor);
  } else {
    follow(Follow::decode(message), visitor.control);
  }
}

// ---- rounds over several shards ----

void ShardServer::follow(const Follow& follow, const std::shared_ptr<ControlConnection>& control) {
  if (!settings_.joins_all() || settings_.shard != 0) {
    throw Error(ErrorCode::kProtocol, "rounds are led by shard 0 of a synchronous job");
  }
  leader_.check(follow);
  Shard* at = nullptr;
  {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, Deadline::after(kHandshakeSeconds), [this] { return shard_ != nullptr || stopping_; });
    at = shard_.get();
  }
  if (at == nullptr) {
    throw Error(ErrorCode::kPeerClosed, "the server stops, or has no model yet");
  }
  leader_.serve(follow, control, *at->rounds());
}

void ShardServer::set_directory(const std::string& directory, const Address& leader) {
  {
    const std::lock_guard lock(mutex_);
    directory_ = directory;
    leader_address_ = leader;
  }
  begin_to_follow();
}

// Once the shard has its parameters, is started, and knows where shard 0 is.
void ShardServer::begin_to_follow() {
  const std::lock_guard lock(mutex_);
  if (settings_.joins_all() && settings_.shard != 0 && shard_ && started_ && leader_address_ && !follows_ &&
      !stopping_) {
    follows_ = true;
    follower_.start(*leader_address_, *shard_->rounds());
  }
}

void ShardServer::rounds_ended(const std::string& why) {
  sessions_.notify_all_clients({Notice::Kind::kRoundsEnded, why});
}

// ---- beginning and end ----

void ShardServer::start() {
  {
    const std::lock_guard lock(mutex_);
    started_ = true;
  }
  door_.open();
  begin_to_follow();
}

void ShardServer::excuse(std::uint32_t rank) {
  if (settings_.shard != 0 || rank >= settings_.policy.workers) {
    throw Error(ErrorCode::kConfig, "rank " + std::to_string(rank) + " cannot be excused: shard 0 excuses ranks 0 to " +
                                        std::to_string(settings_.policy.workers - 1));
  }
  Shard* at = nullptr;
  {
    const std::lock_guard lock(mutex_);
    at = shard_.get();
    if (at == nullptr) {
      excused_.insert(rank);
    }
  }
  if (at != nullptr) {
    at->excuse(rank);
  }
}

ShardStatistics ShardServer::statistics() {
  const Shard* at = nullptr;
  {
    const std::lock_guard lock(mutex_);
    at = shard_.get();
  }
  ShardStatistics statistics;
  statistics.learning_rate = schedule_rate(settings_.schedule, 0);
  if (at != nullptr) {
    statistics = at->statistics();
  }
  statistics.connections = traffic_.total();
  statistics.ended = sessions_.ended();
  statistics.groups = groups_ ? groups_->formed() : 0;
  return statistics;
}

std::string ShardServer::memory_json() {
  Shard& at = shard();
  const MemoryTerms terms = memory_terms(settings_, at.store(), at.manifest(), !address_.within_host());
  const LiveSessions::Most most = sessions_.most_present();
  return "{\"fixed\": " + terms.fixed.json() + ", \"worker\": " + terms.worker.json() +
         ", \"observer\": " + terms.observer.json() + ", \"most_workers\": " + std::to_string(most.workers) +
         ", \"most_observers\": " + std::to_string(most.observers) +
         ", \"held\": " + std::to_string(memory_.held_bytes()) + "}";
}

void ShardServer::stop() {
  if (stopped_ || getpid() != process_) {
    return;  // after a fork the threads and connections are the parent's
  }
  stopped_ = true;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  sessions_.stop();
  clients_.stop();
  if (initialised() && settings_.joins_all()) {
    shard().rounds()->end_all("the server stops");
  }
  follower_.stop();
  if (groups_) {
    groups_->stop("the server that hosts it stops");
  }
  door_.close();
}

}  // namespace distnet
