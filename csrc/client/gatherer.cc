#include "client/gatherer.h"

#include <algorithm>

#include "base/error.h"

namespace distnet {

void Gatherer::arrive(GatherKind kind) {
  ask_ = {ask_.number + 1, kind};
  waits_ = true;
  link_.say(ControlKind::kGather, ask_.encode());
}

bool Gatherer::wait(const Deadline& deadline, const Interrupt& interrupt) {
  while (const std::optional<ControlMessage> message = link_.next_gathered(deadline, interrupt)) {
    const GatherVerdict verdict = GatherVerdict::decode(message->payload);
    if (verdict.number != ask_.number) {
      continue;  // it came too late for an older call
    }
    waits_ = false;
    least_round_ = std::max(least_round_, verdict.round);
    if (verdict.code == ErrorCode::kNone) {
      return true;
    }
    const std::string at = ask_.kind == GatherKind::kBarrier ? "the barrier" : "finish()";
    throw Error(verdict.code, verdict.code == ErrorCode::kDeadlineExceeded
                                  ? at + " has waited for its timeout; missing: " + verdict.text
                                  : at + " has failed: " + verdict.text);
  }
  return false;
}

void Gatherer::leave(const Interrupt& interrupt) {
  link_.say(ControlKind::kLeaveGathering, encode_number(ask_.number));
  if (!wait(Deadline::after(kAnswerSeconds), interrupt)) {
    throw Error(ErrorCode::kDeadlineExceeded, "the timeout passed, and shard 0 does not say who is missing");
  }
}

void Gatherer::give_up() noexcept {
  if (!waits_) {
    return;
  }
  try {
    link_.say(ControlKind::kLeaveGathering, encode_number(ask_.number));
    wait(Deadline::after(kGiveUpSeconds), {});
  } catch (...) {
    waits_ = false;  // the connection has ended, or this is the verdict: the call has told its own reason
  }
  waits_ = false;
}

}  // namespace distnet
