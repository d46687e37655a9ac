#include "client/link.h"

#include <algorithm>

#include "base/error.h"
#include "wire/snapshot_messages.h"

namespace distnet {
namespace {

constexpr std::size_t kMostWarnings = 64;
constexpr std::size_t kMostGathered = 8;                  // a few that came too late for their calls
constexpr std::size_t kMostOfSnapshot = 2 * kMostPieces;  // those of one that was given up may still come

bool is_of_snapshot(ControlKind kind) {
  return kind == ControlKind::kSnapshotReady || kind == ControlKind::kCutMade || kind == ControlKind::kPiece ||
         kind == ControlKind::kSavedPiece || kind == ControlKind::kSnapshotFailed;
}

}  // namespace

Link::Link(const Options& options, const Interrupt& interrupt)
    : timeout_s_(options.hello.timeout_s), where_(options.address().text()), marks_moved_(now()) {
  open(options, Deadline::after(timeout_s_), interrupt);
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
    throw_reason_of(error);
    const std::lock_guard lock(mutex_);
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
  const std::string before =
      why_rounds_ended_.empty() ? "" : "; before that, the rounds had ended: " + why_rounds_ended_;
  return {why.code(), "the server at " + where_ + " is gone: " + why.what() + before};
}

Error Link::reason() const { return told(why_lost_.value_or(Error(ErrorCode::kPeerClosed, "the connection ended"))); }

void Link::check_alive() const {
  if (lost_.load(std::memory_order_acquire)) {
    const std::lock_guard lock(mutex_);
    throw reason();
  }
  if (silent_.load(std::memory_order_relaxed)) {  // a judgement of watch(): it orders nothing
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
  const Error telling = told(why);
  lock.unlock();
  if (hear_of_it) {
    hear_of_it(telling);
  }
  lock.lock();
  why_lost_ = why;
  answered_.notify_all();
  lock.unlock();
  lost_.store(true, std::memory_order_release);  // pairs with check_alive()
  channel_->close();
}

// The watcher reads what the server has said up to the end before it calls the connection lost.
void Link::throw_reason_of(const Error& error) {
  std::unique_lock lock(mutex_);
  if (error.code() == ErrorCode::kPeerClosed) {
    answered_.wait_until(lock, Deadline::after(kExplanationSeconds), [this] { return why_lost_.has_value(); });
    if (why_lost_) {
      throw reason();
    }
  }
}

void Link::explain(const Error& error) {
  throw_reason_of(error);
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

// Judges the server's silence, because only this thread would hear it. Time by which it looks late does not count: it did
// not run, and perhaps nothing on this machine did.
void Link::watch() {
  const double interval_s = heartbeat_interval_s(timeout_s_);
  const auto timeout = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_s_));
  Deadline next_heartbeat = Deadline::after(interval_s);
  Clock::time_point silent_at = now() + timeout;
  try {
    while (true) {
      const bool judged = silent_.load(std::memory_order_relaxed);  // written by this thread
      const Clock::duration until_look = judged ? Clock::duration::max() : silent_at - now();
      const Deadline look = Deadline::after(std::min(next_heartbeat.left(), std::max(until_look, Clock::duration{0})));
      if (control_->stream().wait(POLLIN, &look, {})) {
        ControlMessage message = control_->receive(Deadline::after(timeout_s_), {}, kMaxAnswerBytes);
        silent_at = now() + timeout;
        silent_.store(false, std::memory_order_relaxed);
        hear(std::move(message));
        continue;
      }
      silent_at += std::max(now() - look.at(), Clock::duration{0});
      silent_.store(now() >= silent_at, std::memory_order_relaxed);
      if (next_heartbeat.expired()) {
        control_->send(ControlKind::kHeartbeat, {}, {}, Deadline::after(timeout_s_));
        next_heartbeat = Deadline::after(interval_s);
      }
    }
  } catch (const Error& error) {
    lost(error);
  }
}

}  // namespace distnet
