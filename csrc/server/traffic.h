// The bytes of all sessions of a shard, those over included.
//
// Thread safety: all methods, from any number of threads.
#pragma once

#include <set>

#include "base/waiting.h"
#include "transport/channel.h"
#include "wire/statistics.h"

namespace distnet {

class Traffic {
 public:
  // Counts a channel until it is removed, and what it moved for ever.
  void add(const ServerChannel& channel) {
    const std::lock_guard lock(mutex_);
    channels_.insert(&channel);
  }
  void remove(const ServerChannel& channel) {
    const std::lock_guard lock(mutex_);
    ended_.bytes_received += channel.bytes_received();
    ended_.bytes_sent += channel.bytes_sent();
    channels_.erase(&channel);
  }
  ConnectionStatistics total() const {
    const std::lock_guard lock(mutex_);
    ConnectionStatistics bytes = ended_;
    for (const ServerChannel* const channel : channels_) {
      bytes.bytes_received += channel->bytes_received();
      bytes.bytes_sent += channel->bytes_sent();
    }
    return bytes;
  }

 private:
  mutable Mutex mutex_;
  std::set<const ServerChannel*> channels_;
  ConnectionStatistics ended_;
};

}  // namespace distnet
