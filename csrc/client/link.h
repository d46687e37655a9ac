// A client's way to one shard: control connection, channel, and the watcher that keeps both alive.
//
// The watcher thread sends heartbeats, hears the server's answers and notices, and notices its end; it never touches
// payloads.
// Thread safety: the caller's thread and the watcher; the members below the mutex are the only ones both touch.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "base/waiting.h"
#include "client/bringing.h"
#include "transport/channel.h"
#include "transport/control.h"
#include "transport/registry.h"

namespace distnet {

// How a client that connects hears why it is not served yet. Either may be empty, and may throw to end the wait.
struct WhileConnecting {
  // Called whenever the reason changes. `model_comes`: another client brings the model, however long that takes.
  std::function<void(const std::string& why, bool model_comes)> heard;
  // Called about once an interval until the server turns to this client: with a welcome, or to have its model.
  Interrupt look;

  // Returns what calls look() and `interrupt`, and must not outlive either.
  Interrupt look_and(const Interrupt& interrupt) const;
};

// For so long a connection that has ended is waited for to say why. The other one ends at about the same time.
inline constexpr double kExplanationSeconds = 0.5;

class Link {
 public:
  struct Options {
    std::vector<Address> shards;  // of all; this link's is number `shard`
    std::uint32_t shard = 0;
    const Transport* transport = nullptr;  // null: within the host where the server proves to be here, else between
    Hello hello;
    std::optional<InitialParameters> initial;
    Tuning tuning;
    WhileConnecting waiting;

    const Address& address() const { return shards[shard]; }
  };

  // Throws Error: kConnect, kDeadlineExceeded, kProtocol, kConfig, kUnauthorized, kFenced.
  Link(const Options& options, const Interrupt& interrupt);
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
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
  // Throws what ended the connection: the server's reason, Error(kPeerClosed) where it is gone, Error(kDeadlineExceeded)
  // where it was silent for the timeout.
  void check_alive() const;
  // A wait for the data connection begins.
  void begin_to_wait() { marks_moved_ = now(); }
  // Throws Error(kDeadlineExceeded) where the wait has lasted for the timeout, one end has sent what the other one waits
  // for, and not a byte moved. `for_replies`: the caller reads; else it only sends.
  void check_data_connection(bool for_replies);
  // Asks a question and waits for its answer. Throws what ended the connection, and what `interrupt` throws.
  ControlMessage ask(ControlKind kind, std::span<const std::byte> payload, ControlKind answer,
                     const Interrupt& interrupt);
  // Asks a question whose answer is a text.
  std::string ask_text(ControlKind kind, std::span<const std::byte> payload, ControlKind answer,
                       const Interrupt& interrupt);
  // The bytes that the rank had saved at this shard when the session began.
  const std::optional<std::vector<std::byte>>& saved() const { return saved_; }
  // Sends one of the messages that have no one answer, such as those about snapshots.
  void say(ControlKind kind, std::span<const std::byte> payload) { control_->send(kind, payload); }
  // Waits for the next that the server sends about the snapshot named `key`. Throws what it says that ended it.
  ControlMessage next_of_snapshot(std::uint64_t key, const Deadline& deadline, const Interrupt& interrupt);
  // Returns the next verdict on a gathering; nothing where none comes before the deadline.
  std::optional<ControlMessage> next_gathered(const Deadline& deadline, const Interrupt& interrupt);
  // Settles what was pushed and ends the session in order.
  void say_goodbye(const Interrupt& interrupt);
  // Ends it at once. Any thread.
  void abandon();
  // The same, and waits for the end of the watcher.
  void end();
  // Calls this once when the connection is lost, on the watcher's thread or the caller's.
  void when_lost(std::function<void(const Error&)> hear_of_it);
  // What the server wants the user to hear, since the last call.
  std::vector<std::string> take_warnings();
  bool has_warnings() const { return has_warnings_.load(std::memory_order_relaxed); }
  std::string why_rounds_ended() const;  // empty while they go on

  static ProbeReply probe(const Address& address, const Deadline& deadline, const Interrupt& interrupt);

 private:
  // How far both ends of the data connection have got; the server's as of its newest answer.
  struct Marks {
    Progress server;
    std::uint64_t sent_bytes = 0;
    std::uint64_t received_bytes = 0;
    std::uint64_t replies = 0;
    bool operator==(const Marks&) const = default;
  };

  void open(const Options& options, const Deadline& deadline, const Interrupt& interrupt);
  bool try_local(const Options& options, const ProbeReply& remote, const Deadline& deadline,
                 const Interrupt& interrupt);
  void connect_control(const Address& address, const Deadline& deadline, const Interrupt& interrupt);
  void greet(const Options& options, const Transport& transport, const Interrupt& interrupt);
  ControlMessage next_of_handshake(const Options& options, const Interrupt& interrupt);
  void join_channel(const Options& options, const Transport& transport, ControlMessage& message,
                    const Interrupt& interrupt);
  Region map_buffer(std::uint32_t index);
  void wake_server();
  void watch();
  void hear(ControlMessage message);
  void lost(const Error& why);
  Error told(const Error& why) const;        // under the mutex
  Error reason() const;                      // the same, once it is lost
  void throw_reason_of(const Error& error);  // where the connection ended, once that is known
  [[noreturn]] void explain(const Error& error);

  double timeout_s_;  // the caller's until the welcome, then the session's
  const std::string where_;
  std::unique_ptr<ControlConnection> control_;
  Welcome welcome_;
  std::optional<std::vector<std::byte>> saved_;
  std::unique_ptr<ClientChannel> channel_;
  Thread watcher_;
  Marks marks_;  // of the caller's thread
  Clock::time_point marks_moved_;

  std::atomic<bool> lost_{false};
  std::atomic<bool> has_warnings_{false};
  std::atomic<bool> silent_{false};
  mutable Mutex mutex_;
  Condition answered_;
  std::map<ControlKind, ControlMessage> answers_;
  std::deque<ControlMessage> of_snapshot_;  // what the server said about snapshots, as it came
  std::deque<ControlMessage> gathered_;     // verdicts on gatherings, as they came
  std::map<ControlKind, int> unwanted_;     // answers yet to come to questions that were given up
  Progress progress_;
  std::vector<std::string> warnings_;
  std::string why_rounds_ended_;
  std::optional<Error> why_lost_;
  bool losing_ = false;  // whoever hears of the loss is being told
  std::function<void(const Error&)> when_lost_;
};

}  // namespace distnet
