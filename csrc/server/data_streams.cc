#include "server/data_streams.h"

#include <utility>

#include "base/error.h"

namespace distnet {

void DataStreams::expect(const Attach& attach) {
  const std::lock_guard lock(mutex_);
  expected_[attach.session] = {attach.secret, {}};
}

Stream DataStreams::take(const Attach& attach, const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  Expected& expected = expected_[attach.session];
  changed_.wait_until(lock, deadline, [&] { return stopping_ || static_cast<bool>(expected.stream); });
  Stream stream = std::move(expected.stream);
  expected_.erase(attach.session);
  if (!stream || stopping_) {
    throw Error(ErrorCode::kPeerClosed, "the client never opened its data connection");
  }
  return stream;
}

void DataStreams::forget(const Attach& attach) {
  const std::lock_guard lock(mutex_);
  expected_.erase(attach.session);
}

void DataStreams::deliver(const Attach& attach, Stream stream) {
  const std::lock_guard lock(mutex_);
  const auto found = expected_.find(attach.session);
  if (found != expected_.end() && found->second.secret == attach.secret && !found->second.stream) {
    found->second.stream = std::move(stream);
    changed_.notify_all();
  }
}

void DataStreams::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

}  // namespace distnet
