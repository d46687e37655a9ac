// One shard: a store, the policy, the sessions' ledger, the one accept point. No I/O, no framework, no other shards.
//
// Thread safety: all methods, from any number of threads; the methods that take a session only from that session's data
// thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/tuning.h"
#include "server/in_flight.h"
#include "server/metrics.h"
#include "server/policy.h"
#include "server/rounds/rounds.h"
#include "server/session.h"
#include "store/store.h"
#include "wire/format.h"
#include "wire/manifest.h"

namespace distnet {

struct ShardSettings {
  UpdatePolicy policy;
  OptimizerSpec optimizer;
  ScheduleSpec schedule;
  double clip_value = 0.0;
  double clip_norm = 0.0;      // by the client, over its whole gradient
  double average_decay = 0.0;  // 0: no moving average
  // Settings of the tensors whose names match a shell pattern; the first that matches counts.
  struct Group {
    std::string pattern;
    double rate_multiplier = 1.0;
    std::optional<double> weight_decay;  // none: the optimizer's own
  };
  std::vector<Group> groups;
  std::uint32_t shard = 0;  // this one's place among `shards`; 0 leads the rounds
  std::uint32_t shards = 1;
  FormatSpec push_format;  // how gradients and parameters travel over TCP
  FormatSpec pull_format;
  std::uint64_t job_secret = 0;  // by which the shards of one job know each other; 0: none is known
  Tuning tuning;
};

class Shard {
 public:
  // `initial`: range.size() floats. `report`, `announce`: see RoundsHooks.
  Shard(const ShardSettings& settings, const Manifest& manifest, ShardRange range, std::span<const float> initial,
        RoundsHooks round_hooks);

  const Manifest& manifest() const { return manifest_; }
  ShardRange range() const { return range_; }
  const ShardSettings& settings() const { return settings_; }
  Store& store() { return *store_; }
  Rounds& rounds() { return *rounds_; }
  bool joins_all() const { return settings_.policy.joins == Joins::kAll; }

  // Throws Error(kConfig) where the session's rank has no place in the rounds.
  void session_came(Session& session);
  // The client is gone; its data thread may still be in handle().
  void session_ending(const Session& session, SessionEnd how);
  // … and is not any more.
  void session_left(const Session& session);

  // A request as it came.
  struct Asked {
    RequestHeader header;
    const float* gradient = nullptr;   // null: none
    const Decoder* decoder = nullptr;  // reads the gradient; null: it is floats
    Arrival* arriving = nullptr;       // while the gradient is not there in full; else null
    float* replica = nullptr;          // where the client wants the parameters, if they can be put there; else null
    // Puts pinned parameters on their way ahead of the reply, and unpins them when they have left. Empty: not asked
    // for.
    std::function<void(Pin)> send_ahead;
  };

  // What to answer a request, and what to do around the answer.
  struct Answer {
    ReplyHeader header;
    Pin pin;
    bool wanted = false;                      // the reply has parameters
    bool pinned = false;                      // … which lie at `pin`
    bool delivered = false;                   // … all of which the client has already, or will before the reply
    bool drafted = false;                     // … and are what on_drafted() told of as they came to be
    PushRecord* apply_after_reply = nullptr;  // reply first: hand it to apply() then
  };

  // The one accept point and the policy behind it. Nothing: the gradient was cut off, and changed nothing. Throws
  // Error(kProtocol) on a broken sequence.
  std::optional<Answer> handle(Session& session, const Asked& asked);
  void apply(PushRecord& record);

  // Returns once every push accepted before the call is settled, but for those of a round still open.
  void settle_accepted();

  Statistics& statistics() { return statistics_; }
  std::string stats_json() const;

 private:
  void check(const Session& session, const Asked& asked) const;
  void apply(PushRecord& record, Answer& answer);
  static void take_pin(PushRecord& record, Answer& answer);
  PushRecord& prepare(Session& session, const Asked& asked);
  bool take_push(PushRecord& record, const Asked& asked, Answer& answer);
  bool apply_arriving(PushRecord& record, Arrival& arriving, Answer& answer);
  void deliver_ahead(const Asked& asked, Answer& answer);
  std::uint64_t copy_while(Arrival& arriving, float* to, const float* from) const;
  void settle_previous(Session& session);
  void apply_round(const std::vector<PushRecord*>& members);
  RoundOutcome join_round(PushRecord& record);
  bool is_settled(std::uint64_t session, std::uint64_t push) const;
  void collect_released();
  void fill(Answer& answer, const Session& session, const RequestHeader& request) const;

  const ShardSettings settings_;
  const Manifest manifest_;
  const ShardRange range_;
  Memory memory_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Rounds> rounds_;  // joins all; else null
  InFlight in_flight_;
  Statistics statistics_;
  std::atomic<std::uint64_t> order_{0};

  mutable std::mutex sessions_mutex_;  // guards the table, never held while an update is applied
  std::map<std::uint64_t, Session*> sessions_;
};

}  // namespace distnet
