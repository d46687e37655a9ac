#include "front/door.h"

#include <cstdint>
#include <exception>
#include <span>
#include <string>

#include "base/error.h"
#include "base/platform.h"
#include "base/threads.h"

namespace distnet {
namespace {

constexpr double kExhaustedPauseSeconds = 0.05;  // for a descriptor to become free
constexpr double kUndisturbedSeconds = 3600.0;
constexpr double kRefusedSeconds = 0.5;  // in which a peer that cannot be let in states what it wants
constexpr std::size_t kSpares = 8;

bool somebody_waits(const Listener& listener) {
  pollfd polled{listener.poll_fd(), POLLIN, 0};
  return poll_until(std::span(&polled, 1), milliseconds{0}) > 0;
}

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

Door::Door(Host& host) : host_(host), wake_(FileDescriptor::open(create_event_file)) {
  spares_.reserve(kSpares);
  if (!wake_ || !keep_spares()) {
    throw Error(ErrorCode::kTransport, no_descriptor_left("a server's door"));
  }
}

Door::~Door() { close(); }

const Address& Door::listen(const Address& address) {
  listeners_.push_back(std::make_unique<Listener>(address));
  return listeners_.back()->address();
}

void Door::open() {
  thread_ = Thread("accepts connections", [this] { accept_all(); });
}

bool Door::closing() {
  const std::lock_guard lock(mutex_);
  return closing_;
}

void Door::accept_all() {
  while (!closing()) {
    try {
      forget_ended();
      keep_spares();
      bool exhausted = false;
      for (const auto& listener : listeners_) {
        exhausted = let_in(*listener) || exhausted;
      }
      wait_for_knocks(exhausted);
    } catch (const std::exception&) {  // no memory: those who wait are let in later
      sleep_for(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(kExhaustedPauseSeconds)));
    }
  }
}

// Makes up for spares that were given up. Returns whether all are there.
bool Door::keep_spares() {
  while (spares_.size() < kSpares) {
    FileDescriptor spare = FileDescriptor::open(create_event_file);
    if (!spare) {
      return false;
    }
    spares_.push_back(std::move(spare));
  }
  return true;
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
  while (true) {
    bool exhausted = false;
    Stream stream = listener.accept(exhausted);
    const bool on_spare = !stream && exhausted && somebody_waits(listener);
    if (on_spare && !spares_.empty()) {
      spares_.pop_back();
      stream = listener.accept(exhausted);
    }
    if (!stream) {
      return on_spare;
    }
    if (!begin_conversation(std::move(stream), listener.address().within_host(), on_spare)) {
      return false;
    }
  }
}

// Returns false where the door closes.
bool Door::begin_conversation(Stream stream, bool within_host, bool on_spare) {
  const auto control = std::make_shared<ControlConnection>(std::move(stream));
  std::exception_ptr failed;
  {
    const std::lock_guard lock(mutex_);
    const std::size_t count = conversations_.size();
    if (closing_ || count >= kMostConversations + kSpares) {
      return !closing_;  // closed unheard
    }
    Conversation& conversation = conversations_.emplace_back();
    conversation.control = control;
    conversation.within_host = within_host;
    try {
      if (on_spare) {
        conversation.refusal = no_descriptor_left("another connection to the server");
      } else if (count >= kMostConversations) {
        conversation.refusal = "the server has " + std::to_string(count) + " connections and takes no more; end some";
      }
      conversation.thread = Thread("serves a connection", [this, &conversation] {
        converse(conversation);
        conversation.ended.store(true, std::memory_order_release);  // pairs with forget_ended()
        ring_event_file(wake_.get());
      });
    } catch (const std::exception&) {  // no thread, no memory: this one cannot be served, others may
      failed = std::current_exception();
      conversations_.pop_back();
    }
  }
  if (failed) {
    try {
      std::rethrow_exception(failed);
    } catch (const std::exception& error) {
      refuse(*control, error);
    }
  }
  return true;
}

void Door::converse(Conversation& conversation) {
  ControlConnection& control = *conversation.control;
  try {
    answer(conversation, control);
  } catch (const std::exception& error) {
    refuse(control, error);
  }
  control.shutdown();
}

void Door::answer(Conversation& conversation, ControlConnection& control) {
  if (conversation.within_host && !control.stream().peer_is_this_user()) {
    throw Error(ErrorCode::kUnauthorized, "this server serves its own user; the peer runs as another");
  }
  Handshake handshake(conversation.within_host);
  const Deadline deadline = Deadline::after(conversation.refusal.empty() ? kHandshakeSeconds : kRefusedSeconds);
  while (true) {
    Visitor visitor{conversation.control, conversation.within_host, control.receive(deadline, {}, kMaxStrangerBytes)};
    visitor.message.fds.clear();  // clients have none to pass, and could hold ours by theirs
    const Handshake::Step step = handshake.on_message(visitor.message.kind);
    if (step == Handshake::Step::kAttach) {
      host_.attach(Attach::decode(visitor.message.payload), control.give_stream());
      return;
    }
    if (!conversation.refusal.empty()) {
      throw Error(ErrorCode::kTransport, conversation.refusal);
    }
    if (step != Handshake::Step::kDescribe) {
      host_.serve(step, visitor);
      return;
    }
    control.send(ControlKind::kProbeReply, host_.describe().encode());
  }
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
