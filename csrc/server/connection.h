// One client of one shard: its control connection (handshake, heartbeats, end) and its channel.
//
// Two threads: the control thread runs from accept to the end and decides how the session ended; the data thread takes
// requests, has the shard handle them, and replies. The control thread ends the data thread before it forgets the
// session.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "server/session.h"
#include "store/store.h"
#include "transport/channel.h"
#include "transport/control.h"

namespace distnet {

class Shard;
class ShardServer;

inline constexpr double kHandshakeSeconds = 10.0;

class Connection {
 public:
  Connection(ShardServer& server, Socket socket, bool local);
  ~Connection();

  bool ended() const { return ended_.load(std::memory_order_acquire); }
  void start();
  // No more requests are taken; the one in hand is finished and replied to.
  void stop_taking();
  // Ends everything at once.
  void close();
  // Waits for the control thread's end. Not from that thread.
  void join();

  // The data connection of a TCP session, from the connection that brought it. Taken from `socket` unless it is another
  // session's, or too late.
  bool attach(const Attach& attach, Socket& socket);

  // Of a shard that follows this one in rounds.
  bool is_follower() const { return follower_.load(std::memory_order_acquire); }
  void announce(const RoundMembers& members);
  void part();

  std::uint64_t bytes_received() const;
  std::uint64_t bytes_sent() const;

 private:
  void run();
  std::optional<Hello> shake_hands();
  bool bring_parameters(const Hello& hello);
  void serve_worker(const Hello& hello);
  void serve_shard(const Hello& hello);
  void open_channel(const Hello& hello, Shard& shard);
  Welcome make_welcome(Shard& shard) const;
  SessionEnd serve_control(double deadline_s, Shard& shard);
  void say_goodbye();
  void pass_buffer(const ControlMessage& message, Shard& shard);
  void pass_state(const ControlMessage& message, Shard& shard);
  static ReplyPayload payload_of(Shard& shard, const RequestHeader& request, Pin pin);
  void serve_data(Shard& shard);
  void refuse(const std::exception& error);

  ShardServer& server_;
  ControlConnection control_;
  const bool local_;
  Session session_;
  std::uint64_t secret_ = 0;

  mutable std::mutex channel_mutex_;  // guards the pointer and the socket that a TCP session waits for
  std::condition_variable attached_;
  std::unique_ptr<ServerChannel> channel_;
  std::uint64_t bytes_received_ = 0;  // over the channel that has ended
  std::uint64_t bytes_sent_ = 0;
  bool waits_for_attach_ = false;
  Socket attached_socket_;
  bool closing_ = false;

  std::thread data_thread_;
  std::thread control_thread_;
  std::atomic<bool> ended_{false};
  std::atomic<bool> follower_{false};
};

}  // namespace distnet
