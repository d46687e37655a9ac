#include "server/model_reception.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/waiting.h"
#include "sessions/proof.h"

namespace distnet {
namespace {

constexpr std::size_t kPaceBytes = std::size_t{64} << 10U;  // in any kHandshakeSeconds
constexpr double kSignOfLifeSeconds = 0.25;                 // between two that a client hears while its bytes come
constexpr std::size_t kStepFloats = 1U << 18U;              // memory grows with what arrived, not with what was claimed

// Receives at the least rate, and tells the client now and then that its bytes come: what they wait in on their way may
// be large, so the client cannot see it.
class PacedReception {
 public:
  explicit PacedReception(ControlConnection& control) : control_(control) {}

  void receive(std::span<std::byte> bytes) {
    while (!bytes.empty()) {
      const std::size_t received = control_.stream().receive_some(bytes);
      bytes = bytes.subspan(received);
      count(received);
      if ((received == 0 && !control_.stream().wait(POLLIN, &piece_due_, {})) || piece_due_.expired()) {
        throw Error(ErrorCode::kDeadlineExceeded,
                    "less than 64 KiB of the model came in ten seconds: another client may bring it");
      }
    }
  }

 private:
  void count(std::size_t received) {
    piece_bytes_ += received;
    if (piece_bytes_ >= kPaceBytes) {
      piece_bytes_ = 0;
      piece_due_ = Deadline::after(kHandshakeSeconds);
    }
    if (received != 0 && next_sign_.expired()) {
      control_.send(ControlKind::kHeartbeat);
      next_sign_ = Deadline::after(kSignOfLifeSeconds);
    }
  }

  ControlConnection& control_;
  std::size_t piece_bytes_ = 0;
  Deadline piece_due_ = Deadline::after(kHandshakeSeconds);
  Deadline next_sign_ = Deadline::after(kSignOfLifeSeconds);
};

// The client brings the other shards theirs, `bytes` in all, and sends heartbeats meanwhile.
void wait_until_brought(ControlConnection& control, std::uint64_t bytes) {
  const Deadline all = Deadline::after((2.0 + static_cast<double>(bytes) / kPaceBytes) * kHandshakeSeconds);
  while (true) {
    const ControlMessage message = control.receive(Deadline::after(kHandshakeSeconds));
    if (all.expired()) {
      throw Error(ErrorCode::kDeadlineExceeded,
                  "the other shards did not get theirs of the model at 64 KiB in ten "
                  "seconds: another client may bring it");
    }
    if (message.kind == ControlKind::kBrought) {
      return;
    }
    if (message.kind != ControlKind::kHeartbeat) {
      throw Error(ErrorCode::kProtocol, "a client that brings the model said something else");
    }
  }
}

}  // namespace

void ModelReception::have_a_model(const Hello& hello, ControlConnection& control, double patience_s) {
  const ShardSettings& settings = holder_.settings();
  const bool is_owner = settings.owner != 0 && hello.owner == settings.owner;
  const bool offers = hello.brings_parameters && (settings.model_from_owner ? is_owner : hello.rank == 0);
  if (claim_.wait(offers, control, patience_s) == ModelClaim::Outcome::kThere) {
    return;
  }
  try {
    const std::uint64_t model = holder_.name_model();
    control.send(ControlKind::kNeedParameters, BringGrant{model, prove(settings.job_secret, hello.id, model)}.encode());
    receive_share(model, control);
    claim_.brought();
  } catch (...) {
    claim_.give_up();
    throw;
  }
}

void ModelReception::bring(const Bring& bring, ControlConnection& control) {
  const ShardSettings& settings = holder_.settings();
  if (settings.shard == 0 || !settings.job_secret.known() ||
      !same(bring.grant.proof, prove(settings.job_secret, bring.id, bring.grant.model))) {
    throw Error(ErrorCode::kUnauthorized, "shard 0 says who brings the model; it did not name this client");
  }
  control.send(ControlKind::kNeedParameters, bring.grant.encode());
  receive_share(bring.grant.model, control);
}

Initial ModelReception::receive_initial(ControlConnection& control) const {
  const ShardSettings& settings = holder_.settings();
  const ControlMessage message = control.receive_in_pace(kHandshakeSeconds, {}, kMaxManifestBytes);
  if (message.kind != ControlKind::kInitial) {
    throw Error(ErrorCode::kProtocol, "expected the initial parameters");
  }
  Initial initial = Initial::decode(message.payload);
  if (initial.range != shard_range(initial.manifest, settings.shard, settings.shards)) {
    throw Error(ErrorCode::kProtocol, "the initial parameters are not those of shard " +
                                          std::to_string(settings.shard) + " of " + std::to_string(settings.shards));
  }
  check_rule(with_brought(settings, initial.optimizer), initial.manifest, initial.range);
  return initial;
}

void ModelReception::receive_share(std::uint64_t model, ControlConnection& control) {
  const ShardSettings& settings = holder_.settings();
  const Initial initial = receive_initial(control);
  std::vector<float> values;
  PacedReception reception(control);
  while (values.size() < initial.range.size()) {
    const std::size_t at = values.size();
    values.resize(at + std::min<std::size_t>(kStepFloats, initial.range.size() - at));
    reception.receive(std::as_writable_bytes(std::span(values).subspan(at)));
  }
  if (settings.shard != 0) {
    holder_.take_share(model, initial, std::move(values));  // before the client hears of it, and comes to use it
    control.send(ControlKind::kReceived);
    return;
  }
  control.send(ControlKind::kReceived);
  if (settings.shards > 1) {
    const std::uint64_t others = initial.manifest.size - std::min(initial.manifest.size, initial.range.size());
    wait_until_brought(control, others * sizeof(float));
  }
  holder_.take_share(model, initial, std::move(values));
}

}  // namespace distnet
