#include "client/bringing.h"

#include <algorithm>

#include "base/error.h"
#include "base/waiting.h"

namespace distnet {
namespace {

constexpr double kHeartbeatSeconds = 1.0;  // shard 0 gives up a bringer that is silent for kHandshakeSeconds

// Brings shares of the model. However long that takes, each side hears of the other: the server says now and then that
// bytes come. It is given up when it neither takes bytes nor says so for the timeout.
class Bringer {
 public:
  Bringer(const InitialParameters& initial, std::uint32_t shards, double silence_s, const Interrupt& interrupt)
      : initial_(initial), shards_(shards), silence_s_(silence_s), interrupt_(interrupt) {}

  void send_share(ControlConnection& control, std::uint32_t shard) const {
    const ShardRange range = shard_range(initial_.manifest, shard, shards_);
    const std::vector<float> values = gather(initial_.manifest, range, initial_.tensors);
    const Initial message{initial_.manifest, range, initial_.optimizer};
    control.send_in_pace(ControlKind::kInitial, message.encode(), {}, {}, silence_s_, interrupt_);
    send(control, std::as_bytes(std::span(values)));
    while (hear(control) != ControlKind::kReceived) {
    }
  }

 private:
  void send(ControlConnection& control, std::span<const std::byte> bytes) const {
    Deadline silence = Deadline::after(silence_s_);
    Deadline next_look = Deadline::after(kInterruptInterval);
    while (!bytes.empty()) {
      const std::size_t sent = control.stream().send_some(bytes);
      bytes = bytes.subspan(sent);
      if (sent == 0) {
        if (!control.stream().wait(POLLOUT | POLLIN, &silence, interrupt_)) {
          throw Error(ErrorCode::kDeadlineExceeded, "the server takes no more of the model");
        }
        const Deadline at_once = Deadline::after(0.0);
        if (control.stream().wait(POLLIN, &at_once, {}) && hear(control) != ControlKind::kHeartbeat) {
          throw Error(ErrorCode::kProtocol, "the server confirmed a share of the model before it had it");
        }
      }
      silence = Deadline::after(silence_s_);
      if (interrupt_ && next_look.expired()) {  // a server that always takes some is no reason not to look
        interrupt_();
        next_look = Deadline::after(kInterruptInterval);
      }
    }
  }

  ControlKind hear(ControlConnection& control) const {
    const ControlKind kind = control.receive(Deadline::after(silence_s_), interrupt_).kind;
    if (kind != ControlKind::kHeartbeat && kind != ControlKind::kReceived) {
      throw Error(ErrorCode::kProtocol, "a shard did not confirm its share of the model");
    }
    return kind;
  }

  const InitialParameters& initial_;
  const std::uint32_t shards_;
  const double silence_s_;
  const Interrupt& interrupt_;
};

}  // namespace

void bring_model(ControlConnection& to_shard_0, const BringGrant& grant, const ClientId& id,
                 const InitialParameters& initial, const std::vector<Address>& shards, double silence_s,
                 const Interrupt& interrupt) {
  const auto count = static_cast<std::uint32_t>(shards.size());
  Bringer(initial, count, silence_s, interrupt).send_share(to_shard_0, 0);
  Deadline next_heartbeat = Deadline::after(kHeartbeatSeconds);
  const Interrupt stay_in_touch = [&] {
    if (next_heartbeat.expired()) {
      to_shard_0.send(ControlKind::kHeartbeat);
      next_heartbeat = Deadline::after(kHeartbeatSeconds);
    }
    if (interrupt) {
      interrupt();
    }
  };
  const Bringer to_others(initial, count, silence_s, stay_in_touch);
  for (std::uint32_t shard = 1; shard < count; ++shard) {
    ControlConnection control(Stream::connect(shards[shard], Deadline::after(silence_s), stay_in_touch));
    control.send(ControlKind::kBring, Bring{id, grant}.encode());
    if (control.receive(Deadline::after(silence_s), stay_in_touch).kind != ControlKind::kNeedParameters) {
      throw Error(ErrorCode::kProtocol,
                  "the shard at " + shards[shard].text() + " did not take its share of the model");
    }
    to_others.send_share(control, shard);
    to_shard_0.send(ControlKind::kHeartbeat);
  }
  if (count > 1) {
    to_shard_0.send(ControlKind::kBrought);
  }
}

}  // namespace distnet
