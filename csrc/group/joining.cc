#include "group/joining.h"

#include <array>
#include <cstdio>
#include <optional>

#include "base/error.h"
#include "base/threads.h"
#include "group/lane.h"
#include "group/process_number.h"
#include "wire/gathering_messages.h"

namespace distnet {
namespace {

static_assert(kMostGroupRanks == kMostRanks, "what the coordinator takes, lanes can run");

constexpr milliseconds kRetryInterval{50};

std::string seconds_text(double seconds) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g s", seconds);
  return text.data();
}

bool means_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

// The wait of one member until its group is complete.
class Joining {
 public:
  Joining(const GroupOptions& options, const Interrupt& interrupt)
      : options_(options), interrupt_(interrupt), deadline_(Deadline::after(options.timeout_s)), began_(now()) {}

  Joined join() {
    joined_.coordinator = parse_addresses(options_.address).front();
    connect_when_somebody_listens();
    listen();
    joined_.control->stream().give_up_after(session_timeout_s(options_.timeout_s));
    say_join();
    take(wait_for_all());
    return std::move(joined_);
  }

 private:
  void connect_when_somebody_listens() {
    while (true) {
      try {
        connect();
        return;
      } catch (const Error& error) {
        const bool may_come = error.code() == ErrorCode::kConnect;
        if (!may_come || deadline_.left() < kRetryInterval) {
          throw;
        }
        tell(std::string("the coordinator: ") + error.what());
      }
      sleep_for(kRetryInterval);
      if (interrupt_) {
        interrupt_();
      }
    }
  }

  // Over a Unix socket where the coordinator proves to be on this host.
  void connect() {
    const Address& given = joined_.coordinator;
    auto control = std::make_unique<ControlConnection>(Stream::connect(given, deadline_, interrupt_));
    if (!given.within_host() && options_.transport != GroupTransport::kTcp) {
      const ProbeReply remote = probe(*control);
      if (auto local = connect_local(remote)) {
        control = std::move(local);
      }
    }
    within_host_ = given.within_host() || control->stream().is_unix();
    joined_.control = std::move(control);
  }

  ProbeReply probe(ControlConnection& control) const {
    control.send(ControlKind::kProbe, {}, {}, deadline_);
    const ControlMessage message = control.receive(deadline_, interrupt_);
    if (message.kind != ControlKind::kProbeReply) {
      throw Error(ErrorCode::kProtocol, joined_.coordinator.text() + " does not answer a probe");
    }
    return ProbeReply::decode(message.payload);
  }

  // Returns null where another host, network namespace or user has what listens at that name.
  std::unique_ptr<ControlConnection> connect_local(const ProbeReply& remote) const {
    try {
      auto control = std::make_unique<ControlConnection>(
          Stream::connect({Address::Kind::kUnix, remote.local_name, 0}, deadline_, interrupt_));
      const ProbeReply here = probe(*control);
      const bool same = here.nonce[0] == remote.nonce[0] && here.nonce[1] == remote.nonce[1];
      return same ? std::move(control) : nullptr;
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kDeadlineExceeded || error.code() == ErrorCode::kTransport) {
        throw;  // it is here, and does not answer or is at a limit
      }
      return nullptr;
    }
  }

  void listen() {
    if (within_host_ && options_.transport != GroupTransport::kTcp) {
      local_listener_ = std::make_unique<Listener>(Address{Address::Kind::kUnix, random_local_name(), 0});
    }
    if (options_.transport != GroupTransport::kShm) {
      const Address& at = joined_.coordinator;
      const bool v6 = at.name.find(':') != std::string::npos;
      const bool loopback = at.within_host() || means_loopback(at.name);
      const char* const host = loopback ? (v6 ? "::1" : "127.0.0.1") : (v6 ? "::" : "0.0.0.0");
      tcp_listener_ = std::make_unique<Listener>(Address{Address::Kind::kTcp, host, 0});
    }
  }

  void say_join() {
    JoinGroup join;
    join.name = options_.name;
    join.rank = options_.rank;
    join.size = options_.size;
    join.timeout_s = session_timeout_s(options_.timeout_s);
    join.transport = options_.transport;
    join.process = process_number();
    join.local_name = local_listener_ ? local_listener_->address().name : "";
    join.port = tcp_listener_ ? tcp_listener_->address().port : std::uint16_t{0};
    joined_.control->send(ControlKind::kJoinGroup, join.encode(), {}, deadline_);
  }

  ControlMessage wait_for_all() {
    const double interval_s = heartbeat_interval_s(session_timeout_s(options_.timeout_s));
    Deadline next_heartbeat = Deadline::after(std::min(interval_s, kQuietSeconds / 4));
    const Interrupt looking = [this] {
      if (!awaited_.empty()) {
        tell(awaited_);
      }
      if (interrupt_) {
        interrupt_();
      }
    };
    while (true) {
      const Deadline& until = next_heartbeat.left() < deadline_.left() ? next_heartbeat : deadline_;
      if (joined_.control->stream().wait(POLLIN, &until, looking)) {
        ControlMessage message = joined_.control->receive(deadline_, interrupt_);
        if (message.kind != ControlKind::kGroupAwaited) {
          return message;
        }
        awaited_ = decode_text(message.payload);
      } else if (deadline_.expired()) {
        throw Error(ErrorCode::kDeadlineExceeded, who() + " has waited " + seconds_text(options_.timeout_s) + " for " +
                                                      (awaited_.empty() ? "the others" : awaited_) +
                                                      "; start all ranks, or give a longer timeout");
      } else {
        joined_.control->send(ControlKind::kHeartbeat, {}, {}, deadline_);
        next_heartbeat = Deadline::after(std::min(interval_s, kQuietSeconds / 4));
      }
    }
  }

  void take(ControlMessage message) {
    if (message.kind == ControlKind::kGroupEnded) {
      const GroupEnd end = GroupEnd::decode(message.payload);
      throw Error(end.code, end.text);
    }
    if (message.kind != ControlKind::kGroupFormed) {
      throw Error(ErrorCode::kProtocol, "the coordinator at " + joined_.coordinator.text() + " does not form groups");
    }
    joined_.formed = GroupFormed::decode(message.payload);
    const GroupFormed& formed = joined_.formed;
    const bool shm = formed.transport == GroupTransport::kShm;
    const std::size_t expected = shm ? 2 * shm_lane_bytes(options_.size) : 0;
    if (formed.members.size() != options_.size || formed.memory_bytes != expected ||
        message.fds.size() != (shm ? 1U : 0U) || !(shm ? local_listener_ : tcp_listener_)) {
      throw Error(ErrorCode::kProtocol, "the coordinator formed another group than " + who() + " asked for");
    }
    if (shm) {
      joined_.memory = Region::map(message.fds[0].release(), expected, true);
    }
    joined_.listener = std::move(shm ? local_listener_ : tcp_listener_);
  }

  std::string who() const { return "rank " + std::to_string(options_.rank) + " of group '" + options_.name + "'"; }

  // Once, and not at once.
  void tell(const std::string& awaited) {
    if (!told_ && options_.heard && now() - began_ > std::chrono::duration<double>(kQuietSeconds)) {
      told_ = true;
      options_.heard(who() + " has waited " + seconds_text(kQuietSeconds) + " for " + awaited);
    }
  }

  const GroupOptions& options_;
  const Interrupt& interrupt_;
  const Deadline deadline_;
  const Clock::time_point began_;
  Joined joined_;
  bool within_host_ = false;
  bool told_ = false;
  std::string awaited_;
  std::unique_ptr<Listener> local_listener_;
  std::unique_ptr<Listener> tcp_listener_;
};

}  // namespace

Joined join_group(const GroupOptions& options, const Interrupt& interrupt) {
  if (options.size == 0 || options.size > kMostGroupRanks || options.rank >= options.size) {
    throw Error(ErrorCode::kConfig, "rank " + std::to_string(options.rank) + " of a group of " +
                                        std::to_string(options.size) + "; a group has 1 to " +
                                        std::to_string(kMostGroupRanks) + " ranks, counted from 0");
  }
  if (options.name.empty() || options.name.size() > kMaxGroupNameBytes) {
    throw Error(ErrorCode::kConfig, "the name of a group has " + std::to_string(options.name.size()) +
                                        " bytes; it has 1 to " + std::to_string(kMaxGroupNameBytes));
  }
  if (!(options.timeout_s > 0.0)) {
    throw Error(ErrorCode::kConfig,
                "the timeout of a group is " + std::to_string(options.timeout_s) + " s; expected a number above 0");
  }
  return Joining(options, interrupt).join();
}

Address address_of(const Joined& joined, std::uint32_t rank) {
  const MemberAddress& member = joined.formed.members[rank];
  if (joined.formed.transport == GroupTransport::kShm) {
    return {Address::Kind::kUnix, member.local_name, 0};
  }
  const std::string here = joined.coordinator.within_host() ? "127.0.0.1" : joined.coordinator.name;
  return {Address::Kind::kTcp, member.host.empty() ? here : member.host, member.port};
}

}  // namespace distnet
