// The path of a request through a shard: accept, apply, settle, reply, in the order that the policy asks for.
//
// Thread safety: one thread serves one session's requests; any number of sessions are served at once.
#pragma once

#include "server/in_flight.h"
#include "server/live_sessions.h"
#include "server/metrics.h"
#include "server/rounds/rounds.h"
#include "server/settlement.h"
#include "server/shard_settings.h"
#include "store/store.h"
#include "transport/channel.h"

namespace distnet {

class PushPipeline {
 public:
  PushPipeline(const ShardSettings& settings, Store& store, LiveSessions& sessions, InFlight& in_flight,
               Settlement& settlement, Outlets& outlets, Metrics& metrics, Rounds* rounds, std::uint64_t floats)
      : settings_(settings),
        store_(store),
        sessions_(sessions),
        in_flight_(in_flight),
        settlement_(settlement),
        outlets_(outlets),
        metrics_(metrics),
        rounds_(rounds),
        floats_(floats) {}

  // Returns false where the gradient was cut off, which changed nothing. Throws Error(kProtocol) on a broken rule.
  bool serve(std::uint32_t session, const Request& request, ServerChannel& channel);

  // Returns once every push accepted before the call is settled, but for those of a round still open.
  void settle_accepted() const;

 private:
  class Place;
  enum class Delivery : std::uint8_t { kNone, kPartial, kWhole };
  // Parameters that set out before the reply.
  struct Ahead {
    Delivery delivery = Delivery::kNone;
    std::uint64_t version = 0;
    std::uint32_t delivered = 0;  // in kDeliveredFloats
    Pin pin;                      // of what is there only partly
  };

  void check(std::uint32_t session, const Request& request) const;
  void settle_previous(const Ledger& ledger) const;
  void check_settings(const Request& request) const;
  void pull(std::uint32_t session, const Request& request, ServerChannel& channel);
  void abstain(PushRecord& record, std::uint32_t session, const Request& request, ServerChannel& channel);
  bool push_into_round(PushRecord& record, std::uint32_t session, const Request& request, ServerChannel& channel);
  void say_why_rounds_ended(std::uint32_t session);
  bool push_then_reply(PushRecord& record, std::uint32_t session, const Request& request, ServerChannel& channel);
  bool reply_then_push(PushRecord& record, std::uint32_t session, const Request& request, ServerChannel& channel);
  void reply_first(PushRecord& record, std::uint32_t session, const Request& request, ServerChannel& channel,
                   Ahead ahead, Arrival::State state);

  PushRecord& begin(std::uint32_t session, const Request& request);
  Arrival::State arrive(const Request& request) const;
  Arrival::State arrive_checked(PushRecord& record, const Request& request) const;
  Arrival::State accept_and_apply(PushRecord& record, const Request& request);
  void apply(PushRecord& record);
  Ahead deliver_ahead(const Request& request, ServerChannel& channel);
  std::uint64_t copy_while(Arrival& arriving, float* to, const float* from) const;
  Reply reply_to(const Request& request, std::uint32_t session, Pin pin) const;

  const ShardSettings& settings_;
  Store& store_;
  LiveSessions& sessions_;
  InFlight& in_flight_;
  Settlement& settlement_;
  Outlets& outlets_;
  Metrics& metrics_;
  Rounds* const rounds_;
  const std::uint64_t floats_;
};

}  // namespace distnet
