#include "server/data_streams.h"

#include <utility>

#include "base/error.h"

namespace distnet {

void DataStreams::expect(const Attach& attach, Bell bell) {
  const std::lock_guard lock(mutex_);
  expected_.insert_or_assign(attach.session, Expected{attach.secret, std::move(bell), {}});
  if (stopping_) {
    expected_.at(attach.session).bell.ring();
  }
}

Stream DataStreams::take(const Attach& attach, const ControlConnection& client, const Deadline& deadline) {
  const Bell* bell = nullptr;
  {
    const std::lock_guard lock(mutex_);
    bell = &expected_.at(attach.session).bell;
  }
  try {
    bell->wait(client, deadline);
  } catch (...) {
    forget(attach);
    throw;
  }
  Stream stream = end(attach);
  if (!stream) {
    throw Error(ErrorCode::kPeerClosed, "the client never opened its data connection");
  }
  return stream;
}

Stream DataStreams::end(const Attach& attach) {
  const std::lock_guard lock(mutex_);
  const auto found = expected_.find(attach.session);
  Stream stream = stopping_ || found == expected_.end() ? Stream() : std::move(found->second.stream);
  expected_.erase(attach.session);
  return stream;
}

void DataStreams::forget(const Attach& attach) { static_cast<void>(end(attach)); }

void DataStreams::deliver(const Attach& attach, Stream stream) {
  const std::lock_guard lock(mutex_);
  const auto found = expected_.find(attach.session);
  if (found != expected_.end() && found->second.secret == attach.secret && !found->second.stream) {
    found->second.stream = std::move(stream);
    found->second.bell.ring();
  }
}

void DataStreams::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  for (const auto& [session, expected] : expected_) {
    expected.bell.ring();
  }
}

}  // namespace distnet
