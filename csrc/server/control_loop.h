// The control half of a session: heartbeats, questions, goodbye; and how the connection ends.
#pragma once

#include <functional>
#include <string>

#include "server/live_sessions.h"
#include "server/shard.h"
#include "server/snapshot_stream.h"
#include "transport/channel.h"
#include "transport/control.h"

namespace distnet {

class ControlLoop {
 public:
  ControlLoop(Shard& shard, LiveSessions& sessions, const Carrying& carrying, const ServerChannel& channel,
              ControlConnection& control, bool is_owner, std::function<std::string()> stats_json);

  // Answers until the connection ends. Throws Error where the client broke a rule.
  SessionEnd run();

 private:
  enum class Wait : std::uint8_t { kMessage, kProcessEnded, kSilent };

  Wait wait_for_message();
  // Returns false after a goodbye.
  bool answer(const ControlMessage& message);
  void pass_buffer(const ControlMessage& message);

  Shard& shard_;
  LiveSessions& sessions_;
  const Carrying& carrying_;
  const ServerChannel& channel_;
  ControlConnection& control_;
  const std::function<std::string()> stats_json_;
  const double timeout_s_;
  SnapshotStream snapshot_;
  const FileDescriptor process_;  // of the client, where it is on this host
};

}  // namespace distnet
