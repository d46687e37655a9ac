#include "server/connection.h"

#include <cstring>

#include "base/platform.h"
#include "base/random.h"
#include "server/shard.h"
#include "server/shard_server.h"

namespace distnet {
namespace {

constexpr double kStateSeconds = 60.0;
constexpr std::uint64_t kMaxStateFloats = std::uint64_t{1} << 29U;  // a message's length has 32 bits

const char* end_name(SessionEnd how) {
  switch (how) {
    case SessionEnd::kDone:
      return "done";
    case SessionEnd::kDied:
      return "died";
    case SessionEnd::kSilent:
      return "silent";
    default:
      return "stopped";
  }
}

}  // namespace

Connection::Connection(ShardServer& server, Socket socket, bool local)
    : server_(server), control_(std::move(socket)), local_(local) {}

Connection::~Connection() {
  close();
  join();
}

void Connection::start() {
  control_thread_ = std::thread([this] {
    run();
    ended_.store(true, std::memory_order_release);
  });
}

void Connection::stop_taking() {
  const std::lock_guard lock(channel_mutex_);
  if (channel_) {
    channel_->stop_taking();
  }
}

void Connection::close() {
  {
    const std::lock_guard lock(channel_mutex_);
    closing_ = true;
    if (channel_) {
      channel_->stop_taking();
    }
    attached_.notify_all();
    control_.shutdown();  // under the mutex: an attachment's socket may be on its way to another connection
  }
}

void Connection::join() {
  if (control_thread_.joinable()) {
    control_thread_.join();
  }
}

bool Connection::attach(const Attach& attach, Socket& socket) {
  const std::lock_guard lock(channel_mutex_);
  if (!waits_for_attach_ || attach.session != session_.id || attach.secret != secret_) {
    return false;
  }
  waits_for_attach_ = false;
  attached_socket_ = std::move(socket);
  attached_.notify_all();
  return true;
}

void Connection::part() {
  const std::lock_guard lock(channel_mutex_);
  control_.shutdown();
}

void Connection::announce(const RoundMembers& members) {
  try {
    control_.send(ControlKind::kCloseRound, members.encode());
  } catch (const Error&) {
    control_.shutdown();  // its control thread aborts the rounds
  }
}

std::uint64_t Connection::bytes_received() const {
  const std::lock_guard lock(channel_mutex_);
  return channel_ ? channel_->bytes_received() : bytes_received_;
}

std::uint64_t Connection::bytes_sent() const {
  const std::lock_guard lock(channel_mutex_);
  return channel_ ? channel_->bytes_sent() : bytes_sent_;
}

// Also for want of memory or threads, which ends this connection, not the server.
void Connection::refuse(const std::exception& error) {
  const auto* const own = dynamic_cast<const Error*>(&error);
  try {
    const Refusal refusal{
        own != nullptr ? own->code() : ErrorCode::kTransport,
        own != nullptr ? own->what() : std::string("the server is out of resources: ") + error.what()};
    control_.send(ControlKind::kRefused, refusal.encode(), {}, Deadline::after(1.0));
  } catch (const std::exception&) {
    // The peer is gone: there is nobody to tell.
  }
}

void Connection::run() {
  try {
    if (local_ && !control_.socket().peer_is_this_user()) {
      throw Error(ErrorCode::kUnauthorized, "this server serves its own user; the peer runs as another");
    }
    const std::optional<Hello> hello = shake_hands();
    if (!hello) {
      return;
    }
    if (hello->role == Role::kShard) {
      serve_shard(*hello);
    } else if (bring_parameters(*hello)) {
      serve_worker(*hello);
    }
  } catch (const std::exception& error) {
    refuse(error);
  }
  control_.shutdown();
}

void Connection::serve_worker(const Hello& hello) {
  Shard& shard = server_.shard();
  session_.id = server_.next_session();
  session_.role = hello.role;
  session_.rank = hello.rank;
  session_.transport = hello.transport;
  session_.on_settled = [this](std::uint64_t push) { channel_->settled(push); };
  session_.on_drafted = [this](std::uint64_t push, std::uint32_t buffer, std::uint64_t elements) {
    channel_->drafted(push, buffer, elements);
  };
  session_.collect_released = [this] { channel_->collect_released(); };
  secret_ = random_number();
  open_channel(hello, shard);
  SessionEnd how = SessionEnd::kStopped;
  bool came = false;
  try {
    shard.session_came(session_);
    came = true;
    control_.send(ControlKind::kAttached);
    data_thread_ = std::thread([this, &shard] { serve_data(shard); });
    how = serve_control(hello.deadline_s, shard);
  } catch (const std::exception& error) {
    how = SessionEnd::kDied;
    refuse(error);
  }
  channel_->stop_taking();
  if (came) {
    server_.session_ended(session_, end_name(how));
    shard.session_ending(session_, how);  // before the data thread ends: it may be waiting for a round
  }
  if (data_thread_.joinable()) {
    data_thread_.join();
  }
  if (came) {
    if (channel_->was_cut_off()) {
      shard.statistics().cut_off();
    }
    shard.session_left(session_);
  }
  if (how == SessionEnd::kDone) {
    say_goodbye();
  }
  std::unique_ptr<ServerChannel> ending;
  {
    const std::lock_guard lock(channel_mutex_);
    bytes_received_ = channel_->bytes_received();
    bytes_sent_ = channel_->bytes_sent();
    ending = std::move(channel_);
  }
}

SessionEnd Connection::serve_control(double deadline_s, Shard& shard) {
  while (true) {
    ControlMessage message;
    try {
      message = control_.receive(Deadline::after(deadline_s));
    } catch (const Error& error) {
      const std::lock_guard lock(channel_mutex_);
      if (closing_) {
        return SessionEnd::kStopped;
      }
      return error.code() == ErrorCode::kDeadlineExceeded ? SessionEnd::kSilent : SessionEnd::kDied;
    }
    switch (message.kind) {
      case ControlKind::kHeartbeat:
        control_.send(ControlKind::kHeartbeat);
        break;
      case ControlKind::kBuffer:
        pass_buffer(message, shard);
        break;
      case ControlKind::kState:
        pass_state(message, shard);
        break;
      case ControlKind::kStats: {
        Writer writer;
        writer.text(server_.stats_json());
        control_.send(ControlKind::kStatsReply, writer.take());
        break;
      }
      case ControlKind::kGoodbye:
        return SessionEnd::kDone;
      default:
        throw Error(ErrorCode::kProtocol, "a control message of an unknown kind");
    }
  }
}

// Last: what the client pushed is applied, its rank has left the rounds, and its end is counted.
void Connection::say_goodbye() {
  try {
    control_.send(ControlKind::kGoodbyeReply);
  } catch (const Error&) {
    // It did not wait for the answer.
  }
}

void Connection::pass_state(const ControlMessage& message, Shard& shard) {
  Reader reader(message.payload);
  const auto slot = reader.number<std::uint32_t>();
  reader.expect_end();
  const auto slots = static_cast<std::uint32_t>(shard.store().slots());
  const std::uint64_t floats = slot < slots ? shard.range().size() : 0;
  if (floats > kMaxStateFloats) {
    throw Error(ErrorCode::kConfig, "optimizer state of over 2^29 elements a shard cannot be passed; use more servers");
  }
  std::vector<std::byte> payload(sizeof slots + floats * sizeof(float));
  std::memcpy(payload.data(), &slots, sizeof slots);
  if (floats != 0) {
    std::vector<float> state(floats);
    shard.store().read_slot(static_cast<int>(slot), state);
    std::memcpy(payload.data() + sizeof slots, state.data(), floats * sizeof(float));
  }
  control_.send(ControlKind::kStateReply, payload, {}, Deadline::after(kStateSeconds));
}

void Connection::pass_buffer(const ControlMessage& message, Shard& shard) {
  if (session_.transport != TransportKind::kShm) {
    throw Error(ErrorCode::kProtocol, "parameter buffers are passed to clients that share memory with the server");
  }
  Reader reader(message.payload);
  const auto index = reader.number<std::uint32_t>();
  reader.expect_end();
  Writer writer;
  writer.number(index);
  const int fd = shard.store().buffer(index).fd();  // throws on an index that is none
  control_.send(ControlKind::kBufferReply, writer.take(), std::span(&fd, 1));
}

ReplyPayload Connection::payload_of(Shard& shard, const RequestHeader& request, Pin pin) {
  const bool average = (request.flags & kWantAverage) != 0;
  const auto held = std::make_shared<Pin>(std::move(pin));
  return {average ? held->average() : held->parameters(), shard.range().size(), shard.store().versions_can_mix(),
          [held] { held->release(); }};
}

void Connection::serve_data(Shard& shard) {
  try {
    while (const std::optional<Request> request = channel_->next()) {
      Shard::Asked asked{request->header, request->payload, request->decoder, request->arriving, request->replica, {}};
      if (request->takes_ahead) {
        asked.send_ahead = [&](Pin pin) {
          channel_->send_ahead(request->header, payload_of(shard, request->header, std::move(pin)));
        };
      }
      std::optional<Shard::Answer> answer = shard.handle(session_, asked);
      if (!answer) {
        return;
      }
      ReplyPayload payload;
      if (answer->pinned) {
        payload = payload_of(shard, request->header, std::move(answer->pin));
      }
      channel_->reply(answer->header, std::move(payload), answer->apply_after_reply != nullptr);
      if (answer->apply_after_reply != nullptr) {
        shard.apply(*answer->apply_after_reply);
      }
    }
  } catch (const std::exception& error) {
    refuse(error);
    control_.shutdown();
  }
}

void Connection::serve_shard(const Hello& hello) {
  Shard& shard = server_.shard();
  if (!shard.joins_all() || shard.settings().shard != 0) {
    throw Error(ErrorCode::kProtocol, "rounds are led by shard 0 of a synchronous job");
  }
  server_.check_follower(hello, Attach::decode(control_.receive(Deadline::after(kHandshakeSeconds)).payload));
  follower_.store(true, std::memory_order_release);
  if (shard.rounds().aborted()) {  // after the store: whoever aborts from now on finds this connection to end
    throw Error(ErrorCode::kRoundAborted, "the rounds are over");
  }
  try {
    control_.send(ControlKind::kAttached);
    while (true) {
      const ControlMessage message = control_.receive(Deadline::after(kForeverSeconds));
      const RoundEvent event = RoundEvent::decode(message.payload);
      if (message.kind == ControlKind::kArrived) {
        shard.rounds().arrived_elsewhere(event);
      } else if (message.kind == ControlKind::kGone) {
        shard.rounds().gone_elsewhere(event);
      }
    }
  } catch (const std::exception&) {
    shard.rounds().abort_all();  // without one of its shards the model cannot be updated as a whole
  }
}

}  // namespace distnet
