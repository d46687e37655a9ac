// A shard behind its door: starts and ends its rooms in order. What happens in between is theirs.
//
// Thread safety: start() and stop() from one thread; everything else from any.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "front/door.h"
#include "front/group_host.h"
#include "server/client_service.h"
#include "server/rounds/coordinator.h"

namespace distnet {

class ShardServer final : private Host, private ShardHolder, private RoundsEnded {
 public:
  // `listen`: where clients find the shard; a TCP server also listens at a local name, for clients of its own host.
  ShardServer(ShardSettings settings, const Address& listen);
  ShardServer(const ShardServer&) = delete;
  ShardServer& operator=(const ShardServer&) = delete;
  ~ShardServer() override;

  std::string address() const { return address_.text(); }

  // Gives the shard its parameters; otherwise a client brings them. At most once.
  void initialise(const Manifest& manifest, ShardRange range, std::span<const float> initial,
                  const RestoredState* restored = nullptr);
  // `directory`: what clients are told of where all shards are, comma-joined, shard 0 first. `leader`: where shard 0
  // listens, for the other shards.
  void set_directory(const std::string& directory, const Address& leader);
  void start();
  // Has these conversations with the members of groups. Before start().
  void host_groups(std::unique_ptr<GroupHost> groups) { groups_ = std::move(groups); }
  // This rank will not come, or not come again: neither rounds nor gatherings wait for it until it does. At shard 0, also
  // before there are parameters. Throws Error(kConfig) for a rank out of range.
  void excuse(std::uint32_t rank);
  // Takes no more requests, finishes and answers those in hand, applies all that was accepted, and closes.
  void stop();

  // Throw Error(kConfig) while the shard has no parameters.
  Shard& shard();
  std::uint64_t read(std::span<float> out, bool ema);
  ShardStatistics statistics();
  std::string stats_json() override { return statistics().json(); }
  // What bounds the shard's memory: the terms of MemoryTerms, what is held of it now, and the most sessions so far.
  // Throws Error(kConfig) while the shard has no parameters.
  std::string memory_json();
  bool initialised() const;

 private:
  struct Share {
    std::uint64_t model = 0;
    Initial initial;
    std::vector<float> values;
  };

  // Host
  ProbeReply describe() const override;
  void serve(Handshake::Step step, Visitor& visitor) override;
  void attach(const Attach& attach, Stream stream) override { clients_.attach(attach, std::move(stream)); }
  // ShardHolder
  const ShardSettings& settings() const override { return settings_; }
  Shard& shard_with(std::uint64_t model) override;
  std::uint64_t model() const override;
  std::uint64_t name_model() override;
  void take_share(std::uint64_t model, const Initial& initial, std::vector<float> values) override;
  // RoundsEnded
  void rounds_ended(const std::string& why) override;

  void make_shard(std::uint64_t model, const ShardSettings& settings, const Manifest& manifest, ShardRange range,
                  std::span<const float> initial, const RestoredState* restored = nullptr);
  void follow(const Follow& follow, const std::shared_ptr<ControlConnection>& control);
  void begin_to_follow();
  RoundPeers& peers();

  const ShardSettings settings_;
  const std::uint64_t nonce_[2];
  const int process_;
  Memory memory_;
  Traffic traffic_;
  LiveSessions sessions_;
  ClientService clients_;
  RoundLeader leader_;
  RoundFollower follower_;
  std::unique_ptr<GroupHost> groups_;  // null: it hosts none
  Address address_;
  std::string local_name_;
  bool stopped_ = false;

  mutable Mutex mutex_;  // guards what follows
  Condition changed_;
  std::unique_ptr<Shard> shard_;
  std::uint64_t model_ = 0;
  std::uint64_t models_named_ = 0;
  std::shared_ptr<const Share> share_;  // that came, and is not used yet
  std::string directory_;
  std::set<std::uint32_t> excused_;  // before there was a shard to tell
  std::optional<Address> leader_address_;
  bool started_ = false;
  bool follows_ = false;
  bool stopping_ = false;

  Door door_;  // last: its threads use all the others
};

}  // namespace distnet
