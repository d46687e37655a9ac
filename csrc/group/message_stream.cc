#include "group/message_stream.h"

#include <algorithm>

#include "base/error.h"

namespace distnet {
namespace {

// So that one peer that always has more holds nobody up.
constexpr int kMostStepsAtOnce = 64;

std::span<const std::byte> bytes_of(const MessageFrame& frame) {
  return {reinterpret_cast<const std::byte*>(&frame), sizeof frame};
}

}  // namespace

void MessageStream::queue_text(MessageFrame frame, const std::string& text) {
  std::string first = shortened(text, kMaxRefusalBytes);
  frame.bytes = first.size();
  out_.push_back({frame, std::move(first), {}});
  out_.back().payload = {};
}

void MessageStream::queue_payload(MessageFrame frame, std::span<const std::byte> payload) {
  frame.bytes = payload.size();
  out_.push_back({frame, {}, payload});
}

bool MessageStream::is_sending(std::uint64_t id) const {
  return std::ranges::any_of(out_, [&](const Leaving& leaving) {
    return leaving.frame.kind == MessageFrame::Kind::kData && leaving.frame.id == id;
  });
}

void MessageStream::move() {
  for (int i = 0; i < kMostStepsAtOnce; ++i) {
    const bool wrote = write_some();
    const bool read = read_some();
    if (!wrote && !read) {
      return;
    }
  }
}

bool MessageStream::write_some() {
  if (out_.empty()) {
    return false;
  }
  const Leaving& leaving = out_.front();
  const std::span<const std::byte> head = bytes_of(leaving.frame);
  const std::span<const std::byte> body =
      leaving.text.empty() ? leaving.payload : std::as_bytes(std::span(leaving.text));
  Buffers buffers;
  if (sent_bytes_ < head.size()) {
    buffers.add(head.data() + sent_bytes_, head.size() - sent_bytes_);
    buffers.add(body.data(), body.size());
  } else {
    const std::size_t at = sent_bytes_ - head.size();
    buffers.add(body.data() + at, body.size() - at);
  }
  const std::size_t moved = stream_.send_some(buffers);
  sent_bytes_ += moved;
  if (sent_bytes_ == head.size() + body.size()) {
    const MessageFrame frame = leaving.frame;
    out_.pop_front();
    sent_bytes_ = 0;
    if (frame.kind == MessageFrame::Kind::kData) {
      receiver_.payload_left(frame.id);
    }
  }
  return moved != 0;
}

bool MessageStream::read_some() {
  if (body_) {
    const std::size_t moved = stream_.receive_some(*body_);
    body_ = body_->subspan(moved);
    if (body_->empty()) {
      end_body();
    }
    return moved != 0;
  }
  const std::span<std::byte> bytes(reinterpret_cast<std::byte*>(&frame_), sizeof frame_);
  const std::size_t moved = stream_.receive_some(bytes.subspan(frame_bytes_));
  frame_bytes_ += moved;
  if (frame_bytes_ == sizeof frame_) {
    frame_bytes_ = 0;
    begin_body();
  }
  return moved != 0;
}

void MessageStream::begin_body() {
  if (frame_.kind == MessageFrame::Kind::kData) {
    body_ = receiver_.place_for(frame_);
  } else if (frame_.kind == MessageFrame::Kind::kRefuse) {
    if (frame_.bytes > kMaxRefusalBytes) {
      throw Error(ErrorCode::kProtocol, "a peer sends a text of " + std::to_string(frame_.bytes) + " bytes");
    }
    text_.assign(frame_.bytes, ' ');
    body_ = std::as_writable_bytes(std::span(text_));
  } else {
    receiver_.take_frame(frame_, "");
    return;
  }
  if (body_->empty()) {
    end_body();
  }
}

void MessageStream::end_body() {
  body_.reset();
  if (frame_.kind == MessageFrame::Kind::kData) {
    receiver_.payload_came(frame_);
  } else {
    receiver_.take_frame(frame_, text_);
  }
}

}  // namespace distnet
