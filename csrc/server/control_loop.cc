#include "server/control_loop.h"

#include <array>

#include "base/error.h"
#include "base/waiting.h"
#include "transport/registry.h"

namespace distnet {

ControlLoop::ControlLoop(Shard& shard, LiveSessions& sessions, const Carrying& carrying, const ServerChannel& channel,
                         ControlConnection& control, bool is_owner, std::function<std::string()> stats_json)
    : shard_(shard),
      sessions_(sessions),
      carrying_(carrying),
      channel_(channel),
      control_(control),
      stats_json_(std::move(stats_json)),
      timeout_s_(sessions.entry(carrying.place).timeout_s),
      snapshot_(shard, control, is_owner, timeout_s_),
      process_(control.stream().watch_peer_process()) {}

// A message that the client left behind comes before its end.
ControlLoop::Wait ControlLoop::wait_for_message() {
  std::array<pollfd, 2> polled = {{{control_.stream().poll_fd(), POLLIN, 0}, {process_.get(), POLLIN, 0}}};
  const Deadline deadline = Deadline::after(timeout_s_);
  while (true) {
    poll_until(polled, deadline);
    if (polled[0].revents != 0) {
      return Wait::kMessage;
    }
    if (process_ && polled[1].revents != 0) {
      return Wait::kProcessEnded;
    }
    if (deadline.expired()) {
      return Wait::kSilent;
    }
  }
}

SessionEnd ControlLoop::run() {
  SessionEnd how = SessionEnd::kDone;
  try {
    Wait wait = Wait::kMessage;
    while ((wait = wait_for_message()) == Wait::kMessage) {
      const ControlMessage message = control_.receive(Deadline::after(timeout_s_));
      sessions_.heard(carrying_);
      if (!answer(message)) {
        return SessionEnd::kDone;
      }
    }
    how = wait == Wait::kProcessEnded ? SessionEnd::kDied : SessionEnd::kSilent;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kPeerClosed && error.code() != ErrorCode::kDeadlineExceeded) {
      throw;
    }
    how = error.code() == ErrorCode::kDeadlineExceeded ? SessionEnd::kSilent : SessionEnd::kDied;
  }
  return sessions_.stopping() ? SessionEnd::kStopped : how;
}

bool ControlLoop::answer(const ControlMessage& message) {
  switch (message.kind) {
    case ControlKind::kHeartbeat:
      control_.send(ControlKind::kProgress, channel_.progress().encode());
      return true;
    case ControlKind::kBuffer:
      pass_buffer(message);
      return true;
    case ControlKind::kStats: {
      Writer writer;
      writer.text(stats_json_());
      control_.send(ControlKind::kStatsReply, writer.take());
      return true;
    }
    case ControlKind::kGoodbye:
      return false;
    default:
      if (snapshot_.take(message)) {
        return true;
      }
      throw Error(ErrorCode::kProtocol, "a control message of an unknown kind");
  }
}

void ControlLoop::pass_buffer(const ControlMessage& message) {
  if (!transport_of(sessions_.entry(carrying_.place).transport).within_host) {
    throw Error(ErrorCode::kProtocol, "parameter buffers are passed to clients that share memory with the server");
  }
  Reader reader(message.payload);
  const auto index = reader.number<std::uint32_t>();
  reader.expect_end();
  Writer writer;
  writer.number(index);
  const int fd = shard_.store().buffer(index).fd();  // throws on an index that is none
  control_.send(ControlKind::kBufferReply, writer.take(), std::span(&fd, 1));
}

}  // namespace distnet
