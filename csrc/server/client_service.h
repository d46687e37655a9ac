// A client's whole conversation with this shard: the model where there is none yet, the session, its two loops, its end.
//
// Thread safety: serve() and bring() run on the thread of the client's control connection; any number at once.
#pragma once

#include <memory>

#include "server/data_streams.h"
#include "server/live_sessions.h"
#include "server/model_claim.h"
#include "server/shard.h"
#include "server/traffic.h"
#include "transport/registry.h"

namespace distnet {

// What clients' conversations ask of the server around the shard.
class ShardHolder {
 public:
  virtual ~ShardHolder() = default;
  virtual const ShardSettings& settings() const = 0;
  // The shard with this model. Throws Error(kProtocol) where it is not here.
  virtual Shard& shard_with(std::uint64_t model) = 0;
  virtual std::uint64_t model() const = 0;  // 0: there is none yet
  // Names a model that a client is going to bring: a higher number than any before.
  virtual std::uint64_t name_model() = 0;
  // This shard's share of the model is here; at shards other than the first it is used once a client comes with shard
  // 0's word that all have theirs.
  virtual void take_share(std::uint64_t model, const Initial& initial, std::vector<float> values) = 0;
  virtual ProbeReply describe() const = 0;
  virtual std::string stats_json() = 0;
};

class ClientService {
 public:
  ClientService(ShardHolder& holder, LiveSessions& sessions, Memory& memory, Traffic& traffic)
      : holder_(holder), sessions_(sessions), memory_(memory), traffic_(traffic) {}

  void serve(Hello hello, const std::shared_ptr<ControlConnection>& control, bool within_host);
  void bring(const Bring& bring, ControlConnection& control);
  void attach(const Attach& attach, Stream stream) { streams_.deliver(attach, std::move(stream)); }

  ModelClaim& claim() { return claim_; }
  void stop();

 private:
  void have_a_model(const Hello& hello, ControlConnection& control);
  void receive_share(std::uint64_t model, ControlConnection& control, const Deadline& deadline);
  void wait_until_brought(ControlConnection& control, double timeout_s) const;
  void admit_by_grant(Hello& hello) const;
  Welcome welcome_for(Shard& shard, const Hello& hello, const Carrying& carrying, std::uint64_t round) const;
  std::unique_ptr<ServerChannel> open_channel(Shard& shard, const Hello& hello, const Welcome& welcome,
                                              ControlConnection& control);
  void serve_session(Shard& shard, const Hello& hello, Carrying& carrying);
  std::optional<SessionEnd> end_session(Shard& shard, Carrying& carrying, SessionEnd how, bool may_return);
  SessionEnd run_loops(Shard& shard, Carrying& carrying, ServerChannel& channel, bool is_owner);
  bool is_owner(const Hello& hello) const;

  ShardHolder& holder_;
  LiveSessions& sessions_;
  Memory& memory_;
  Traffic& traffic_;
  DataStreams streams_;
  ModelClaim claim_;
};

}  // namespace distnet
