// One end of the stream of messages between two members: frames and payloads out, frames and payloads in.
//
// Thread safety: one thread.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "transport/stream.h"
#include "wire/group_messages.h"

namespace distnet {

class MessageStream {
 public:
  // A receiver is told what comes over the stream.
  class Receiver {
   public:
    virtual ~Receiver() = default;
    // A frame has come, with its text where it is a refusal. Throws Error(kProtocol) for one that cannot be.
    virtual void take_frame(const MessageFrame& frame, const std::string& text) = 0;
    // Returns where the payload of this frame goes, exactly as long as the frame says. Throws Error(kProtocol).
    virtual std::span<std::byte> place_for(const MessageFrame& frame) = 0;
    virtual void payload_came(const MessageFrame& frame) = 0;
    virtual void payload_left(std::uint64_t id) = 0;
  };

  MessageStream(Stream stream, Receiver& receiver) : stream_(std::move(stream)), receiver_(receiver) {}

  void queue(const MessageFrame& frame) { out_.push_back({frame, {}, {}}); }
  void queue_text(MessageFrame frame, const std::string& text);
  void queue_payload(MessageFrame frame, std::span<const std::byte> payload);
  // Moves what can be moved without waiting. Throws Error(kPeerClosed), and what the receiver throws.
  void move();
  bool wants_to_write() const { return !out_.empty(); }
  // Whether bytes of this payload have left, or it is being received.
  bool is_sending(std::uint64_t id) const;
  bool is_receiving(std::uint64_t id) const { return body_ && frame_.id == id; }
  int poll_fd() const { return stream_.poll_fd(); }

 private:
  struct Leaving {
    MessageFrame frame;
    std::string text;
    std::span<const std::byte> payload;
  };

  bool write_some();
  bool read_some();
  void begin_body();
  void end_body();

  Stream stream_;
  Receiver& receiver_;
  std::deque<Leaving> out_;
  std::size_t sent_bytes_ = 0;  // of the first of them
  MessageFrame frame_;
  std::size_t frame_bytes_ = 0;               // received of it
  std::optional<std::span<std::byte>> body_;  // what is yet to come of what follows the frame
  std::string text_;
};

}  // namespace distnet
