// The payload half of a session: takes requests and has the shard serve them.
//
// It has a thread of its own only while requests come. When none has come for a while, the channel falls dormant and the
// thread ends; the next request wakes the loop, by the client's word or by a sign on its data stream.
//
// The end of its stream ends the control connection, too: whichever of a session's two connections breaks, both go.
#pragma once

#include <atomic>

#include "base/threads.h"
#include "base/waiting.h"
#include "server/dormant_streams.h"
#include "server/shard.h"
#include "transport/control.h"

namespace distnet {

class DataLoop final : private DormantStreams::Sleeper {
 public:
  DataLoop(Shard& shard, std::uint32_t session, ServerChannel& channel, ControlConnection& control,
           DormantStreams& dormant);
  DataLoop(const DataLoop&) = delete;
  DataLoop& operator=(const DataLoop&) = delete;
  ~DataLoop() override;

  // From now on requests are taken as they come.
  void start();
  // A request may be there: gives the loop a thread, unless it has one. Where there is none to be had, the session ends
  // and its client is told. Any thread.
  void wake() override;
  // From now on its end is no news: the control connection is left alone.
  void let_end() { let_end_.store(true, std::memory_order_release); }  // pairs with run()
  // Whether it ends because the client broke a rule, or could not be served. Known before the control connection ends.
  bool failed() const { return failed_.load(std::memory_order_acquire); }  // pairs with run()
  // Waits until it has no thread, at most to the deadline. Returns whether it has none.
  bool wait_until_ended(const Deadline& deadline);

 private:
  void run();
  bool serve_requests();
  bool end(bool dormant);
  void rest();

  Shard& shard_;
  const std::uint32_t session_;
  ServerChannel& channel_;
  ControlConnection& control_;
  DormantStreams& dormant_;
  std::atomic<bool> let_end_{false};
  std::atomic<bool> failed_{false};
  Mutex mutex_;
  Condition changed_;
  bool running_ = false;
  bool over_ = false;   // it is not woken again
  bool woken_ = false;  // while it had its thread
  Thread thread_;
};

}  // namespace distnet
