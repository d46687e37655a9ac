// A shard behind its listeners: accepts clients, holds their connections, and ends in order.
//
// Thread safety: start() and stop() from one thread; everything else from any.
#pragma once

#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "server/connection.h"
#include "server/shard.h"
#include "transport/stream.h"

namespace distnet {

inline constexpr double kForeverSeconds = 1e9;

class ShardServer {
 public:
  static constexpr std::size_t kMaxConnections = 4096;

  // `listen`: where clients find the shard; a TCP server also listens at a local name, for clients of its own host.
  ShardServer(ShardSettings settings, const Endpoint& listen);
  ~ShardServer();

  std::string endpoint() const;

  // Gives the shard its parameters; otherwise the first rank-0 client brings them. At most once.
  void initialise(const Manifest& manifest, ShardRange range, std::span<const float> initial);
  // The endpoints of all shards, comma-joined, shard 0 first. A shard that follows in rounds joins shard 0 now.
  void set_directory(const std::string& directory);
  void start();
  // Takes no more requests, finishes and answers those in hand, applies all that was accepted, and closes.
  void stop();

  // Throw Error(kConfig) while the shard has no parameters.
  Shard& shard();
  std::uint64_t read(std::span<float> out, bool average);
  std::string stats_json();
  bool initialised() const;

  // For connections.
  ProbeReply describe() const;
  void attach(const Attach& attach, Socket& socket);
  bool claim_initialising();
  void give_up_initialising();
  bool wait_until_initialised(const Deadline& deadline);
  std::uint64_t next_session() { return sessions_.fetch_add(1, std::memory_order_relaxed) + 1; }
  void session_ended(const Session& session, const char* how);
  // Throws Error(kProtocol): not the parameters of this server's own range.
  void check_range(const Initial& initial) const;
  // Throws Error(kUnauthorized) unless the peer is another shard of this job.
  void check_follower(const Hello& hello, const Attach& proof) const;

 private:
  void accept_from(Listener& listener, bool local);
  void forget_ended();
  void announce(const RoundMembers& members);
  void report(ControlKind kind, const RoundEvent& event);
  void part_from_shards();
  void follow_leader();

  const ShardSettings settings_;
  std::uint64_t nonce_[2];
  Listener public_listener_;
  std::unique_ptr<Listener> local_listener_;  // a TCP server's second one
  std::vector<std::thread> accept_threads_;
  std::atomic<std::uint64_t> sessions_{0};
  bool started_ = false;
  bool stopped_ = false;
  const int process_;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::unique_ptr<Shard> shard_;
  bool initialising_ = false;
  bool stopping_ = false;
  std::string directory_;
  std::list<std::shared_ptr<Connection>> connections_;
  std::uint64_t bytes_received_ = 0;  // by connections that are forgotten
  std::uint64_t bytes_sent_ = 0;
  std::vector<std::string> ended_;  // "rank 1 died", newest last; at most kMaxEnded

  std::unique_ptr<ControlConnection> leader_;  // of a follower
  bool leader_failed_ = false;
  std::thread leader_thread_;
};

}  // namespace distnet
