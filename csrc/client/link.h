// A client's way to one shard: control connection, channel, and the watcher that keeps both alive.
//
// The watcher thread sends heartbeats, hears the server's, and notices its end; it never touches payloads.
// Thread safety: the caller's thread and the watcher; the members below the mutex are the only ones both touch.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/error.h"
#include "transport/address.h"
#include "transport/channel.h"
#include "transport/control.h"

namespace distnet {

enum class TransportChoice : std::uint8_t { kAuto, kShm, kTcp };

// What a rank-0 client brings to a server without parameters.
struct InitialParameters {
  Manifest manifest;
  ShardRange range;
  std::span<const float* const> tensors;
};

class Link {
 public:
  struct Options {
    Endpoint endpoint;
    TransportChoice transport = TransportChoice::kAuto;
    Hello hello;
    std::optional<InitialParameters> initial;
    Tuning tuning;
  };

  // Throws Error: kConnect, kDeadlineExceeded, kProtocol, kConfig, kUnauthorized.
  Link(const Options& options, const Interrupt& interrupt);
  ~Link();

  const Welcome& welcome() const { return welcome_; }
  ClientChannel& channel() { return *channel_; }

  bool is_lost() const { return lost_.load(std::memory_order_acquire); }
  // Calls `step` of the channel. Where the connection ends in it, the control connection gives the reason.
  template <typename Step>
  bool attempt(const Step& step) {
    try {
      return step();
    } catch (const Error& error) {
      explain(error);
    }
  }
  // Throws Error(kPeerClosed) where the server is gone, Error(kDeadlineExceeded) where it was silent for the deadline.
  void check_alive() const;
  std::string stats(const Interrupt& interrupt);
  // The shard's vector number `slot` of optimizer state; empty where it has fewer.
  std::vector<float> optimizer_state(std::uint32_t slot, const Interrupt& interrupt);
  // Settles what was pushed and ends the session in order.
  void say_goodbye(const Interrupt& interrupt);
  // Ends it at once.
  void abandon();

  static ProbeReply probe(const Endpoint& endpoint, const Deadline& deadline, const Interrupt& interrupt);

 private:
  void open(const Options& options, const Deadline& deadline, const Interrupt& interrupt);
  bool try_local(const Options& options, const std::string& local_name, const std::uint64_t* nonce,
                 const Deadline& deadline, const Interrupt& interrupt);
  void greet(const Options& options, TransportKind transport, const Deadline& deadline, const Interrupt& interrupt);
  void send_initial(const InitialParameters& initial, const Deadline& deadline, const Interrupt& interrupt);
  Region map_buffer(std::uint32_t index);
  ControlMessage ask(ControlKind kind, std::span<const std::byte> payload, ControlKind answer,
                     const Interrupt& interrupt);
  void watch();
  void lost(const Error& why);
  [[noreturn]] void explain(const Error& error) const;

  const double deadline_s_;
  const std::string where_;
  std::unique_ptr<ControlConnection> control_;
  Welcome welcome_;
  std::vector<FileDescriptor> welcome_fds_;
  std::unique_ptr<ClientChannel> channel_;
  std::thread watcher_;

  std::atomic<bool> lost_{false};
  std::atomic<Clock::rep> last_heard_;
  mutable std::mutex mutex_;
  mutable std::condition_variable answered_;
  std::map<ControlKind, ControlMessage> answers_;
  std::optional<Error> why_lost_;
  bool ending_ = false;
};

}  // namespace distnet
