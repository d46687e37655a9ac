#include "server/client_service.h"

#include <algorithm>
#include <span>

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
  model_.stop();
}

void ClientService::serve(Hello hello, const std::shared_ptr<ControlConnection>& control, bool within_host) {
  if (transport_of(hello.transport).within_host && !within_host) {
    throw Error(ErrorCode::kConfig, "shared memory needs the server's local address; this one is TCP's");
  }
  const double patience_s = std::min(hello.timeout_s, kMostTimeoutSeconds);  // of the client, until its welcome
  hello.timeout_s = session_timeout_s(hello.timeout_s);
  control->stream().give_up_after(hello.timeout_s);
  if (holder_.settings().shard == 0) {
    if (holder_.settings().joins_all()) {
      refuse_beyond(hello, holder_.settings().policy.workers);  // before it waits for a model, too
    }
    model_.have_a_model(hello, *control, patience_s);
    hello.grant = {};
    hello.grant.model = holder_.model();
  } else {
    admit_by_grant(hello);
  }
  Shard& shard = holder_.shard_with(hello.grant.model);
  Welcome welcome = describe_to(hello, shard);
  Seat seat(shard, hello, welcome, *control, memory_);
  Carrying carrying = sessions_.admit(hello, control);
  serve_session(seat, carrying, hello, welcome);
}

bool ClientService::is_owner(const Hello& hello) const {
  const std::uint64_t owner = holder_.settings().owner;
  return owner != 0 && hello.owner == owner;
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

// What a client is told of the shard.
Welcome ClientService::describe_to(const Hello& hello, Shard& shard) const {
  const ShardSettings& settings = shard.settings();
  const ProbeReply self = holder_.describe();
  Welcome welcome;
  welcome.secret = random_number();
  welcome.grant = hello.grant;
  welcome.timeout_s = hello.timeout_s;
  welcome.nonce[0] = self.nonce[0];
  welcome.nonce[1] = self.nonce[1];
  welcome.range = shard.range();
  welcome.max_inflight = settings.policy.max_inflight;
  welcome.workers = settings.policy.workers;
  welcome.buffer_bytes = shard.store().buffer(0).bytes();
  welcome.ema_offset_bytes = shard.store().ema_offset_bytes();
  welcome.clip_norm = settings.clip_norm;
  welcome.versions_can_mix = shard.store().versions_can_mix();
  welcome.joins_all = settings.joins_all();
  welcome.takes_means = settings.joins_all() && settings.policy.reduction == Reduction::kMean;
  welcome.about = settings.about;
  welcome.optimizer = settings.about_optimizer;
  for (const ShardSettings::Group& group :
       std::span(settings.groups).first(std::min<std::size_t>(settings.groups.size(), kMaxRatedGroups))) {
    welcome.groups.push_back(group.pattern.size() <= kMaxPatternBytes ? group.pattern : std::string());
  }
  welcome.push_format = settings.push_format;
  welcome.pull_format = settings.pull_format;
  return welcome;
}

// The rest: what a client is told of its session.
void ClientService::add_session(Welcome& welcome, const Hello& hello, const Carrying& carrying, Shard& shard) const {
  const SessionEntry& entry = sessions_.entry(carrying.place);
  const ShardSettings& settings = shard.settings();
  welcome.session = entry.number;
  welcome.grant.rank = entry.rank;
  welcome.grant.incarnation = entry.incarnation;
  if (settings.shard == 0) {
    welcome.grant.replaces = carrying.replaces;
    welcome.grant.proof = prove(settings.job_secret, hello.id, hello.role, welcome.grant);
  }
  welcome.round = shard.session_came(carrying.place);
  welcome.version = shard.store().version();
}

void ClientService::open_channel(Seat& seat, ControlConnection& control, const Welcome& welcome) {
  if (!seat.bell) {
    control.send_in_pace(ControlKind::kWelcome, welcome.encode_head(), seat.shard.encoded_manifest(),
                         seat.channel->descriptors(), kHandshakeSeconds);
    seat.channel->descriptors_passed();
    return;
  }
  const Attach attach{welcome.session, welcome.secret};
  streams_.expect(attach, std::move(*seat.bell));
  try {
    control.send_in_pace(ControlKind::kWelcome, welcome.encode_head(), seat.shard.encoded_manifest(), {},
                         kHandshakeSeconds);
  } catch (...) {
    streams_.forget(attach);
    throw;
  }
  seat.channel = seat.transport.open(seat.shape, seat.shard.settings().tuning, memory_,
                                     streams_.take(attach, control, Deadline::after(kHandshakeSeconds)));
}

// Whatever happens, the session ends as its connection does, and its place is let go.
void ClientService::serve_session(Seat& seat, Carrying& carrying, const Hello& hello, Welcome& welcome) {
  const std::uint32_t session = carrying.place;
  Shard& shard = seat.shard;
  ControlConnection& control = *carrying.control;
  bool attached = false;
  SessionEnd how = SessionEnd::kDied;
  try {
    sessions_.take_up(carrying);
    add_session(welcome, hello, carrying, shard);
    LiveSessions::tell_fenced(carrying);
    open_channel(seat, control, welcome);
    // By earlier channels of the session.
    seat.channel->settled(sessions_.table().ledger(session).settled.load(std::memory_order_acquire));
    traffic_.add(*seat.channel);
    shard.attach(session, *seat.channel);
    attached = true;
    how = run_loops(seat, carrying, is_owner(hello));
  } catch (const std::exception& error) {
    LiveSessions::tell_fenced(carrying);
    if (!carrying.ended) {  // else run_loops() has told the client
      refuse(control, error);
    }
    end_session(shard, carrying, how, carrying.returning);
  }
  if (attached) {
    shard.detach(session);
    traffic_.remove(*seat.channel);
    if (seat.channel->was_cut_off()) {
      shard.metrics().cut_off();
    }
  }
  shard.saved().forget(session);
  seat.channel.reset();  // its memory goes before the session counts as gone
  const std::uint64_t unheard =
      how == SessionEnd::kDone ? sessions_.table().ledger(session).unheard.exchange(0, std::memory_order_acq_rel) : 0;
  sessions_.let_go(carrying);
  if (how == SessionEnd::kDone) {
    try {
      if (unheard != 0) {
        const std::string text = "push " + std::to_string(unheard) +
                                 ", the last before the client closed, was refused: it holds NaN or infinity";
        control.send(ControlKind::kNotice, Notice{Notice::Kind::kWarning, text}.encode());
      }
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

// What the rank of a worker's session has saved; null where it has nothing.
SavedBytes::Data ClientService::saved_of(std::uint32_t session, Shard& shard) const {
  const SessionEntry& entry = sessions_.entry(session);
  return entry.role == Role::kWorker ? shard.saved().of(entry.rank) : nullptr;
}

SessionEnd ClientService::run_loops(Seat& seat, Carrying& carrying, bool is_owner) {
  Shard& shard = seat.shard;
  ServerChannel& channel = *seat.channel;
  ControlConnection& control = *carrying.control;
  DataLoop data(shard, carrying.place, channel, control, dormant_);
  SessionEnd how = SessionEnd::kDied;
  std::exception_ptr broken;
  try {
    for (const std::string& text : carrying.warnings) {
      control.send(ControlKind::kNotice, Notice{Notice::Kind::kWarning, text}.encode());
    }
    if (const SavedBytes::Data saved = saved_of(carrying.place, shard)) {
      control.send(ControlKind::kSaved, *saved);
    }
    control.send(ControlKind::kAttached);
    data.start();
    how =
        ControlLoop(seat, sessions_, carrying, control, data, is_owner, [this] { return holder_.stats_json(); }).run();
  } catch (const std::exception& error) {
    broken = std::current_exception();
    refuse(control, error);  // before the data loop ends, which may be waiting for a round
  }
  data.let_end();
  // A client that broke a rule is not one whose network broke.
  const bool broke = how == SessionEnd::kDied && !broken && !data.failed();
  if (broke) {
    channel.client_left();
    data.wake();  // for what it left behind
  } else {
    channel.stop_taking();
  }
  const auto end_data_loop = [&] {
    if (!data.wait_until_ended(Deadline::after(kDrainSeconds))) {
      channel.stop_taking();
    }
  };
  const bool may_come_back = broke && !seat.transport.within_host && holder_.settings().reconnect_timeout_s > 0.0;
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
