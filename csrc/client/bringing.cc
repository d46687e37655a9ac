#include "client/bringing.h"

#include "base/error.h"

namespace distnet {
namespace {

constexpr double kHeartbeatSeconds = 1.0;  // shard 0 gives up a bringer that is silent for kHandshakeSeconds

void send_share(ControlConnection& control, const InitialParameters& initial, std::uint32_t shard, std::uint32_t shards,
                const Deadline& deadline, const Interrupt& interrupt) {
  const ShardRange range = shard_range(initial.manifest, shard, shards);
  const std::vector<float> values = gather(initial.manifest, range, initial.tensors);
  control.send(ControlKind::kInitial, Initial{initial.manifest, range, ""}.encode());
  control.stream().send_all(std::as_bytes(std::span(values)), &deadline, interrupt);
  if (control.receive(deadline, interrupt).kind != ControlKind::kReceived) {
    throw Error(ErrorCode::kProtocol, "a shard did not confirm its share of the model");
  }
}

void bring_to(const Address& address, const Bring& bring, const InitialParameters& initial, std::uint32_t shard,
              std::uint32_t shards, const Deadline& deadline, const Interrupt& interrupt) {
  ControlConnection control(Stream::connect(address, deadline, interrupt));
  control.send(ControlKind::kBring, bring.encode());
  if (control.receive(deadline, interrupt).kind != ControlKind::kNeedParameters) {
    throw Error(ErrorCode::kProtocol, "the shard at " + address.text() + " did not take its share of the model");
  }
  send_share(control, initial, shard, shards, deadline, interrupt);
}

}  // namespace

void bring_model(ControlConnection& to_shard_0, const BringGrant& grant, const ClientId& id,
                 const InitialParameters& initial, const std::vector<Address>& shards, const Deadline& deadline,
                 const Interrupt& interrupt) {
  const auto count = static_cast<std::uint32_t>(shards.size());
  send_share(to_shard_0, initial, 0, count, deadline, interrupt);
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
  for (std::uint32_t shard = 1; shard < count; ++shard) {
    bring_to(shards[shard], {id, grant}, initial, shard, count, deadline, stay_in_touch);
    to_shard_0.send(ControlKind::kHeartbeat);
  }
  if (count > 1) {
    to_shard_0.send(ControlKind::kBrought);
  }
}

}  // namespace distnet
