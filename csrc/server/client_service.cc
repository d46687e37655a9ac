#include "server/client_service.h"

#include <algorithm>

#include "base/error.h"
#include "base/random.h"
#include "front/door.h"
#include "server/control_loop.h"
#include "server/data_loop.h"

namespace distnet {
namespace {

constexpr double kDrainSeconds = 1.0;  // for what a client sent before it ended to be taken

}  // namespace

void ClientService::stop() {
  streams_.stop();
  claim_.stop();
}

void ClientService::serve(Hello hello, const std::shared_ptr<ControlConnection>& control, bool within_host) {
  if (transport_of(hello.transport).within_host && !within_host) {
    throw Error(ErrorCode::kConfig, "shared memory needs the server's local address; this one is TCP's");
  }
  control->stream().give_up_after(hello.timeout_s);
  if (holder_.settings().shard == 0) {
    have_a_model(hello, *control);
    hello.grant = {};
    hello.grant.model = holder_.model();
  } else {
    admit_by_grant(hello);
  }
  Shard& shard = holder_.shard_with(hello.grant.model);
  Carrying carrying = sessions_.admit(hello, control);
  serve_session(shard, hello, carrying);
}

bool ClientService::is_owner(const Hello& hello) const {
  const std::uint64_t owner = holder_.settings().owner;
  return owner != 0 && hello.owner == owner;
}

// ---- the model ----

// Sees to it that shard 0 has a model: brought by this client, or by another that it waits for.
void ClientService::have_a_model(const Hello& hello, ControlConnection& control) {
  const ShardSettings& settings = holder_.settings();
  const bool offers = hello.brings_parameters && (settings.model_from_owner ? is_owner(hello) : hello.rank == 0);
  const Deadline deadline = Deadline::after(0.9 * hello.timeout_s);  // so that the client hears why
  if (claim_.wait(offers, deadline) == ModelClaim::Outcome::kThere) {
    return;
  }
  try {
    const std::uint64_t model = holder_.name_model();
    control.send(ControlKind::kNeedParameters, BringGrant{model, prove(settings.job_secret, hello.id, model)}.encode());
    receive_share(model, control, deadline);
    claim_.brought();
  } catch (...) {
    claim_.give_up();
    throw;
  }
}

// A shard other than the first takes its share from whom shard 0 named.
void ClientService::bring(const Bring& bring, ControlConnection& control) {
  const ShardSettings& settings = holder_.settings();
  if (settings.shard == 0 || !settings.job_secret.known() ||
      !same(bring.grant.proof, prove(settings.job_secret, bring.id, bring.grant.model))) {
    throw Error(ErrorCode::kUnauthorized, "shard 0 says who brings the model; it did not name this client");
  }
  control.send(ControlKind::kNeedParameters, bring.grant.encode());
  receive_share(bring.grant.model, control, Deadline::forever());
}

void ClientService::receive_share(std::uint64_t model, ControlConnection& control, const Deadline& deadline) {
  const ShardSettings& settings = holder_.settings();
  const Deadline first = deadline.is_forever() ? Deadline::after(kHandshakeSeconds) : deadline;
  const ControlMessage message = control.receive(first, {}, kMaxManifestBytes);
  if (message.kind != ControlKind::kInitial) {
    throw Error(ErrorCode::kProtocol, "expected the initial parameters");
  }
  const Initial initial = Initial::decode(message.payload);
  if (!initial.optimizer.empty()) {
    throw Error(ErrorCode::kProtocol, "a model that brings an optimizer, which this version does not take");
  }
  if (initial.range != shard_range(initial.manifest, settings.shard, settings.shards)) {
    throw Error(ErrorCode::kProtocol, "the initial parameters are not those of shard " +
                                          std::to_string(settings.shard) + " of " + std::to_string(settings.shards));
  }
  std::vector<float> values;
  constexpr std::size_t kStepFloats = 1U << 18U;  // memory grows with what arrived, not with what was claimed
  while (values.size() < initial.range.size()) {
    const std::size_t at = values.size();
    values.resize(at + std::min<std::size_t>(kStepFloats, initial.range.size() - at));
    const Deadline step = deadline.is_forever() ? Deadline::after(kHandshakeSeconds) : deadline;
    control.stream().receive_all(std::as_writable_bytes(std::span(values).subspan(at)), &step);
  }
  if (settings.shard != 0) {
    holder_.take_share(model, initial, std::move(values));  // before the client hears of it, and comes to use it
    control.send(ControlKind::kReceived);
    return;
  }
  control.send(ControlKind::kReceived);
  if (settings.shards > 1) {
    wait_until_brought(control, kHandshakeSeconds);
  }
  holder_.take_share(model, initial, std::move(values));
}

// The client brings the other shards theirs, and sends heartbeats meanwhile.
void ClientService::wait_until_brought(ControlConnection& control, double timeout_s) const {
  while (true) {
    const ControlMessage message = control.receive(Deadline::after(timeout_s));
    if (message.kind == ControlKind::kBrought) {
      return;
    }
    if (message.kind != ControlKind::kHeartbeat) {
      throw Error(ErrorCode::kProtocol, "a client that brings the model said something else");
    }
  }
}

// ---- the session ----

void ClientService::admit_by_grant(Hello& hello) const {
  const JobSecret& secret = holder_.settings().job_secret;
  const bool named = hello.grant.incarnation != 0 && hello.grant.rank == hello.rank;
  if (!named || !secret.known() || !same(hello.grant.proof, prove(secret, hello.id, hello.role, hello.grant))) {
    throw Error(ErrorCode::kUnauthorized,
                "shard " + std::to_string(holder_.settings().shard) +
                    " takes clients that shard 0 admitted; connect to all shards, shard 0 first");
  }
}

Welcome ClientService::welcome_for(Shard& shard, const Hello& hello, const Carrying& carrying,
                                   std::uint64_t round) const {
  const SessionEntry& entry = sessions_.entry(carrying.place);
  const ShardSettings& settings = shard.settings();
  const ProbeReply self = holder_.describe();
  Welcome welcome;
  welcome.session = entry.number;
  welcome.secret = random_number();
  welcome.grant = hello.grant;
  welcome.grant.rank = entry.rank;
  welcome.grant.incarnation = entry.incarnation;
  if (settings.shard == 0) {
    welcome.grant.replaces = carrying.replaces;
    welcome.grant.proof = prove(settings.job_secret, hello.id, hello.role, welcome.grant);
  }
  welcome.nonce[0] = self.nonce[0];
  welcome.nonce[1] = self.nonce[1];
  welcome.manifest = shard.manifest();
  welcome.range = shard.range();
  welcome.version = shard.store().version();
  welcome.round = round;
  welcome.max_inflight = settings.policy.max_inflight;
  welcome.buffer_bytes = shard.store().buffer(shard.store().pin().buffer()).bytes();
  welcome.average_offset_bytes = shard.store().average_offset_bytes();
  welcome.clip_norm = settings.clip_norm;
  welcome.versions_can_mix = shard.store().versions_can_mix();
  welcome.joins_all = settings.joins_all();
  welcome.push_format = settings.push_format;
  welcome.pull_format = settings.pull_format;
  return welcome;
}

std::unique_ptr<ServerChannel> ClientService::open_channel(Shard& shard, const Hello& hello, const Welcome& welcome,
                                                           ControlConnection& control) {
  const Transport& transport = transport_of(hello.transport);
  const ChannelShape shape = shape_of(welcome, hello.role, transport, hello.timeout_s);
  const Tuning& tuning = shard.settings().tuning;
  if (!transport.second_stream) {
    std::unique_ptr<ServerChannel> channel = transport.open(shape, tuning, memory_, {});
    control.send(ControlKind::kWelcome, welcome.encode(), channel->descriptors());
    return channel;
  }
  const Attach attach{welcome.session, welcome.secret};
  streams_.expect(attach);
  try {
    control.send(ControlKind::kWelcome, welcome.encode());
  } catch (...) {
    streams_.forget(attach);
    throw;
  }
  return transport.open(shape, tuning, memory_, streams_.take(attach, Deadline::after(kHandshakeSeconds)));
}

// Whatever happens, the session ends as its connection does, and its place is let go.
void ClientService::serve_session(Shard& shard, const Hello& hello, Carrying& carrying) {
  const std::uint32_t session = carrying.place;
  ControlConnection& control = *carrying.control;
  std::unique_ptr<ServerChannel> channel;
  SessionEnd how = SessionEnd::kDied;
  try {
    sessions_.take_up(carrying);
    const std::uint64_t round = shard.session_came(session);
    LiveSessions::tell_fenced(carrying);
    channel = open_channel(shard, hello, welcome_for(shard, hello, carrying, round), control);
    channel->settled(sessions_.table().ledger(session).settled.load(std::memory_order_acquire));  // by earlier channels
    traffic_.add(*channel);
    shard.attach(session, *channel);
    how = run_loops(shard, carrying, *channel, is_owner(hello));
  } catch (const std::exception& error) {
    LiveSessions::tell_fenced(carrying);
    if (!carrying.ended) {  // else run_loops() has told the client
      refuse(control, error);
    }
    end_session(shard, carrying, how, carrying.returning);
  }
  if (channel) {
    shard.detach(session);
    traffic_.remove(*channel);
    if (channel->was_cut_off()) {
      shard.metrics().cut_off();
    }
  }
  sessions_.let_go(carrying);
  if (how == SessionEnd::kDone) {
    try {
      control.send(ControlKind::kGoodbyeReply);  // last: what the client pushed is applied, and its end is counted
    } catch (const Error&) {
      // It did not wait for the answer.
    }
  }
}

// Returns how the session ended, or nothing where another connection carries it on, or where its end was told before.
std::optional<SessionEnd> ClientService::end_session(Shard& shard, Carrying& carrying, SessionEnd how,
                                                     bool may_return) {
  if (carrying.ended) {
    return std::nullopt;
  }
  sessions_.connection_ended(carrying, how, may_return);
  const std::optional<SessionEnd> ended = sessions_.wait_for_end(carrying);
  if (ended) {
    shard.session_ended(carrying.place, *ended);
  }
  return ended;
}

SessionEnd ClientService::run_loops(Shard& shard, Carrying& carrying, ServerChannel& channel, bool is_owner) {
  ControlConnection& control = *carrying.control;
  DataLoop data(shard, carrying.place, channel, control);
  SessionEnd how = SessionEnd::kDied;
  std::exception_ptr broken;
  try {
    for (const std::string& text : carrying.warnings) {
      control.send(ControlKind::kNotice, Notice{Notice::Kind::kWarning, text}.encode());
    }
    control.send(ControlKind::kAttached);
    data.start();
    how = ControlLoop(shard, sessions_, carrying, channel, control, is_owner, [this] {
            return holder_.stats_json();
          }).run();
  } catch (const std::exception& error) {
    broken = std::current_exception();
    refuse(control, error);  // before the data loop ends, which may be waiting for a round
  }
  data.let_end();
  const bool broke = how == SessionEnd::kDied && !broken;
  if (broke) {
    channel.client_left();
  } else {
    channel.stop_taking();
  }
  const auto end_data_loop = [&] {
    if (!data.wait_until_ended(Deadline::after(kDrainSeconds))) {
      channel.stop_taking();
    }
  };
  const bool between_hosts = !transport_of(sessions_.entry(carrying.place).transport).within_host;
  const bool may_come_back = broke && between_hosts && holder_.settings().reconnect_timeout_s > 0.0;
  if (may_come_back) {
    end_data_loop();  // both connections go, while the session is away
  }
  const SessionEnd ended = end_session(shard, carrying, how, may_come_back).value_or(how);
  end_data_loop();  // only now: it may have been waiting for a round
  if (broken) {
    std::rethrow_exception(broken);
  }
  return ended;
}

}  // namespace distnet
