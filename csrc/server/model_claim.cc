#include "server/model_claim.h"

#include <algorithm>
#include <optional>

#include "base/error.h"

namespace distnet {
namespace {

constexpr double kSendSeconds = 1.0;  // a client that waits has little else to read

Notice why_it_waits(bool claimed) {
  return claimed
             ? Notice{Notice::Kind::kModelComes, "receives the model from another client"}
             : Notice{Notice::Kind::kModelAwaited, "has no model yet: rank 0 brings it, with connect(parameters=...)"};
}

}  // namespace

std::optional<ModelClaim::Outcome> ModelClaim::outcome(const Waiter& waiter) const {
  if (stopping_) {
    throw Error(ErrorCode::kPeerClosed, "the server stops");
  }
  if (there_) {
    return Outcome::kThere;
  }
  return waiter.chosen ? std::optional(Outcome::kYours) : std::nullopt;
}

ModelClaim::Outcome ModelClaim::wait(bool offers, ControlConnection& client, double timeout_s) {
  Lock lock(mutex_);
  if (there_) {
    return Outcome::kThere;
  }
  const auto self = waiting_.emplace(waiting_.end());
  self->offers = offers;
  choose_next();
  try {
    const Outcome ended = wait_for_outcome(lock, *self, client, timeout_s);
    waiting_.erase(self);
    return ended;
  } catch (...) {
    if (!lock.owns_lock()) {
      lock.lock();
    }
    if (self->chosen) {
      claimed_ = false;
    }
    waiting_.erase(self);
    choose_next();
    throw;
  }
}

// Gives up the lock while it waits, also where it throws.
ModelClaim::Outcome ModelClaim::wait_for_outcome(Lock& lock, const Waiter& self, ControlConnection& client,
                                                 double timeout_s) {
  Deadline deadline = Deadline::after(0.9 * timeout_s);
  std::optional<bool> told;  // that another client brings it
  while (true) {
    if (const std::optional<Outcome> ended = outcome(self)) {
      return *ended;
    }
    const bool claimed = claimed_;
    lock.unlock();
    if (told != claimed) {
      client.send(ControlKind::kNotice, why_it_waits(claimed).encode(), {}, Deadline::after(kSendSeconds));
      told = claimed;
    }
    if (claimed) {
      client.send(ControlKind::kHeartbeat, {}, {}, Deadline::after(kSendSeconds));
      deadline = Deadline::after(0.9 * timeout_s);
    } else if (deadline.expired()) {
      throw Error(ErrorCode::kDeadlineExceeded,
                  "the server has no parameters, and no client of rank 0 brought them in time; pass "
                  "connect(parameters=...) in rank 0, or start the server with them");
    }
    const Deadline next_look = Deadline::after(heartbeat_interval_s(timeout_s));
    self.bell.wait(client, next_look.at() < deadline.at() ? next_look : deadline);
    lock.lock();
  }
}

void ModelClaim::choose_next() {
  const auto next = std::ranges::find(waiting_, true, &Waiter::offers);
  if (claimed_ || there_ || next == waiting_.end()) {
    return;
  }
  claimed_ = next->chosen = true;
  next->bell.ring();
}

void ModelClaim::ring_all() {
  for (const Waiter& waiter : waiting_) {
    waiter.bell.ring();
  }
}

void ModelClaim::brought() {
  const std::lock_guard lock(mutex_);
  there_ = true;
  ring_all();
}

void ModelClaim::give_up() {
  const std::lock_guard lock(mutex_);
  claimed_ = false;
  choose_next();
}

void ModelClaim::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  ring_all();
}

}  // namespace distnet
