#include "front/door.h"

#include <cstdint>

#include "base/error.h"
#include "base/platform.h"

namespace distnet {
namespace {

constexpr double kExhaustedPauseSeconds = 0.05;  // for a descriptor to become free
constexpr double kUndisturbedSeconds = 3600.0;

}  // namespace

void refuse(ControlConnection& control, const std::exception& error) {
  const auto* const own = dynamic_cast<const Error*>(&error);
  try {
    const Refusal refusal{
        own != nullptr ? own->code() : ErrorCode::kTransport,
        own != nullptr ? own->what() : std::string("the server is out of resources: ") + error.what()};
    control.send(ControlKind::kRefused, refusal.encode(), {}, Deadline::after(1.0));
  } catch (const std::exception&) {
    // The peer is gone: there is nobody to tell.
  }
}

Door::Door(Host& host) : host_(host), wake_(FileDescriptor::open(create_event_file)) {}

Door::~Door() { close(); }

const Address& Door::listen(const Address& address) {
  listeners_.push_back(std::make_unique<Listener>(address));
  return listeners_.back()->address();
}

void Door::open() {
  thread_ = Thread("accepts connections", [this] { accept_all(); });
}

void Door::accept_all() {
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (closing_) {
        return;
      }
    }
    forget_ended();
    bool exhausted = false;
    for (const auto& listener : listeners_) {
      exhausted = let_in(*listener) || exhausted;
    }
    wait_for_knocks(exhausted);
  }
}

// Where descriptors are lacking, listeners stay readable: only the end of a conversation, or time, changes that.
void Door::wait_for_knocks(bool exhausted) {
  std::vector<pollfd> polled = {{wake_.get(), POLLIN, 0}};
  for (const auto& listener : listeners_) {
    if (!exhausted) {
      polled.push_back({listener->poll_fd(), POLLIN, 0});
    }
  }
  poll_until(polled, Deadline::after(exhausted ? kExhaustedPauseSeconds : kUndisturbedSeconds));
  if (polled.front().revents != 0) {
    drain_event_file(wake_.get());
  }
}

// Takes all that wait at a listener. Returns whether one could not be let in for want of a descriptor.
bool Door::let_in(Listener& listener) {
  bool exhausted = false;
  while (Stream stream = listener.accept(exhausted)) {
    const std::lock_guard lock(mutex_);
    if (closing_ || conversations_.size() >= kMostConversations) {
      continue;  // closed unheard
    }
    Conversation& conversation = conversations_.emplace_back();
    try {
      conversation.control = std::make_shared<ControlConnection>(std::move(stream));
      conversation.within_host = listener.address().within_host();
      conversation.thread = Thread("serves a connection", [this, &conversation] {
        converse(conversation);
        conversation.ended.store(true, std::memory_order_release);  // pairs with forget_ended()
        ring_event_file(wake_.get());
      });
    } catch (const std::exception&) {  // no thread, no memory: this one cannot be served, others may
      conversations_.pop_back();
    }
  }
  return exhausted;
}

void Door::converse(Conversation& conversation) {
  ControlConnection& control = *conversation.control;
  try {
    if (conversation.within_host && !control.stream().peer_is_this_user()) {
      throw Error(ErrorCode::kUnauthorized, "this server serves its own user; the peer runs as another");
    }
    Handshake handshake(conversation.within_host);
    const Deadline deadline = Deadline::after(kHandshakeSeconds);
    while (true) {
      Visitor visitor{conversation.control, conversation.within_host, control.receive(deadline, {}, kMaxStrangerBytes)};
      const Handshake::Step step = handshake.on_message(visitor.message.kind);
      if (step == Handshake::Step::kDescribe) {
        control.send(ControlKind::kProbeReply, host_.describe().encode());
        continue;
      }
      if (step == Handshake::Step::kAttach) {
        host_.attach(Attach::decode(visitor.message.payload), control.give_stream());
        return;
      }
      host_.serve(step, visitor);
      break;
    }
  } catch (const std::exception& error) {
    refuse(control, error);
  }
  control.shutdown();
}

void Door::forget_ended() {
  std::list<Conversation> ended;
  const std::lock_guard lock(mutex_);
  for (auto at = conversations_.begin(); at != conversations_.end();) {
    const auto next = std::next(at);
    if (at->ended.load(std::memory_order_acquire)) {
      at->thread.join();  // it has only to return
      ended.splice(ended.end(), conversations_, at);
    }
    at = next;
  }
}

void Door::close() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  ring_event_file(wake_.get());
  if (thread_.joinable()) {
    thread_.join();
  }
  for (const auto& listener : listeners_) {
    listener->shutdown();
  }
  std::list<Conversation> ending;
  {
    const std::lock_guard lock(mutex_);
    ending.swap(conversations_);
  }
  for (const Conversation& conversation : ending) {
    conversation.control->shutdown();
  }
  for (Conversation& conversation : ending) {
    conversation.thread.join();
  }
}

}  // namespace distnet
