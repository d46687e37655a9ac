#include "server/control_loop.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "base/threads.h"
#include "base/waiting.h"
#include "wire/client_messages.h"

namespace distnet {
namespace {

// A client sends heartbeats, asks for counters, and for a buffer now and then.
constexpr double kMostQuestionsAtOnce = 256.0;
constexpr double kMostQuestionsPerSecond = 64.0;
constexpr std::uint8_t kMostPasses = 2;  // of one buffer: the client keeps what it has mapped

bool is_question(ControlKind kind) {
  return kind == ControlKind::kHeartbeat || kind == ControlKind::kWake || kind == ControlKind::kStats ||
         kind == ControlKind::kBuffer || kind == ControlKind::kGather || kind == ControlKind::kLeaveGathering ||
         kind == ControlKind::kAwaited || kind == ControlKind::kWhyAborted;
}

}  // namespace

ControlLoop::ControlLoop(const Seat& seat, LiveSessions& sessions, const Carrying& carrying, ControlConnection& control,
                         DataLoop& data, bool is_owner, std::function<std::string()> stats_json)
    : seat_(seat),
      shard_(seat.shard),
      sessions_(sessions),
      carrying_(carrying),
      control_(control),
      data_(data),
      is_owner_(is_owner),
      stats_json_(std::move(stats_json)),
      timeout_s_(sessions.entry(carrying.place).timeout_s),
      snapshot_(shard_, control, is_owner, timeout_s_),
      gatherings_(shard_.gatherings(),
                  {sessions.entry(carrying.place).rank, sessions.entry(carrying.place).incarnation},
                  sessions.entry(carrying.place).role, carrying.control),
      allowance_(kMostQuestionsAtOnce, kMostQuestionsPerSecond, now()) {}

// A message that the client left behind comes before its end. A thread that looks late cannot tell whether the client was
// silent or nothing ran here, and gives it the time of another heartbeat.
ControlLoop::Wait ControlLoop::wait_for_message() {
  std::array<pollfd, 2> polled = {{{control_.stream().poll_fd(), POLLIN, 0}, {seat_.process.get(), POLLIN, 0}}};
  const double interval_s = heartbeat_interval_s(timeout_s_);
  Deadline deadline = Deadline::after(timeout_s_);
  while (true) {
    poll_until(polled, deadline);
    if (polled[0].revents != 0) {
      return Wait::kMessage;
    }
    if (seat_.process && polled[1].revents != 0) {
      return Wait::kProcessEnded;
    }
    if (deadline.expired()) {
      if (now() - deadline.at() < std::chrono::duration<double>(interval_s)) {
        return Wait::kSilent;
      }
      deadline = Deadline::after(interval_s);
    }
  }
}

SessionEnd ControlLoop::run() {
  SessionEnd how = SessionEnd::kDone;
  try {
    Wait wait = Wait::kMessage;
    while ((wait = wait_for_message()) == Wait::kMessage) {
      const ControlMessage message = control_.receive_by_kind(Deadline::after(timeout_s_), most_question_bytes);
      sessions_.heard(carrying_);
      if (!answer(message)) {
        return SessionEnd::kDone;
      }
      pause_after(message.kind);
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

void ControlLoop::pause_after(ControlKind kind) {
  if (is_question(kind)) {
    count_question();
  }
}

// A client that asks too often is not read for a while.
void ControlLoop::count_question() {
  const Clock::duration pause = allowance_.spend(now());
  if (pause > Clock::duration{}) {
    sleep_for(pause);
  }
}

bool ControlLoop::answer(const ControlMessage& message) {
  switch (message.kind) {
    case ControlKind::kHeartbeat:
      control_.send(ControlKind::kProgress, seat_.channel->progress().encode());
      return true;
    case ControlKind::kWake:
      data_.wake();
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
    case ControlKind::kSetLearningRate:
      set_learning_rate(message);
      return true;
    case ControlKind::kSave:
      save(message);
      return true;
    case ControlKind::kGoodbye:
      return false;
    default:
      if (snapshot_.take(message) || gatherings_.take(message)) {
        return true;
      }
      throw Error(ErrorCode::kProtocol, "a control message of an unknown kind");
  }
}

// One for each push is no question, because it comes as often as pushes do: only those that no push parts count.
void ControlLoop::set_learning_rate(const ControlMessage& message) {
  const SessionEntry& entry = sessions_.entry(carrying_.place);
  if (!is_owner_ && (entry.role != Role::kWorker || entry.rank != 0)) {
    throw Error(ErrorCode::kUnauthorized, "rank 0 or the owner of the server sets the learning rate, nobody else");
  }
  shard_.set_learning_rate(SetLearningRate::decode(message.payload).learning_rate);
  control_.send(ControlKind::kLearningRateSet);
  const std::uint64_t accepted = entry.ledger.accepted.load(std::memory_order_relaxed);  // orders nothing: it paces
  if (std::exchange(accepted_when_rate_was_set_, accepted) == accepted) {
    count_question();
  }
}

// One for each push is no question, because it comes as often as pushes do: only those that replace another count.
void ControlLoop::save(const ControlMessage& message) {
  if (sessions_.entry(carrying_.place).role != Role::kWorker || shard_.settings().shard != 0) {
    throw Error(ErrorCode::kProtocol, "bytes to save from an observer, or at another shard than the first");
  }
  Save save = Save::decode(message.payload);
  const SavedBytes::Kept kept = shard_.saved().keep(carrying_.place, save.push, std::move(save.data));
  control_.send(ControlKind::kSaveAnswer, SaveAnswer{kept.why_not}.encode());
  if (kept.replaced || !kept.why_not.empty()) {
    count_question();
  }
}

// Descriptors on their way to a client that does not read count against all that the server's user may have so.
void ControlLoop::count_pass(std::uint32_t buffer) {
  if (buffer >= passes_.size()) {
    passes_.resize(buffer + 1);
  }
  if (++passes_[buffer] > kMostPasses) {
    throw Error(ErrorCode::kProtocol, "a client asks for parameter buffer " + std::to_string(buffer) +
                                          " again and again; it keeps what it has mapped");
  }
}

void ControlLoop::pass_buffer(const ControlMessage& message) {
  if (!seat_.transport.within_host) {
    throw Error(ErrorCode::kProtocol, "parameter buffers are passed to clients that share memory with the server");
  }
  Reader reader(message.payload);
  const auto index = reader.number<std::uint32_t>();
  reader.expect_end();
  const int fd = shard_.store().buffer(index).fd();  // throws on an index that is none
  count_pass(index);
  Writer writer;
  writer.number(index);
  control_.send(ControlKind::kBufferReply, writer.take(), std::span(&fd, 1));
}

}  // namespace distnet
