// The bytes of all sessions of a shard, those over included.
//
// Thread safety: all methods, from any number of threads.
#pragma once

#include <set>

#include "base/waiting.h"
#include "transport/channel.h"

namespace distnet {

class Traffic {
 public:
  struct Bytes {
    std::uint64_t received = 0;
    std::uint64_t sent = 0;
  };

  // Counts a channel until it is removed, and what it moved for ever.
  void add(const ServerChannel& channel) {
    const std::lock_guard lock(mutex_);
    channels_.insert(&channel);
  }
  void remove(const ServerChannel& channel) {
    const std::lock_guard lock(mutex_);
    ended_.received += channel.bytes_received();
    ended_.sent += channel.bytes_sent();
    channels_.erase(&channel);
  }
  Bytes total() const {
    const std::lock_guard lock(mutex_);
    Bytes bytes = ended_;
    for (const ServerChannel* const channel : channels_) {
      bytes.received += channel->bytes_received();
      bytes.sent += channel->bytes_sent();
    }
    return bytes;
  }

 private:
  mutable Mutex mutex_;
  std::set<const ServerChannel*> channels_;
  Bytes ended_;
};

}  // namespace distnet
