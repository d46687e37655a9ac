// The control half of a session: heartbeats, questions, goodbye; and how the connection ends.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "server/allowance.h"
#include "server/data_loop.h"
#include "server/gathering_room.h"
#include "server/live_sessions.h"
#include "server/seat.h"
#include "server/snapshot_stream.h"
#include "transport/control.h"

namespace distnet {

class ControlLoop {
 public:
  ControlLoop(const Seat& seat, LiveSessions& sessions, const Carrying& carrying, ControlConnection& control,
              DataLoop& data, bool is_owner, std::function<std::string()> stats_json);

  // Answers until the connection ends. Throws Error where the client broke a rule.
  SessionEnd run();

 private:
  enum class Wait : std::uint8_t { kMessage, kProcessEnded, kSilent };

  Wait wait_for_message();
  // Returns false after a goodbye.
  bool answer(const ControlMessage& message);
  void set_learning_rate(const ControlMessage& message);
  void save(const ControlMessage& message);
  void count_question();
  void pause_after(ControlKind kind);
  void pass_buffer(const ControlMessage& message);
  void count_pass(std::uint32_t buffer);

  const Seat& seat_;
  Shard& shard_;
  LiveSessions& sessions_;
  const Carrying& carrying_;
  ControlConnection& control_;
  DataLoop& data_;
  const bool is_owner_;
  const std::function<std::string()> stats_json_;
  const double timeout_s_;
  SnapshotStream snapshot_;
  GatheringGuest gatherings_;
  Allowance allowance_;
  std::uint64_t accepted_when_rate_was_set_ = 0;
  std::vector<std::uint8_t> passes_;  // of each buffer to this client
};

}  // namespace distnet
