#include "transport/control.h"

#include <cerrno>
#include <cstring>

#include <poll.h>
#include <sys/socket.h>

#include "base/error.h"

namespace distnet {
namespace {

constexpr std::size_t kMaxFds = 8;
constexpr std::size_t kReceiveStepBytes = 64U << 10U;  // memory grows with what arrived, not with what was claimed

std::size_t send_with_fds(const Socket& socket, std::span<const std::byte> bytes, std::span<const int> fds) {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
  }
  const ssize_t sent = sendmsg(socket.fd(), &message, MSG_NOSIGNAL);
  if (sent < 0 && errno != EAGAIN && errno != EINTR) {
    throw Error(ErrorCode::kPeerClosed, std::string("the peer closed the connection (") + std::strerror(errno) + ")");
  }
  return sent < 0 ? 0 : static_cast<std::size_t>(sent);
}

void take_fds(const msghdr& message, std::vector<FileDescriptor>& fds) {
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(const_cast<msghdr*>(&message), header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      fds.emplace_back(fd);
    }
  }
}

void check_header(const ControlHeader& header, std::uint32_t max_bytes) {
  if (header.magic != kMagic) {
    throw Error(ErrorCode::kProtocol,
                "the peer's first bytes are not DistNet's; is this the address of another program?");
  }
  if (header.version != kProtocolVersion) {
    throw Error(ErrorCode::kProtocol, "the peer speaks version " + std::to_string(header.version) +
                                          " of the protocol, this side version " + std::to_string(kProtocolVersion) +
                                          "; install the same DistNet on both");
  }
  if (header.payload_bytes > max_bytes) {
    throw Error(ErrorCode::kProtocol, "a control message of " + std::to_string(header.payload_bytes) +
                                          " bytes; at most " + std::to_string(max_bytes) + " are taken here");
  }
}

}  // namespace

void ControlConnection::send(ControlKind kind, std::span<const std::byte> payload, std::span<const int> fds,
                             const Deadline& deadline) {
  DISTNET_INVARIANT(fds.size() <= kMaxFds);
  ControlHeader header;
  header.kind = static_cast<std::uint16_t>(kind);
  header.payload_bytes = static_cast<std::uint32_t>(payload.size());
  std::vector<std::byte> message(sizeof header + payload.size());
  std::memcpy(message.data(), &header, sizeof header);
  if (!payload.empty()) {
    std::memcpy(message.data() + sizeof header, payload.data(), payload.size());
  }
  const std::lock_guard lock(send_mutex_);
  std::size_t sent = 0;
  while (sent == 0) {  // the descriptors travel with the first byte
    sent = send_with_fds(socket_, message, fds);
    if (sent == 0 && !socket_.wait(POLLOUT, &deadline, {})) {
      throw Error(ErrorCode::kDeadlineExceeded, "the peer reads no control messages");
    }
  }
  socket_.send_all(std::span(message).subspan(sent), &deadline);
}

void ControlConnection::receive_with_fds(std::span<std::byte> bytes, std::vector<FileDescriptor>& fds,
                                         const Deadline& deadline, const Interrupt& interrupt) {
  while (!bytes.empty()) {
    iovec part{bytes.data(), bytes.size()};
    msghdr message{};
    alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t received = recvmsg(socket_.fd(), &message, MSG_CMSG_CLOEXEC);
    if (received > 0) {
      take_fds(message, fds);
      if (fds.size() > kMaxFds) {
        throw Error(ErrorCode::kProtocol, "a control message with more than 8 file descriptors");
      }
      bytes = bytes.subspan(static_cast<std::size_t>(received));
      continue;
    }
    if (received == 0 || (errno != EAGAIN && errno != EINTR)) {
      throw Error(ErrorCode::kPeerClosed, "the peer closed the connection");
    }
    if (!socket_.wait(POLLIN, &deadline, interrupt)) {
      throw Error(ErrorCode::kDeadlineExceeded, "the peer was silent for longer than the deadline");
    }
  }
}

ControlMessage ControlConnection::receive(const Deadline& deadline, const Interrupt& interrupt,
                                          std::uint32_t max_bytes) {
  ControlMessage message;
  ControlHeader header;
  receive_with_fds({reinterpret_cast<std::byte*>(&header), sizeof header}, message.fds, deadline, interrupt);
  check_header(header, max_bytes);
  message.kind = static_cast<ControlKind>(header.kind);
  while (message.payload.size() < header.payload_bytes) {
    const std::size_t at = message.payload.size();
    const std::size_t step = std::min<std::size_t>(kReceiveStepBytes, header.payload_bytes - at);
    message.payload.resize(at + step);
    receive_with_fds(std::span(message.payload).subspan(at), message.fds, deadline, interrupt);
  }
  if (message.kind == ControlKind::kRefused) {
    const Refusal refusal = Refusal::decode(message.payload);
    throw Error(refusal.code, refusal.message);
  }
  return message;
}

}  // namespace distnet
