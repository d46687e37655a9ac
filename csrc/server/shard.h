// One shard: the store, the policy, and the one accept point. No connection, no framework, no other shards.
//
// Thread safety: all methods, from any number of threads; serve() for one session from one thread at a time.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/gathering_room.h"
#include "server/in_flight.h"
#include "server/live_sessions.h"
#include "server/metrics.h"
#include "server/push_pipeline.h"
#include "server/rounds/rounds.h"
#include "server/saved_bytes.h"
#include "server/settlement.h"
#include "server/shard_settings.h"
#include "server/snapshot_room.h"
#include "store/store.h"
#include "transport/channel.h"
#include "wire/brought_optimizer.h"
#include "wire/manifest.h"

namespace distnet {

// What a shard goes on from: the state of a snapshot, for this shard's range.
struct RestoredState {
  std::vector<float> ema;  // empty: it starts from the parameters
  std::vector<std::vector<float>> state_vectors;
  std::uint64_t version = 0;
  std::uint64_t round = 0;
  std::optional<double> set_rate;  // in place of the schedule's
  SavedBytes::ByRank saved;        // used by shard 0 alone
};

// Returns the settings with the optimizer that came with the model, where they leave it to who brings that.
ShardSettings with_brought(ShardSettings settings, const std::optional<BroughtOptimizer>& brought);
// Throws Error(kConfig) unless optimizer, schedule and groups make a rule for this range.
void check_rule(const ShardSettings& settings, const Manifest& manifest, ShardRange range);

class Shard final : public RoundStore {
 public:
  // `initial`: range.size() floats. `restored`: null for a new start. Peers and sessions outlive the shard.
  Shard(const ShardSettings& settings, const Manifest& manifest, ShardRange range, std::span<const float> initial,
        Memory& memory, LiveSessions& sessions, RoundPeers& peers, const RestoredState* restored = nullptr);

  const Manifest& manifest() const { return manifest_; }
  // The manifest as messages carry it: encoded once, whatever the number of clients.
  std::span<const std::byte> encoded_manifest() const { return encoded_manifest_; }
  ShardRange range() const { return range_; }
  const ShardSettings& settings() const { return settings_; }
  Store& store() { return *store_; }
  Rounds* rounds() { return rounds_.get(); }                 // null unless an update joins all
  GatheringRoom* gatherings() { return gatherings_.get(); }  // null but at shard 0
  Metrics& metrics() { return metrics_; }
  SnapshotRoom& snapshots() { return *snapshots_; }
  SavedBytes& saved() { return saved_; }

  // A session begins, with this channel. Returns the first round that waits for it.
  std::uint64_t session_came(std::uint32_t session);
  // The session has ended; its data loop may still be in serve().
  void session_ended(std::uint32_t session, SessionEnd how);
  // The rank will not come, or not come again. At shard 0.
  void excuse(std::uint32_t rank);
  // The channel that carries a session. It stays until its data loop has ended.
  void attach(std::uint32_t session, ServerChannel& channel) { outlets_.attach(session, channel); }
  void detach(std::uint32_t session) { outlets_.detach(session); }

  // Does what a request asks for, and replies. Returns false where the gradient was cut off, which changed nothing.
  // Throws Error(kProtocol) on a broken rule.
  bool serve(std::uint32_t session, const Request& request, ServerChannel& channel);

  // Replaces the schedule by this learning rate, which is checked. Where an update joins one push, those accepted before
  // the call are applied with the former one, and those accepted after it with the new one. In rounds, which only shard 0
  // may be told of, the round that closes next has it, at all shards. Throws Error(kProtocol) at another shard.
  void set_learning_rate(double learning_rate);

  // Returns once every push accepted before the call is settled, but for those of a round still open.
  void settle_accepted() const { pipeline_->settle_accepted(); }

  // All but what connections moved and which sessions have ended, which outlive the shard.
  ShardStatistics statistics() const;

 private:
  void prepare_round() override;
  void apply_round(const std::vector<PushRecord*>& members, const PushSettings& settings) override;
  void rates_differ(const std::string& what) override;
  Pin pin_newest() override { return store_->pin(); }
  void use_learning_rate(double learning_rate) override;
  void cut_before(std::uint64_t round, std::uint64_t key) override {
    snapshots_->cut_before(round, key, rounds_->set_rate());
  }

  const ShardSettings settings_;
  const Manifest manifest_;
  const std::vector<std::byte> encoded_manifest_;
  const ShardRange range_;
  LiveSessions& sessions_;
  std::unique_ptr<Store> store_;
  Metrics metrics_;
  Outlets outlets_;
  SavedBytes saved_;
  Settlement settlement_;
  InFlight in_flight_;
  std::unique_ptr<SnapshotRoom> snapshots_;
  std::unique_ptr<Rounds> rounds_;
  std::unique_ptr<GatheringRoom> gatherings_;
  std::unique_ptr<PushPipeline> pipeline_;
  bool told_that_rates_differ_ = false;  // used by the thread that closes a round, one at a time
};

}  // namespace distnet
