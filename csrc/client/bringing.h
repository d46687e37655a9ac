// How a client brings the model to servers that were started without one: shard 0 names it, then every shard gets its
// share, then shard 0 hears that all have theirs. Nobody uses the model before.
#pragma once

#include <optional>
#include <vector>

#include "transport/address.h"
#include "transport/control.h"
#include "wire/brought_optimizer.h"

namespace distnet {

// What a client may bring: one pointer a tensor, which stay in place until the client has connected.
struct InitialParameters {
  Manifest manifest;
  std::span<const float* const> tensors;
  std::optional<BroughtOptimizer> optimizer = {};  // for servers that were told of none
};

// Goes on from shard 0's NeedParameters to the point where its welcome comes next, for as long as it takes: a shard is
// given up when it is silent and takes nothing for `silence_s`. `shards`: the addresses of all.
// Throws Error: of the connections, and kConfig where a shard does not take its share.
void bring_model(ControlConnection& to_shard_0, const BringGrant& grant, const ClientId& id,
                 const InitialParameters& initial, const std::vector<Address>& shards, double silence_s,
                 const Interrupt& interrupt);

}  // namespace distnet
