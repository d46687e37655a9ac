// How a connection becomes a session: hello, the model where the server has none yet, welcome, channel.
#include <algorithm>

#include "server/connection.h"
#include "server/shard.h"
#include "server/shard_server.h"
#include "transport/registry.h"

namespace distnet {
namespace {

constexpr std::uint32_t kMaxHandshakeBytes = 4096;  // of a stranger's messages

}  // namespace

// Nothing: the connection was an attachment, or left.
std::optional<Hello> Connection::shake_hands() {
  const Deadline deadline = Deadline::after(kHandshakeSeconds);
  while (true) {
    const ControlMessage message = control_.receive(deadline, {}, kMaxHandshakeBytes);
    if (message.kind == ControlKind::kProbe) {
      control_.send(ControlKind::kProbeReply, server_.describe().encode());
    } else if (message.kind == ControlKind::kAttach && !local_) {
      Socket socket;
      {
        const std::lock_guard lock(channel_mutex_);
        socket = std::move(control_.socket());
      }
      server_.attach(Attach::decode(message.payload), socket);
      return std::nullopt;
    } else if (message.kind == ControlKind::kHello) {
      return Hello::decode(message.payload);
    } else {
      throw Error(ErrorCode::kProtocol, "a conversation starts with a probe or a hello");
    }
  }
}

// Sees to it that the shard has parameters: brought by this client, or by another that it waits for.
bool Connection::bring_parameters(const Hello& hello) {
  const Deadline deadline = Deadline::after(0.9 * hello.deadline_s);  // so that the client hears why
  if (!hello.brings_parameters || hello.rank != 0 || !server_.claim_initialising()) {
    return server_.wait_until_initialised(deadline);
  }
  try {
    control_.send(ControlKind::kNeedParameters);
    const ControlMessage message = control_.receive(deadline, {}, kMaxManifestBytes);
    if (message.kind != ControlKind::kInitial) {
      throw Error(ErrorCode::kProtocol, "expected the initial parameters");
    }
    const Initial initial = Initial::decode(message.payload);
    server_.check_range(initial);
    std::vector<float> values;
    constexpr std::size_t kStepFloats = 1U << 18U;  // memory grows with what arrived, not with what was claimed
    while (values.size() < initial.range.size()) {
      const std::size_t at = values.size();
      values.resize(at + std::min<std::size_t>(kStepFloats, initial.range.size() - at));
      control_.socket().receive_all(std::as_writable_bytes(std::span(values).subspan(at)), &deadline);
    }
    server_.initialise(initial.manifest, initial.range, values);
  } catch (...) {
    server_.give_up_initialising();
    throw;
  }
  return true;
}

Welcome Connection::make_welcome(Shard& shard) const {
  Welcome welcome;
  welcome.session = session_.id;
  welcome.secret = secret_;
  welcome.nonce[0] = server_.describe().nonce[0];
  welcome.nonce[1] = server_.describe().nonce[1];
  welcome.manifest = shard.manifest();
  welcome.range = shard.range();
  welcome.version = shard.store().version();
  welcome.round = shard.joins_all() ? shard.rounds().next_round(session_.rank) : 0;
  welcome.max_inflight = shard.settings().policy.max_inflight;
  welcome.buffer_bytes = shard.store().buffer(shard.store().pin().buffer()).bytes();
  welcome.average_offset_bytes = shard.store().average_offset_bytes();
  welcome.clip_norm = shard.settings().clip_norm;
  welcome.versions_can_mix = shard.store().versions_can_mix();
  welcome.joins_all = shard.joins_all();
  welcome.push_format = shard.settings().push_format;
  welcome.pull_format = shard.settings().pull_format;
  return welcome;
}

void Connection::open_channel(const Hello& hello, Shard& shard) {
  const Welcome welcome = make_welcome(shard);
  const ChannelShape shape = shape_of(welcome, hello.role, hello.transport);
  const Tuning& tuning = shard.settings().tuning;
  if (hello.transport == TransportKind::kShm) {
    if (!local_) {
      throw Error(ErrorCode::kConfig, "shared memory needs the server's local address; this one is TCP's");
    }
    LocalChannel opened = open_local_channel(shape, tuning);
    control_.send(ControlKind::kWelcome, welcome.encode(), opened.fds);
    const std::lock_guard lock(channel_mutex_);
    channel_ = std::move(opened.channel);
    return;
  }
  {
    const std::lock_guard lock(channel_mutex_);
    waits_for_attach_ = true;
  }
  control_.send(ControlKind::kWelcome, welcome.encode());
  std::unique_lock lock(channel_mutex_);
  const auto arrived = [this] { return closing_ || static_cast<bool>(attached_socket_); };
  if (!attached_.wait_for(lock, std::chrono::duration<double>(kHandshakeSeconds), arrived) || closing_) {
    waits_for_attach_ = false;
    throw Error(ErrorCode::kPeerClosed, "the client never opened its data connection");
  }
  channel_ = open_remote_channel(shape, tuning, std::move(attached_socket_));
}

}  // namespace distnet
