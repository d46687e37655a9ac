// The payload half of a session: takes requests and has the shard serve them, on a thread of its own.
//
// The end of its stream ends the control connection, too: whichever of a session's two connections breaks, both go.
#pragma once

#include <atomic>

#include "base/threads.h"
#include "base/waiting.h"
#include "server/shard.h"
#include "transport/control.h"

namespace distnet {

class DataLoop {
 public:
  DataLoop(Shard& shard, std::uint32_t session, ServerChannel& channel, ControlConnection& control);
  DataLoop(const DataLoop&) = delete;
  DataLoop& operator=(const DataLoop&) = delete;
  ~DataLoop();

  void start();
  // From now on its end is no news: the control connection is left alone.
  void let_end() { let_end_.store(true, std::memory_order_release); }  // pairs with run()
  // Whether it ends because the client broke a rule, or could not be served. Known before the control connection ends.
  bool failed() const { return failed_.load(std::memory_order_acquire); }  // pairs with run()
  // Waits for its end, where it was started, at most to the deadline. Returns whether it has ended.
  bool wait_until_ended(const Deadline& deadline);

 private:
  void run();

  Shard& shard_;
  const std::uint32_t session_;
  ServerChannel& channel_;
  ControlConnection& control_;
  std::atomic<bool> let_end_{false};
  std::atomic<bool> failed_{false};
  Mutex mutex_;
  Condition changed_;
  bool running_ = false;
  Thread thread_;
};

}  // namespace distnet
