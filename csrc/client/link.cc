#include "client/link.h"

#include <algorithm>

#include "base/error.h"
#include "wire/client_messages.h"
#include "wire/snapshot_messages.h"

namespace distnet {
namespace {

constexpr std::size_t kMostWarnings = 64;
constexpr double kExplanationSeconds = 0.5;               // both connections end at about the same time
constexpr std::size_t kMostGathered = 8;                  // a few that came too late for their calls
constexpr std::size_t kMostOfSnapshot = 2 * kMostPieces;  // those of one that was given up may still come

bool is_of_snapshot(ControlKind kind) {
  return kind == ControlKind::kSnapshotReady || kind == ControlKind::kCutMade || kind == ControlKind::kPiece ||
         kind == ControlKind::kSavedPiece || kind == ControlKind::kSnapshotFailed;
}

// Says the first word of a conversation. A server at a limit may have refused it before it was said.
void say_first(ControlConnection& control, ControlKind kind, std::span<const std::byte> payload = {}) {
  try {
    control.send(kind, payload);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kPeerClosed) {
      static_cast<void>(control.receive(Deadline::after(kExplanationSeconds)));  // throws what the server said
    }
    throw;
  }
}

}  // namespace

Interrupt WhileConnecting::look_and(const Interrupt& interrupt) const {
  return [this, &interrupt] {
    for (const Interrupt* const each : {&look, &interrupt}) {
      if (*each) {
        (*each)();
      }
    }
  };
}

Link::Link(const Options& options, const Interrupt& interrupt)
    : timeout_s_(options.hello.timeout_s),
      where_(options.address().text()),
      marks_moved_(now()),
      last_heard_(now().time_since_epoch().count()) {
  open(options, Deadline::after(timeout_s_), interrupt);
  last_heard_ = now().time_since_epoch().count();  // the handshake may have waited for parameters
  watcher_ = Thread("watches a server", [this] { watch(); });
}

Link::~Link() { end(); }

void Link::end() {
  abandon();
  if (watcher_.joinable()) {
    watcher_.join();
  }
}

void Link::when_lost(std::function<void(const Error&)> hear_of_it) {
  std::unique_lock lock(mutex_);
  when_lost_ = std::move(hear_of_it);
  if (why_lost_ && when_lost_) {
    const Error why = reason();
    lock.unlock();
    when_lost_(why);
  }
}

// ---- connecting ----

ProbeReply Link::probe(const Address& address, const Deadline& deadline, const Interrupt& interrupt) {
  ControlConnection control(Stream::connect(address, deadline, interrupt));
  say_first(control, ControlKind::kProbe);
  const ControlMessage message = control.receive(deadline, interrupt);
  if (message.kind != ControlKind::kProbeReply) {
    throw Error(ErrorCode::kProtocol, address.text() + " does not answer a probe");
  }
  return ProbeReply::decode(message.payload);
}

void Link::connect_control(const Address& address, const Deadline& deadline, const Interrupt& interrupt) {
  control_ = std::make_unique<ControlConnection>(Stream::connect(address, deadline, interrupt));
  control_->stream().give_up_after(timeout_s_);
}

void Link::open(const Options& options, const Deadline& deadline, const Interrupt& interrupt) {
  const Address& address = options.address();
  const Interrupt looking = options.waiting.look_and(interrupt);
  if (address.within_host()) {
    if (options.transport != nullptr && !options.transport->within_host) {
      throw Error(ErrorCode::kConfig, where_ + " has no TCP; start the server at tcp://host:port");
    }
    connect_control(address, deadline, looking);
    greet(options, transport_within_host(), interrupt);
    return;
  }
  if (options.transport == nullptr || options.transport->within_host) {
    if (try_local(options, probe(address, deadline, looking), deadline, interrupt)) {
      return;
    }
    if (options.transport != nullptr) {
      throw Error(ErrorCode::kConfig,
                  "the server at " + where_ + " is not on this host; use transport='tcp' or 'auto'");
    }
  }
  connect_control(address, deadline, looking);
  greet(options, transport_between_hosts(), interrupt);
}

// Whether the server behind the local name on this host is the one that answered over TCP. It proves it by the nonce in
// the memory that it passes.
bool Link::try_local(const Options& options, const ProbeReply& remote, const Deadline& deadline,
                     const Interrupt& interrupt) {
  const Address local{Address::Kind::kUnix, remote.local_name, 0};
  const Interrupt looking = options.waiting.look_and(interrupt);
  try {
    connect_control(local, deadline, looking);
    const ProbeReply here = probe(local, deadline, looking);
    if (here.nonce[0] != remote.nonce[0] || here.nonce[1] != remote.nonce[1]) {
      return false;
    }
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kDeadlineExceeded || error.code() == ErrorCode::kTransport) {
      throw;  // it is here, and does not answer or is at a limit
    }
    return false;  // another host, another network namespace, another user's server of that name
  }
  greet(options, transport_within_host(), interrupt);
  return true;
}

// The next message of the handshake. The server says why the client has to wait, and while another client brings the
// model, it sends heartbeats.
ControlMessage Link::next_of_handshake(const Options& options, const Interrupt& interrupt) {
  while (true) {
    ControlMessage message = control_->receive_in_pace(timeout_s_, interrupt, kMaxManifestBytes);
    if (message.kind == ControlKind::kHeartbeat) {
      continue;
    }
    if (message.kind == ControlKind::kNotice) {
      const Notice notice = Notice::decode(message.payload);
      const bool model_comes = notice.kind == Notice::Kind::kModelComes;
      if (model_comes || notice.kind == Notice::Kind::kModelAwaited) {
        if (options.waiting.heard) {
          options.waiting.heard("the server at " + where_ + " " + notice.text, model_comes);
        }
        continue;
      }
    }
    return message;
  }
}

void Link::greet(const Options& options, const Transport& transport, const Interrupt& interrupt) {
  Hello hello = options.hello;
  hello.transport = transport.kind;
  hello.brings_parameters = options.initial.has_value() && options.shard == 0;
  say_first(*control_, ControlKind::kHello, hello.encode());
  ControlMessage message = next_of_handshake(options, options.waiting.look_and(interrupt));
  if (message.kind == ControlKind::kNeedParameters && options.initial) {
    bring_model(*control_, BringGrant::decode(message.payload), hello.id, *options.initial, options.shards, timeout_s_,
                interrupt);
    message = next_of_handshake(options, interrupt);
  }
  if (message.kind != ControlKind::kWelcome) {
    throw Error(ErrorCode::kProtocol, "the server at " + where_ + " did not answer the hello with a welcome");
  }
  join_channel(options, transport, message, interrupt);
  message = next_of_handshake(options, interrupt);
  while (message.kind == ControlKind::kNotice || message.kind == ControlKind::kSaved) {
    hear_before_attached(std::move(message));
    message = next_of_handshake(options, interrupt);
  }
  if (message.kind != ControlKind::kAttached) {
    throw Error(ErrorCode::kProtocol, "the server at " + where_ + " did not confirm the channel");
  }
}

void Link::hear_before_attached(ControlMessage message) {
  if (message.kind == ControlKind::kNotice) {
    hear(std::move(message));
    return;
  }
  check_saved_bytes(message.payload.size());
  saved_ = std::move(message.payload);
}

void Link::join_channel(const Options& options, const Transport& transport, ControlMessage& message,
                        const Interrupt& interrupt) {
  welcome_ = Welcome::decode(message.payload);
  timeout_s_ = welcome_.timeout_s;
  control_->stream().give_up_after(timeout_s_);
  Stream data;
  if (transport.second_stream) {
    ControlConnection attaching(Stream::connect(options.address(), Deadline::after(timeout_s_), interrupt));
    attaching.send(ControlKind::kAttach, Attach{welcome_.session, welcome_.secret}.encode());
    data = attaching.give_stream();
  }
  channel_ = transport.join(shape_of(welcome_, options.hello.role, transport), options.tuning, std::move(data),
                            std::move(message.fds),
                            {[this](std::uint32_t index) { return map_buffer(index); }, [this] { wake_server(); }});
}

// ---- questions ----

Region Link::map_buffer(std::uint32_t index) {
  Writer writer;
  writer.number(index);
  const std::vector<std::byte> payload = writer.take();
  ControlMessage answer = ask(ControlKind::kBuffer, payload, ControlKind::kBufferReply, {});
  Reader reader(answer.payload);
  if (answer.fds.size() != 1 || reader.number<std::uint32_t>() != index) {
    throw Error(ErrorCode::kProtocol, "the server did not pass parameter buffer " + std::to_string(index));
  }
  return Region::map(answer.fds[0].release(), welcome_.buffer_bytes, false);
}

// Where the connection has ended, the watcher hears of that, too, and says why.
void Link::wake_server() {
  try {
    control_->send(ControlKind::kWake);
  } catch (const Error& error) {
    static_cast<void>(error);
  }
}

ControlMessage Link::ask(ControlKind kind, std::span<const std::byte> payload, ControlKind answer,
                         const Interrupt& interrupt) {
  try {
    control_->send(kind, payload);
  } catch (const Error& error) {
    throw told(error);
  }
  std::unique_lock lock(mutex_);
  try {
    while (!answers_.contains(answer)) {
      answered_.wait_until(lock, Deadline::after(kInterruptInterval));
      if (!answers_.contains(answer)) {
        lock.unlock();
        check_alive();
        if (interrupt) {
          interrupt();
        }
        lock.lock();
      }
    }
  } catch (...) {
    if (!lock.owns_lock()) {
      lock.lock();
    }
    if (!answers_.contains(answer)) {
      ++unwanted_[answer];
      throw;
    }  // it came just before the connection ended, or the interrupt
  }
  ControlMessage message = std::move(answers_.at(answer));
  answers_.erase(answer);
  return message;
}

std::string Link::ask_text(ControlKind kind, std::span<const std::byte> payload, ControlKind answer,
                           const Interrupt& interrupt) {
  const ControlMessage message = ask(kind, payload, answer, interrupt);
  Reader reader(message.payload);
  return reader.text();
}

std::optional<ControlMessage> Link::next_gathered(const Deadline& deadline, const Interrupt& interrupt) {
  while (true) {
    std::unique_lock lock(mutex_);
    if (gathered_.empty()) {
      answered_.wait_until(lock, Deadline::after(std::min<Clock::duration>(kInterruptInterval, deadline.left())));
    }
    if (!gathered_.empty()) {
      ControlMessage message = std::move(gathered_.front());
      gathered_.pop_front();
      return message;
    }
    lock.unlock();
    check_alive();
    if (interrupt) {
      interrupt();
    }
    if (deadline.expired()) {
      return std::nullopt;
    }
  }
}

ControlMessage Link::next_of_snapshot(std::uint64_t key, const Deadline& deadline, const Interrupt& interrupt) {
  while (true) {
    std::unique_lock lock(mutex_);
    if (of_snapshot_.empty()) {
      answered_.wait_until(lock, Deadline::after(kInterruptInterval));
    }
    if (of_snapshot_.empty()) {
      lock.unlock();
      check_alive();
      if (interrupt) {
        interrupt();
      }
      if (deadline.expired()) {
        throw Error(ErrorCode::kDeadlineExceeded, "the server at " + where_ + " did not go on with a snapshot in time");
      }
      continue;
    }
    ControlMessage message = std::move(of_snapshot_.front());
    of_snapshot_.pop_front();
    lock.unlock();
    if (key_of(message.payload) != key) {
      continue;  // of an older one that was given up
    }
    if (message.kind == ControlKind::kSnapshotFailed) {
      const SnapshotFailure failure = SnapshotFailure::decode(message.payload);
      throw Error(failure.code, failure.message);
    }
    return message;
  }
}

void Link::say_goodbye(const Interrupt& interrupt) {
  {
    const std::lock_guard lock(mutex_);
    when_lost_ = nullptr;  // the end that follows is no loss
  }
  ask(ControlKind::kGoodbye, {}, ControlKind::kGoodbyeReply, interrupt);
}

void Link::abandon() {
  if (control_) {
    control_->shutdown();
  }
  if (channel_) {
    channel_->close();
  }
}

std::vector<std::string> Link::take_warnings() {
  const std::lock_guard lock(mutex_);
  has_warnings_.store(false, std::memory_order_relaxed);  // under the mutex, as in hear()
  return std::exchange(warnings_, {});
}

std::string Link::why_rounds_ended() const {
  const std::lock_guard lock(mutex_);
  return why_rounds_ended_;
}

// ---- whether it lives ----

// What a caller is told: the server's own reason, where it gave one.
Error Link::told(const Error& why) const {
  if (why.code() != ErrorCode::kPeerClosed) {
    return why;
  }
  return {why.code(), "the server at " + where_ + " is gone: " + why.what()};
}

Error Link::reason() const { return told(why_lost_.value_or(Error(ErrorCode::kPeerClosed, "the connection ended"))); }

void Link::check_alive() const {
  if (lost_.load(std::memory_order_acquire)) {
    const std::lock_guard lock(mutex_);
    throw reason();
  }
  const auto silent = now().time_since_epoch() - Clock::duration(last_heard_.load(std::memory_order_relaxed));
  if (silent > std::chrono::duration<double>(timeout_s_)) {
    throw Error(
        ErrorCode::kDeadlineExceeded,
        "the server at " + where_ + " was silent for longer than the timeout of " + std::to_string(timeout_s_) + " s");
  }
}

// Heartbeats pass over the control connection and say nothing of the other one. The server says how far that got: where
// one end has waited for a whole timeout for what the other has sent, and not a byte moved, the connection is broken.
void Link::check_data_connection(bool for_replies) {
  Marks marks;
  {
    const std::lock_guard lock(mutex_);
    marks.server = progress_;
  }
  marks.sent_bytes = channel_->sent_bytes();
  marks.received_bytes = channel_->received_bytes();
  marks.replies = channel_->replies_received();
  const bool reply_is_out = for_replies && marks.server.replies > marks.replies;
  const bool request_is_out = marks.server.taken_bytes < marks.sent_bytes && !marks.server.busy;
  if (marks != marks_ || !(reply_is_out || request_is_out)) {
    marks_ = marks;
    marks_moved_ = now();
    return;
  }
  if (now() - marks_moved_ > std::chrono::duration<double>(timeout_s_)) {
    const Error broken(ErrorCode::kDeadlineExceeded,
                       "the data connection to the server at " + where_ + " has carried nothing for the timeout of " +
                           std::to_string(timeout_s_) + " s, although " +
                           (reply_is_out ? "the server has sent a reply" : "a request is on its way") +
                           "; the session is given up, connect anew");
    lost(broken);
    abandon();
    throw broken;
  }
}

// The loss is reported to when_lost() before any caller can see it.
void Link::lost(const Error& why) {
  std::unique_lock lock(mutex_);
  if (std::exchange(losing_, true)) {
    return;
  }
  const std::function<void(const Error&)> hear_of_it = when_lost_;
  lock.unlock();
  if (hear_of_it) {
    hear_of_it(told(why));
  }
  lock.lock();
  why_lost_ = why;
  answered_.notify_all();
  lock.unlock();
  lost_.store(true, std::memory_order_release);  // pairs with check_alive()
  channel_->close();
}

void Link::explain(const Error& error) {
  if (error.code() == ErrorCode::kPeerClosed) {
    std::unique_lock lock(mutex_);
    answered_.wait_until(lock, Deadline::after(kExplanationSeconds), [this] { return why_lost_.has_value(); });
    if (why_lost_) {
      throw reason();
    }
  }
  lost(error);
  abandon();
  throw error;
}

void Link::hear(ControlMessage message) {
  const std::lock_guard lock(mutex_);
  if (message.kind == ControlKind::kProgress) {
    progress_ = Progress::decode(message.payload);
    return;
  }
  if (message.kind == ControlKind::kNotice) {
    const Notice notice = Notice::decode(message.payload);
    if (notice.kind == Notice::Kind::kRoundsEnded) {
      why_rounds_ended_ = notice.text;
    } else if (notice.kind == Notice::Kind::kWarning && warnings_.size() < kMostWarnings) {
      warnings_.push_back(notice.text);
      has_warnings_.store(true, std::memory_order_relaxed);  // a hint: take_warnings() takes the mutex
    }
    return;
  }
  const ControlKind kind = message.kind;
  if (is_of_snapshot(kind)) {
    if (of_snapshot_.size() >= kMostOfSnapshot) {
      throw Error(ErrorCode::kProtocol, "the server sent more of a snapshot than it was asked for");
    }
    of_snapshot_.push_back(std::move(message));
    answered_.notify_all();
    return;
  }
  if (kind == ControlKind::kGathered) {
    if (gathered_.size() >= kMostGathered) {
      throw Error(ErrorCode::kProtocol, "the server sent more verdicts on gatherings than it was asked for");
    }
    gathered_.push_back(std::move(message));
    answered_.notify_all();
    return;
  }
  if (int& unwanted = unwanted_[kind]; unwanted > 0) {
    --unwanted;
    return;
  }
  answers_.insert_or_assign(kind, std::move(message));
  answered_.notify_all();
}

void Link::watch() {
  Deadline next_heartbeat = Deadline::after(heartbeat_interval_s(timeout_s_));
  try {
    while (true) {
      if (!control_->stream().wait(POLLIN, &next_heartbeat, {})) {
        control_->send(ControlKind::kHeartbeat, {}, {}, Deadline::after(timeout_s_));
        next_heartbeat = Deadline::after(heartbeat_interval_s(timeout_s_));
        continue;
      }
      ControlMessage message = control_->receive(Deadline::after(timeout_s_), {}, kMaxAnswerBytes);
      last_heard_.store(now().time_since_epoch().count(), std::memory_order_relaxed);  // a clock, it orders nothing
      hear(std::move(message));
    }
  } catch (const Error& error) {
    lost(error);
  }
}

}  // namespace distnet
