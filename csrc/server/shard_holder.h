// What clients' conversations ask of the server around the shard.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "server/shard.h"
#include "wire/control_messages.h"

namespace distnet {

// Thread safety: all methods, from any number of threads.
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

}  // namespace distnet
