// A control connection: whole typed messages over one stream socket, with file descriptors where it is a Unix socket.
//
// Thread safety: any number of threads may send (a message is never interleaved with another); one thread receives.
#pragma once

#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "transport/stream.h"
#include "wire/protocol.h"

namespace distnet {

struct ControlMessage {
  ControlKind kind{};
  std::vector<std::byte> payload;
  std::vector<FileDescriptor> fds;
};

class ControlConnection {
 public:
  explicit ControlConnection(Socket socket) : socket_(std::move(socket)) {}

  // The message must leave within `deadline`: control messages are small, and a peer that does not read them is stuck.
  void send(ControlKind kind, std::span<const std::byte> payload = {}, std::span<const int> fds = {},
            const Deadline& deadline = Deadline::after(kSendSeconds));

  // Throws Error: kPeerClosed, kDeadlineExceeded, kProtocol (foreign bytes, another version, a message over
  // `max_bytes`), and whatever a kRefused message names.
  ControlMessage receive(const Deadline& deadline, const Interrupt& interrupt = {},
                         std::uint32_t max_bytes = kMaxControlBytes);

  Socket& socket() { return socket_; }
  void shutdown() { socket_.shutdown(); }

 private:
  static constexpr double kSendSeconds = 10.0;

  void receive_with_fds(std::span<std::byte> bytes, std::vector<FileDescriptor>& fds, const Deadline& deadline,
                        const Interrupt& interrupt);

  Socket socket_;
  std::mutex send_mutex_;
};

}  // namespace distnet
