// Watches the data streams of sessions that ask for nothing at the moment: one thread for all of a shard.
//
// Thread safety: all methods, from any number of threads.
#pragma once

#include <map>

#include "base/descriptor.h"
#include "base/threads.h"
#include "base/waiting.h"

namespace distnet {

class DormantStreams {
 public:
  class Sleeper {
   public:
    virtual void wake() = 0;  // on the watching thread; throws nothing and does not wait for long

   protected:
    virtual ~Sleeper() = default;
  };

  DormantStreams();
  DormantStreams(const DormantStreams&) = delete;
  DormantStreams& operator=(const DormantStreams&) = delete;
  ~DormantStreams();

  // Wakes the sleeper once, when its stream can be read or has ended. Throws what the start of a thread throws.
  void add(Sleeper& sleeper, int fd);
  // Afterwards the sleeper is not woken any more, and nobody is about to.
  void remove(Sleeper& sleeper);

 private:
  void watch();
  void wake(Sleeper& sleeper);

  const FileDescriptor rung_;  // readable when there is something else to watch
  Mutex mutex_;                // guards what follows
  Condition changed_;
  std::map<Sleeper*, int> sleepers_;
  Sleeper* waking_ = nullptr;
  bool stopping_ = false;
  Thread thread_;  // from the first sleeper on
};

}  // namespace distnet
