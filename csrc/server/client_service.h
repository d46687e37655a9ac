// A client's whole conversation with this shard: the model where there is none yet, the session, its two loops, its end.
//
// Thread safety: serve() and bring() run on the thread of the client's control connection; any number at once.
#pragma once

#include <memory>

#include "server/data_streams.h"
#include "server/dormant_streams.h"
#include "server/live_sessions.h"
#include "server/model_reception.h"
#include "server/seat.h"
#include "server/shard_holder.h"
#include "server/traffic.h"

namespace distnet {

class ClientService {
 public:
  ClientService(ShardHolder& holder, LiveSessions& sessions, Memory& memory, Traffic& traffic)
      : holder_(holder), sessions_(sessions), memory_(memory), traffic_(traffic), model_(holder) {}

  void serve(Hello hello, const std::shared_ptr<ControlConnection>& control, bool within_host);
  void bring(const Bring& bring, ControlConnection& control) { model_.bring(bring, control); }
  void attach(const Attach& attach, Stream stream) { streams_.deliver(attach, std::move(stream)); }

  void model_was_given() { model_.was_given(); }
  void stop();

 private:
  void admit_by_grant(Hello& hello) const;
  Welcome describe_to(const Hello& hello, Shard& shard) const;
  void add_session(Welcome& welcome, const Hello& hello, const Carrying& carrying, Shard& shard) const;
  void open_channel(Seat& seat, ControlConnection& control, const Welcome& welcome);
  void serve_session(Seat& seat, Carrying& carrying, const Hello& hello, Welcome& welcome);
  std::optional<SessionEnd> end_session(Shard& shard, Carrying& carrying, SessionEnd how, bool may_return);
  SessionEnd run_loops(Seat& seat, Carrying& carrying, bool is_owner);
  bool is_owner(const Hello& hello) const;
  SavedBytes::Data saved_of(std::uint32_t session, Shard& shard) const;

  ShardHolder& holder_;
  LiveSessions& sessions_;
  Memory& memory_;
  Traffic& traffic_;
  DataStreams streams_;
  DormantStreams dormant_;
  ModelReception model_;
};

}  // namespace distnet
