// A control connection sends whole typed messages over one stream socket, with file descriptors when it is a Unix
// socket.
//
// Thread safety: any number of threads may send, and messages never interleave; one thread receives.
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

  // The message must leave before the deadline. Control messages are small, so a peer that does not read them is stuck.
  void send(ControlKind kind, std::span<const std::byte> payload = {}, std::span<const int> fds = {},
            const Deadline& deadline = Deadline::after(kSendSeconds));

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

  using NextDeadline = std::function<Deadline()>;  // that of the next step

  void send_steps(ControlKind kind, std::span<const std::byte> head, std::span<const std::byte> tail,
                  std::span<const int> fds, const NextDeadline& next_deadline, const Interrupt& interrupt);
  void send_rest(std::span<const std::byte> bytes, const NextDeadline& next_deadline, const Interrupt& interrupt);
  ControlMessage receive_steps(const NextDeadline& next_deadline, const Interrupt& interrupt,
                               const MostBytes& most_bytes);
  void receive_with_fds(std::span<std::byte> bytes, std::vector<FileDescriptor>& fds, const Deadline& deadline,
                        const Interrupt& interrupt);

  Stream stream_;
  Mutex send_mutex_;
  Mutex shutdown_mutex_;  // the stream is not given away while it is shut down
};

}  // namespace distnet
