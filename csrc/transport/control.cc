#include "transport/control.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace distnet {
namespace {

constexpr std::size_t kStepBytes = 64U << 10U;  // memory grows with what arrived, not with the claimed size

void check_header(const ControlHeader& header, const ControlConnection::MostBytes& most_bytes) {
  if (header.magic != kMagic) {
    throw Error(ErrorCode::kProtocol,
                "the peer's first bytes are not DistNet's; is this the address of another program?");
  }
  if (header.version != kProtocolVersion) {
    throw Error(ErrorCode::kProtocol, "the peer speaks version " + std::to_string(header.version) +
                                          " of the protocol, this side version " + std::to_string(kProtocolVersion) +
                                          "; install the same DistNet on both");
  }
  const std::uint32_t max_bytes = most_bytes(static_cast<ControlKind>(header.kind));
  if (header.payload_bytes > max_bytes) {
    throw Error(ErrorCode::kProtocol, "a control message of " + std::to_string(header.payload_bytes) +
                                          " bytes; at most " + std::to_string(max_bytes) + " are taken here");
  }
}

}  // namespace

ControlConnection::Turn::Turn(ControlConnection& connection, const Deadline& deadline) : connection_(connection) {
  std::unique_lock lock(connection_.turn_mutex_);
  if (!connection_.turn_ended_.wait_until(lock, deadline, [this] { return !connection_.sending_; })) {
    throw Error(ErrorCode::kDeadlineExceeded, "the peer reads no control messages, and this one is behind another");
  }
  connection_.sending_ = true;
}

ControlConnection::Turn::~Turn() {
  const std::lock_guard lock(connection_.turn_mutex_);
  connection_.sending_ = false;
  connection_.turn_ended_.notify_one();
}

void ControlConnection::send(ControlKind kind, std::span<const std::byte> payload, std::span<const int> fds) {
  send_steps(kind, payload, {}, fds, Deadline::after(kTurnSeconds), [] { return Deadline::after(kSendSeconds); }, {});
}

void ControlConnection::send(ControlKind kind, std::span<const std::byte> payload, std::span<const int> fds,
                             const Deadline& deadline) {
  send_steps(kind, payload, {}, fds, deadline, [&] { return deadline; }, {});
}

void ControlConnection::send_in_pace(ControlKind kind, std::span<const std::byte> head, std::span<const std::byte> tail,
                                     std::span<const int> fds, double silence_s, const Interrupt& interrupt) {
  send_steps(kind, head, tail, fds, Deadline::after(silence_s), [&] { return Deadline::after(silence_s); }, interrupt);
}

void ControlConnection::send_steps(ControlKind kind, std::span<const std::byte> head, std::span<const std::byte> tail,
                                   std::span<const int> fds, const Deadline& turn_comes,
                                   const NextDeadline& next_deadline, const Interrupt& interrupt) {
  ControlHeader header;
  header.kind = static_cast<std::uint16_t>(kind);
  header.payload_bytes = static_cast<std::uint32_t>(head.size() + tail.size());
  std::vector<std::byte> message(sizeof header + head.size());
  std::memcpy(message.data(), &header, sizeof header);
  if (!head.empty()) {
    std::memcpy(message.data() + sizeof header, head.data(), head.size());
  }
  const Turn turn(*this, turn_comes);
  const Deadline first_leaves = next_deadline();
  std::size_t sent = 0;
  while (sent == 0) {  // the descriptors travel with the first byte
    sent = stream_.send_some(message, fds);
    if (sent == 0 && !stream_.wait(POLLOUT, &first_leaves, interrupt)) {
      throw Error(ErrorCode::kDeadlineExceeded, "the peer reads no control messages");
    }
  }
  try {
    send_rest(std::span<const std::byte>(message).subspan(sent), next_deadline, interrupt);
    send_rest(tail, next_deadline, interrupt);
  } catch (...) {
    shutdown();
    throw;
  }
}

void ControlConnection::send_rest(std::span<const std::byte> bytes, const NextDeadline& next_deadline,
                                  const Interrupt& interrupt) {
  while (!bytes.empty()) {
    const std::size_t step = std::min(kStepBytes, bytes.size());
    const Deadline step_leaves = next_deadline();
    stream_.send_all(bytes.first(step), &step_leaves, interrupt);
    bytes = bytes.subspan(step);
  }
}

void ControlConnection::receive_with_fds(std::span<std::byte> bytes, std::vector<FileDescriptor>& fds,
                                         const Deadline& deadline, const Interrupt& interrupt) {
  while (!bytes.empty()) {
    const std::size_t received = stream_.receive_some(bytes, fds);
    bytes = bytes.subspan(received);
    if (received == 0 && !stream_.wait(POLLIN, &deadline, interrupt)) {
      throw Error(ErrorCode::kDeadlineExceeded, "the peer was silent for longer than the timeout");
    }
  }
}

ControlMessage ControlConnection::receive(const Deadline& deadline, const Interrupt& interrupt,
                                          std::uint32_t max_bytes) {
  return receive_steps([&] { return deadline; }, interrupt, [=](ControlKind) { return max_bytes; });
}

ControlMessage ControlConnection::receive_by_kind(const Deadline& deadline, const MostBytes& most_bytes) {
  return receive_steps([&] { return deadline; }, {}, most_bytes);
}

ControlMessage ControlConnection::receive_in_pace(double silence_s, const Interrupt& interrupt,
                                                  std::uint32_t max_bytes) {
  return receive_steps([&] { return Deadline::after(silence_s); }, interrupt, [=](ControlKind) { return max_bytes; });
}

ControlMessage ControlConnection::receive_steps(const NextDeadline& next_deadline, const Interrupt& interrupt,
                                                const MostBytes& most_bytes) {
  ControlMessage message;
  ControlHeader header;
  receive_with_fds({reinterpret_cast<std::byte*>(&header), sizeof header}, message.fds, next_deadline(), interrupt);
  check_header(header, most_bytes);
  message.kind = static_cast<ControlKind>(header.kind);
  while (message.payload.size() < header.payload_bytes) {
    const std::size_t at = message.payload.size();
    const std::size_t step = std::min<std::size_t>(kStepBytes, header.payload_bytes - at);
    message.payload.resize(at + step);
    receive_with_fds(std::span(message.payload).subspan(at), message.fds, next_deadline(), interrupt);
  }
  if (message.kind == ControlKind::kRefused) {
    const Refusal refusal = Refusal::decode(message.payload);
    throw Error(refusal.code, refusal.message);
  }
  return message;
}

Stream ControlConnection::give_stream() {
  const std::lock_guard lock(shutdown_mutex_);
  return std::exchange(stream_, {});
}

void ControlConnection::shutdown() {
  const std::lock_guard lock(shutdown_mutex_);
  stream_.shutdown();
}

}  // namespace distnet
