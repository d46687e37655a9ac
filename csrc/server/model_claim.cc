#include "server/model_claim.h"

#include "base/error.h"

namespace distnet {

ModelClaim::Outcome ModelClaim::wait(bool offers, const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  const bool over = changed_.wait_until(lock, deadline, [&] { return there_ || stopping_ || (offers && !claimed_); });
  if (stopping_) {
    throw Error(ErrorCode::kPeerClosed, "the server stops");
  }
  if (!over) {
    throw Error(ErrorCode::kDeadlineExceeded,
                "the server has no parameters, and no client of rank 0 brought them in time; pass "
                "connect(parameters=...) in rank 0, or start the server with them");
  }
  if (there_) {
    return Outcome::kThere;
  }
  claimed_ = true;
  return Outcome::kYours;
}

void ModelClaim::brought() {
  const std::lock_guard lock(mutex_);
  there_ = true;
  changed_.notify_all();
}

void ModelClaim::give_up() {
  const std::lock_guard lock(mutex_);
  claimed_ = false;
  changed_.notify_all();
}

void ModelClaim::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

}  // namespace distnet
