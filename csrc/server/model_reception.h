// How the model comes to a server that was started without one: shard 0 names one client, and takes its share of it when
// every other shard has its own.
//
// The bytes may take as long as they need, at a least rate: 64 KiB, or what is left, in any ten seconds. A client that
// falls behind that is given up, and the next that offers is asked.
//
// Thread safety: the methods run on the threads of the clients' control connections; any number at once.
#pragma once

#include "server/model_claim.h"
#include "server/shard_holder.h"
#include "transport/control.h"

namespace distnet {

class ModelReception {
 public:
  explicit ModelReception(ShardHolder& holder) : holder_(holder) {}

  // Sees to it that shard 0 has a model: brought by this client, or by another that it waits for.
  // `patience_s`: how long the client waits in silence, until its welcome.
  void have_a_model(const Hello& hello, ControlConnection& control, double patience_s);
  // A shard other than the first takes its share from whom shard 0 named.
  void bring(const Bring& bring, ControlConnection& control);

  // The server was given the model by its owner.
  void was_given() { claim_.brought(); }
  void stop() { claim_.stop(); }

 private:
  void receive_share(std::uint64_t model, ControlConnection& control);
  Initial receive_initial(ControlConnection& control) const;

  ShardHolder& holder_;
  ModelClaim claim_;
};

}  // namespace distnet
