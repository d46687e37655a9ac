#include "server/shard_server.h"

#include <algorithm>
#include <iterator>

#include <unistd.h>

#include "base/error.h"
#include "base/platform.h"
#include "base/random.h"

namespace distnet {
namespace {

constexpr double kConnectSeconds = 30.0;
constexpr std::size_t kMaxEnded = 64;

std::string random_name() {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string name = "distnet-";
  for (std::uint64_t number = random_number(), i = 0; i < 16; ++i, number >>= 4U) {
    name += kDigits[number & 15U];
  }
  return name;
}

Endpoint named(Endpoint endpoint) {
  if (endpoint.transport == TransportKind::kShm && endpoint.name.empty()) {
    endpoint.name = random_name();
  }
  return endpoint;
}

}  // namespace

ShardServer::ShardServer(ShardSettings settings, const Endpoint& listen)
    : settings_(std::move(settings)),
      nonce_{random_number(), random_number()},
      public_listener_(named(listen)),
      process_(getpid()) {
  if (listen.transport == TransportKind::kTcp) {
    local_listener_ = std::make_unique<Listener>(named({TransportKind::kShm, "", 0}));
  }
}

ShardServer::~ShardServer() { stop(); }

std::string ShardServer::endpoint() const { return public_listener_.endpoint().text(); }

void ShardServer::initialise(const Manifest& manifest, ShardRange range, std::span<const float> initial) {
  RoundsHooks hooks;
  hooks.announce = [this](const RoundMembers& members) { announce(members); };
  hooks.part = [this] { part_from_shards(); };
  hooks.report = [this](ControlKind kind, const RoundEvent& event) { report(kind, event); };
  auto shard = std::make_unique<Shard>(settings_, manifest, range, initial, std::move(hooks));
  const std::lock_guard lock(mutex_);
  if (shard_) {
    throw Error(ErrorCode::kConfig, "the server has parameters already");
  }
  shard_ = std::move(shard);
  changed_.notify_all();
}

bool ShardServer::initialised() const {
  const std::lock_guard lock(mutex_);
  return shard_ != nullptr;
}

Shard& ShardServer::shard() {
  const std::lock_guard lock(mutex_);
  if (!shard_) {
    throw Error(ErrorCode::kConfig, "the server has no parameters yet; rank 0 brings them when it connects");
  }
  return *shard_;
}

std::uint64_t ShardServer::read(std::span<float> out, bool average) {
  Shard& at = shard();
  at.settle_accepted();
  return at.store().read(out, average);
}

void ShardServer::check_range(const Initial& initial) const {
  if (initial.range != shard_range(initial.manifest, settings_.shard, settings_.shards)) {
    throw Error(ErrorCode::kProtocol, "the initial parameters are not those of shard " +
                                          std::to_string(settings_.shard) + " of " + std::to_string(settings_.shards));
  }
}

bool ShardServer::claim_initialising() {
  const std::lock_guard lock(mutex_);
  if (shard_ || initialising_) {
    return false;
  }
  initialising_ = true;
  return true;
}

void ShardServer::give_up_initialising() {
  const std::lock_guard lock(mutex_);
  initialising_ = false;
}

bool ShardServer::wait_until_initialised(const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, deadline.remaining(), [this] { return shard_ != nullptr || stopping_; })) {
    throw Error(
        ErrorCode::kDeadlineExceeded,
        "the server has no parameters, and no client of rank 0 brought them in time; pass connect(parameters=...) in "
        "rank 0, or start the server with them");
  }
  return !stopping_;
}

void ShardServer::set_directory(const std::string& directory) {
  const std::lock_guard lock(mutex_);
  directory_ = directory;
  changed_.notify_all();
}

void ShardServer::start() {
  started_ = true;
  const bool local = public_listener_.endpoint().transport == TransportKind::kShm;
  accept_threads_.emplace_back([this, local] { accept_from(public_listener_, local); });
  if (local_listener_) {
    accept_threads_.emplace_back([this] { accept_from(*local_listener_, true); });
  }
  if (settings_.policy.joins == Joins::kAll && settings_.shard != 0) {
    leader_thread_ = std::thread([this] { follow_leader(); });
  }
}

void ShardServer::accept_from(Listener& listener, bool local) {
  while (Socket socket = listener.accept()) {
    forget_ended();
    auto connection = std::make_shared<Connection>(*this, std::move(socket), local);
    const std::lock_guard lock(mutex_);
    if (stopping_ || connections_.size() >= kMaxConnections) {
      continue;  // closed unheard
    }
    try {
      connections_.push_back(connection);
      connection->start();
    } catch (const std::exception&) {  // no thread, no memory: this one cannot be served, others may
      connections_.remove(connection);
    }
  }
}

void ShardServer::forget_ended() {
  std::list<std::shared_ptr<Connection>> ended;
  const std::lock_guard lock(mutex_);
  for (auto at = connections_.begin(); at != connections_.end();) {
    const auto next = std::next(at);
    if ((*at)->ended()) {
      bytes_received_ += (*at)->bytes_received();
      bytes_sent_ += (*at)->bytes_sent();
      ended.splice(ended.end(), connections_, at);
    }
    at = next;
  }
}

void ShardServer::attach(const Attach& attach, Socket& socket) {
  const std::lock_guard lock(mutex_);
  for (const auto& connection : connections_) {
    if (connection->attach(attach, socket)) {
      return;
    }
  }
}

ProbeReply ShardServer::describe() const {
  ProbeReply reply;
  reply.nonce[0] = nonce_[0];
  reply.nonce[1] = nonce_[1];
  reply.local_name = local_listener_ ? local_listener_->endpoint().name : public_listener_.endpoint().name;
  const std::lock_guard lock(mutex_);
  reply.directory = directory_;
  return reply;
}

void ShardServer::session_ended(const Session& session, const char* how) {
  if (session.role != Role::kWorker) {
    return;
  }
  const std::lock_guard lock(mutex_);
  ended_.push_back("{\"rank\": " + std::to_string(session.rank) + ", \"how\": \"" + how + "\"}");
  if (ended_.size() > kMaxEnded) {
    ended_.erase(ended_.begin());
  }
}

std::string ShardServer::stats_json() {
  std::uint64_t received = 0;
  std::uint64_t sent = 0;
  std::string ended;
  const Shard* at = nullptr;
  {
    const std::lock_guard lock(mutex_);
    at = shard_.get();
    received = bytes_received_;
    sent = bytes_sent_;
    for (const auto& connection : connections_) {
      received += connection->bytes_received();
      sent += connection->bytes_sent();
    }
    for (const std::string& one : ended_) {
      ended += (ended.empty() ? "" : ", ") + one;
    }
  }
  if (at == nullptr) {
    return "{\"updates\": 0, \"version\": 0, \"queue_depth\": 0, \"round\": 0, " + Statistics().json() +
           ", \"sessions\": [], \"bytes_received\": 0, \"bytes_sent\": 0, \"ended\": []}";
  }
  return at->stats_json() + ", \"bytes_received\": " + std::to_string(received) +
         ", \"bytes_sent\": " + std::to_string(sent) + ", \"ended\": [" + ended + "]}";
}

// ---- Rounds over several shards ----

void ShardServer::check_follower(const Hello& hello, const Attach& proof) const {
  const bool other = hello.rank > 0 && hello.rank < settings_.shards && proof.session == hello.rank;
  if (!other || settings_.job_secret == 0 || proof.secret != settings_.job_secret) {
    throw Error(ErrorCode::kUnauthorized, "only the other shards of this job take part in its rounds");
  }
}

// The rounds are over here: the other shards see their connections end, and end theirs.
void ShardServer::part_from_shards() {
  std::vector<std::shared_ptr<Connection>> followers;
  {
    const std::lock_guard lock(mutex_);
    if (leader_) {
      leader_->shutdown();
    }
    std::ranges::copy_if(connections_, std::back_inserter(followers),
                         [](const auto& connection) { return connection->is_follower(); });
  }
  for (const auto& follower : followers) {
    follower->part();
  }
}

void ShardServer::announce(const RoundMembers& members) {
  std::vector<std::shared_ptr<Connection>> followers;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& connection : connections_) {
      if (connection->is_follower()) {
        followers.push_back(connection);
      }
    }
  }
  for (const auto& follower : followers) {
    follower->announce(members);
  }
}

void ShardServer::report(ControlKind kind, const RoundEvent& event) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return leader_ != nullptr || leader_failed_ || stopping_; });
  if (!leader_) {
    return;  // the rounds are aborted, or will be by whoever stops
  }
  ControlConnection& leader = *leader_;
  lock.unlock();
  try {
    leader.send(kind, event.encode());
  } catch (const Error&) {
    leader.shutdown();  // its reading thread aborts the rounds
  }
}

void ShardServer::follow_leader() {
  try {
    std::string directory;
    const Deadline deadline = Deadline::after(kForeverSeconds);
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || (shard_ != nullptr && !directory_.empty()); });
      if (stopping_) {
        return;
      }
      directory = directory_;
    }
    const Interrupt until_stop = [this] {
      const std::lock_guard lock(mutex_);
      if (stopping_) {
        throw Error(ErrorCode::kPeerClosed, "the server stops");
      }
    };
    auto leader = std::make_unique<ControlConnection>(
        Socket::connect(parse_address(directory).front(), Deadline::after(kConnectSeconds), until_stop));
    Hello hello;
    hello.role = Role::kShard;
    hello.rank = settings_.shard;
    leader->send(ControlKind::kHello, hello.encode());
    leader->send(ControlKind::kAttach, Attach{settings_.shard, settings_.job_secret}.encode());
    leader->receive(Deadline::after(kConnectSeconds), until_stop);
    ControlConnection& link = *leader;
    {
      const std::lock_guard lock(mutex_);
      leader_ = std::move(leader);
      changed_.notify_all();
    }
    if (shard().rounds().aborted()) {  // before there was a connection to end
      link.shutdown();
    }
    while (true) {
      const ControlMessage message = link.receive(deadline, until_stop);
      if (message.kind == ControlKind::kCloseRound) {
        shard().rounds().close_as_told(RoundMembers::decode(message.payload));
      }
    }
  } catch (const std::exception&) {
    {
      const std::lock_guard lock(mutex_);
      leader_failed_ = true;
      changed_.notify_all();
    }
    if (initialised()) {
      shard().rounds().abort_all();
    }
  }
}

// ---- The end ----

void ShardServer::stop() {
  if (stopped_ || getpid() != process_) {
    return;  // after a fork the threads and connections are the parent's
  }
  stopped_ = true;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
    if (leader_) {
      leader_->shutdown();
    }
  }
  if (initialised() && shard().joins_all()) {
    shard().rounds().abort_all();
  }
  public_listener_.shutdown();
  if (local_listener_) {
    local_listener_->shutdown();
  }
  for (std::thread& thread : accept_threads_) {
    thread.join();
  }
  std::list<std::shared_ptr<Connection>> ending;
  {
    const std::lock_guard lock(mutex_);
    ending.swap(connections_);
  }
  for (const auto& connection : ending) {
    connection->close();
  }
  for (const auto& connection : ending) {
    connection->join();  // here, not where the last pointer goes: that may be one of their own threads
    const std::lock_guard lock(mutex_);
    bytes_received_ += connection->bytes_received();
    bytes_sent_ += connection->bytes_sent();
  }
  ending.clear();
  if (leader_thread_.joinable()) {
    leader_thread_.join();
  }
}

}  // namespace distnet
