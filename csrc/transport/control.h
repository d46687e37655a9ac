// A control connection sends whole typed messages over one stream socket, with file descriptors when it is a Unix
// socket.
//
// Thread safety: any number of threads may send; one thread receives.
//
// Invariants
// - Messages never interleave: one thread sends at a time, and the others wait for their turn.
// - Nothing follows half a message: where the rest cannot leave, the connection is shut down.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/waiting.h"
#include "transport/stream.h"
#include "wire/control_messages.h"

namespace distnet {

struct ControlMessage {
  ControlKind kind{};
  std::vector<std::byte> payload;
  std::vector<FileDescriptor> fds;
};

class ControlConnection {
 public:
  explicit ControlConnection(Stream stream) : stream_(std::move(stream)) {}

  using MostBytes = std::function<std::uint32_t(ControlKind)>;

  // For the threads of the connection's own session: the message waits for its turn for as long as those before it may
  // take, and then leaves within kSendSeconds. Control messages are small, so a peer that does not read them is stuck.
  void send(ControlKind kind, std::span<const std::byte> payload = {}, std::span<const int> fds = {});
  // For everybody else, too: the message has had its turn and has left before the deadline.
  void send(ControlKind kind, std::span<const std::byte> payload, std::span<const int> fds, const Deadline& deadline);

  // The same for a message of any size: each 64 KiB of it, or what is left, must leave within `silence_s`. Its payload
  // has two parts, the second of which is not copied.
  void send_in_pace(ControlKind kind, std::span<const std::byte> head, std::span<const std::byte> tail,
                    std::span<const int> fds, double silence_s, const Interrupt& interrupt = {});

  // Throws Error(kPeerClosed), Error(kDeadlineExceeded), Error(kProtocol) on foreign bytes, another version or a
  // message over `max_bytes`, and the error that a kRefused message names.
  ControlMessage receive(const Deadline& deadline, const Interrupt& interrupt = {},
                         std::uint32_t max_bytes = kMaxControlBytes);
  // The same where the kind of a message says how long it may be.
  ControlMessage receive_by_kind(const Deadline& deadline, const MostBytes& most_bytes);

  // The same for a message of any size: each 64 KiB of it, or what is left, must come within `silence_s`.
  ControlMessage receive_in_pace(double silence_s, const Interrupt& interrupt, std::uint32_t max_bytes);

  Stream& stream() { return stream_; }
  const Stream& stream() const { return stream_; }
  // Gives the stream away, which carries no more messages. shutdown() may be called meanwhile and then ends nothing.
  Stream give_stream();
  void shutdown();

 private:
  static constexpr double kSendSeconds = 10.0;
  static constexpr double kTurnSeconds = 45.0;  // longer than a piece of a snapshot may take to leave

  // A thread's turn to send, from its construction on. Throws Error(kDeadlineExceeded) where it does not come in time.
  class Turn {
   public:
    Turn(ControlConnection& connection, const Deadline& deadline);
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn();

   private:
    ControlConnection& connection_;
  };

  using NextDeadline = std::function<Deadline()>;  // that of the next step

  void send_steps(ControlKind kind, std::span<const std::byte> head, std::span<const std::byte> tail,
                  std::span<const int> fds, const Deadline& turn_comes, const NextDeadline& next_deadline,
                  const Interrupt& interrupt);
  void send_rest(std::span<const std::byte> bytes, const NextDeadline& next_deadline, const Interrupt& interrupt);
  ControlMessage receive_steps(const NextDeadline& next_deadline, const Interrupt& interrupt,
                               const MostBytes& most_bytes);
  void receive_with_fds(std::span<std::byte> bytes, std::vector<FileDescriptor>& fds, const Deadline& deadline,
                        const Interrupt& interrupt);

  Stream stream_;
  Mutex turn_mutex_;      // guards the next two, and is held for no longer than a look at them
  bool sending_ = false;  // somebody has the turn
  Condition turn_ended_;
  Mutex shutdown_mutex_;  // the stream is not given away while it is shut down
};

}  // namespace distnet
