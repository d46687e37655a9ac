// The one accept point's record, and the bounded set of those in flight.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "server/session.h"
#include "store/bit_pool.h"
#include "store/store.h"

namespace distnet {

class Statistics;

// How a round ended for one push.
struct RoundOutcome {
  ErrorCode status = ErrorCode::kNone;
  std::uint64_t open_round = 0;  // the next one
  Pin pin;                       // of the version that the round made; only where status is kNone
};

// One accepted push. Written by the accept point; read by appliers, rounds, backpressure and statistics.
class PushRecord final : public Update {
 public:
  Session* session = nullptr;
  Statistics* statistics = nullptr;
  std::uint64_t push = 0;          // its sequence number in the session
  std::uint64_t base_version = 0;  // the version its gradient was computed from
  std::uint64_t round = 0;
  std::atomic<std::uint64_t>* orders = nullptr;  // the shard's count of acceptances
  std::uint64_t order = 0;                       // of acceptance, over all sessions of the shard
  GradientView payload;                          // none: the worker has no usable gradient this time
  std::uint32_t place = 0;                       // in the set
  std::optional<RoundOutcome> outcome;           // joins all: under the rounds' mutex

  // The accept point: its last byte is in memory that the server owns.
  void accept();
  void on_arrived() override { accept(); }
  void on_drafted(std::uint32_t buffer, std::uint64_t elements) override;
  void on_applied(std::uint64_t version_before) override;
  void refuse();  // settles it without an update

 private:
  void settle();
};

// Places for pushes in flight.
//
// Thread safety: any number of threads; take() and give_back() are lock-free while a place is free.
class InFlight {
 public:
  static constexpr std::uint32_t kPlaces = 8192;  // twice as many as connections: a push that arrives holds one, too

  InFlight();
  PushRecord& take();  // waits for a free place
  void give_back(PushRecord& record);

 private:
  static constexpr std::uint32_t kPoolPlaces = 64;

  std::vector<std::unique_ptr<BitPool>> pools_;
  std::unique_ptr<PushRecord[]> records_;
};

}  // namespace distnet
