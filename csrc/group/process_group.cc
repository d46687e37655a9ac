#include "group/process_group.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "base/error.h"
#include "base/platform.h"
#include "base/ranks_text.h"
#include "wire/gathering_messages.h"

namespace distnet {
namespace {

constexpr double kExplanationSeconds = 0.5;  // for the coordinator to say why a peer has ended
constexpr double kTellSeconds = 1.0;
constexpr std::size_t kMostReasonBytes = 2048;
constexpr std::size_t kMostTurns = 65536;  // that came before the one that is next

std::string seconds_text(double seconds) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g s", seconds);
  return text.data();
}

bool has_lasted(Clock::time_point since) { return now() - since > std::chrono::duration<double>(kQuietSeconds); }

}  // namespace

ProcessGroup::ProcessGroup(const GroupOptions& options, const Interrupt& interrupt)
    : name_(options.name),
      rank_(options.rank),
      size_(options.size),
      fork_number_(fork_number()),
      timeout_s_(options.timeout_s),
      joined_(join_group(options, interrupt)),
      wake_(FileDescriptor::open(create_event_file)) {
  if (!wake_) {
    throw Error(ErrorCode::kTransport, no_descriptor_left("a group of ranks"));
  }
  arrivals_ = std::make_unique<Arrivals>(joined_, rank_);
  watching_ = true;
  watcher_ = Thread("watches a group", [this] { watch(); });
  try {
    make_lanes(interrupt);
  } catch (...) {
    shut_down(Deadline::forever());  // nothing has been begun
    throw;
  }
}

ProcessGroup::~ProcessGroup() {
  if (fork_number() == fork_number_) {
    stop(Deadline::forever());
  }
}

void ProcessGroup::make_lanes(const Interrupt& interrupt) {
  std::unique_ptr<Lane> ordered;
  std::unique_ptr<Lane> named;
  MeshStreams mesh;
  if (joined_.formed.transport == GroupTransport::kShm) {
    ordered = make_shm_lane(rank_, size_, joined_.memory.data());
    named = make_shm_lane(rank_, size_, joined_.memory.data() + shm_lane_bytes(size_));
  } else {
    const Interrupt looking = [&] {
      if (has_ended_.load(std::memory_order_acquire)) {
        check_usable();
      }
      if (interrupt) {
        interrupt();
      }
    };
    try {
      mesh = connect_mesh(joined_, rank_, *arrivals_, Deadline::after(timeout_s_), looking);
      ordered = make_stream_lane(rank_, std::move(mesh.ordered));
      named = make_stream_lane(rank_, std::move(mesh.named));
    } catch (const Error& error) {
      throw broken(error, std::nullopt);
    }
  }
  LaneOwner& owner = *this;
  auto messages = std::make_unique<PointToPoint>(joined_, rank_, who(), *arrivals_, owner);
  messages->add(std::move(mesh.messages));
  const Lock lock(mutex_);
  messages_ = std::move(messages);
  ordered_ = std::make_unique<LaneQueue>(std::move(ordered), owner, "runs operations");
  named_ = std::make_unique<LaneQueue>(std::move(named), owner, "runs named ones");
  for (const auto& [rank, why] : left_ranks_) {  // meanwhile
    ordered_->end_at(left_ordered_, why);
    named_->end_at(left_named_, why);
    messages_->left(rank, why);
  }
}

std::string ProcessGroup::who() const { return "rank " + std::to_string(rank_) + " of group '" + name_ + "'"; }

// ---- operations ----

void ProcessGroup::check_usable() const {
  if (fork_number() != fork_number_) {
    throw Error(ErrorCode::kConfig, "this group was made before a fork; form a new one in the child");
  }
  if (has_ended_.load(std::memory_order_acquire)) {  // pairs with end()
    const Lock lock(mutex_);
    if (why_ended_) {
      throw Error(*why_ended_);
    }
  }
  if (closed()) {
    throw Error(ErrorCode::kConfig, "group '" + name_ + "' is closed");
  }
}

std::shared_ptr<Work> ProcessGroup::begin(Call call, const Interrupt& interrupt) {
  check_usable();
  const bool of_two = call.operation.kind == OperationKind::kSend || call.operation.kind == OperationKind::kReceive;
  if (!of_two) {
    check(call.operation, call.operands, rank_, size_);
  }
  if (call.operation.name.size() > kMaxGroupNameBytes) {
    throw Error(ErrorCode::kConfig, "the name of an operation has " + std::to_string(call.operation.name.size()) +
                                        " bytes; it has at most " + std::to_string(kMaxGroupNameBytes));
  }
  if (call.at_once) {
    Work::check_may_wait(this);
  }
  auto work = std::make_shared<Work>(this);
  LaneJob job{std::move(call.operation), std::move(call.operands), call.timeout_s, work, {}};
  if (of_two) {
    messages_->begin(std::move(job), call.tag);
  } else if (job.operation.kind == OperationKind::kJoin) {
    begin_join(std::move(job), call.at_once, interrupt);
  } else if (!job.operation.name.empty()) {
    begin_named(std::move(job));
  } else {
    ordered_->submit(std::move(job), call.at_once, interrupt);
  }
  return work;
}

void ProcessGroup::begin_named(LaneJob job) {
  const std::string name = job.operation.name;
  {
    const Lock lock(mutex_);
    if (why_ended_ || !left_ranks_.empty()) {
      throw Error(why_ended_ ? *why_ended_ : left_ranks_.begin()->second);
    }
    if (closed()) {  // meanwhile; leave() has looked for pending ones under this mutex, or will
      throw Error(ErrorCode::kConfig, "group '" + name_ + "' is closed");
    }
    if (joining_) {
      throw Error(ErrorCode::kConfig, who() + " has joined, and calls no operations until all have");
    }
    if (under_way_.size() >= sweep_at_) {
      std::erase_if(under_way_, [](const auto& entry) { return entry.second->done(); });
      sweep_at_ = std::max<std::size_t>(64, 2 * under_way_.size());
    }
    std::shared_ptr<Work>& under_way = under_way_[name];
    if (under_way && !under_way->done()) {
      throw Error(ErrorCode::kConfig, who() + " has an operation named '" + name +
                                          "' under way already; wait for it, or give the other one another name");
    }
    under_way = job.work;
    NamedCall& call = pending_[name];
    call = {std::move(job), Deadline::forever(), now(), false};
    call.deadline = Deadline::after(call.job.timeout_s);
  }
  ring_event_file(wake_.get());  // the watcher sees to the deadline
  try {
    joined_.control->send(ControlKind::kAnnounce, encode_name(name));
  } catch (const Error& error) {
    throw broken(error, std::nullopt);
  }
}

void ProcessGroup::begin_join(LaneJob job, bool at_once, const Interrupt& interrupt) {
  {
    const Lock lock(mutex_);
    if (joining_) {
      throw Error(ErrorCode::kConfig, who() + " has joined already, and waits for the others");
    }
    joining_ = true;
    all_joined_ = false;
  }
  job.all_joined = [this](const Deadline& deadline) { wait_until_all_joined(deadline); };
  job.operation.name.clear();
  try {
    joined_.control->send(ControlKind::kJoinOperations);
  } catch (const Error& error) {
    throw broken(error, std::nullopt);
  }
  ordered_->submit(std::move(job), at_once, interrupt);
}

// The ordered lane has seen that all have joined; so does the coordinator, which orders named operations.
void ProcessGroup::wait_until_all_joined(const Deadline& deadline) {
  Lock lock(mutex_);
  changed_.wait_until(lock, deadline, [this] { return all_joined_ || why_ended_.has_value(); });
  joining_ = false;
  if (!all_joined_) {
    throw Error(why_ended_.value_or(Error(
        ErrorCode::kDeadlineExceeded, "the coordinator of group '" + name_ + "' does not say that all have joined")));
  }
}

Error ProcessGroup::broken(const Error& why, std::optional<std::uint32_t> rank) {
  // A rank that has left listens no more, so a connection to it is refused.
  const bool may_have_left = why.code() == ErrorCode::kPeerClosed || why.code() == ErrorCode::kConnect;
  const auto why_left = [&] { return rank ? left_ranks_.find(*rank) : left_ranks_.begin(); };
  {
    Lock lock(mutex_);
    if (may_have_left) {
      changed_.wait_until(lock, Deadline::after(kExplanationSeconds),
                          [&] { return why_ended_.has_value() || why_left() != left_ranks_.end(); });
    }
    if (why_ended_) {
      return *why_ended_;
    }
    if (may_have_left && why_left() != left_ranks_.end()) {
      return why_left()->second;
    }
  }
  end(why, false);
  return why;
}

void ProcessGroup::given_up(const Error& why) { end(why, false); }

std::optional<std::string> ProcessGroup::take_notice() {
  const Lock lock(mutex_);
  const auto notice_of = [&](const auto& queue, std::uint64_t& noticed) -> std::optional<std::string> {
    const std::optional<LaneWait> wait = queue.waiting();
    if (!wait || wait->number == noticed || wait->awaited.empty() || !has_lasted(wait->since)) {
      return std::nullopt;
    }
    noticed = wait->number;
    return who() + " has waited " + seconds_text(kQuietSeconds) + " for " + ranks_text(wait->awaited) + " in " +
           wait->operation;
  };
  if (!ordered_) {
    return std::nullopt;
  }
  if (!stopped_by_.empty() && stopped_by_ != noticed_stop_ && has_lasted(stopped_since_)) {
    noticed_stop_ = stopped_by_;
    return who() + " is closed, and has waited " + seconds_text(kQuietSeconds) + " for " + stopped_by_ + " to end";
  }
  if (auto text = notice_of(*ordered_, noticed_ordered_)) {
    return text;
  }
  if (auto text = notice_of(*named_, noticed_named_)) {
    return text;
  }
  if (auto text = notice_of(*messages_, noticed_message_)) {
    return text;
  }
  const bool lasts = std::ranges::any_of(pending_, [](const auto& entry) { return has_lasted(entry.second.since); });
  if (lasts && !awaited_.empty() && awaited_ != noticed_pending_) {
    noticed_pending_ = awaited_;
    return who() + " has waited " + seconds_text(kQuietSeconds) + ": " + awaited_;
  }
  return std::nullopt;
}

// ---- what the coordinator says ----

bool ProcessGroup::stopping() const {
  const Lock lock(mutex_);
  return stopping_ || left_;
}

void ProcessGroup::watch() {
  std::optional<Error> lost;
  std::optional<Error> fault;
  try {
    watch_until_stopped();
  } catch (const Error& error) {
    lost = error;
  } catch (const std::exception& error) {
    fault = Error(ErrorCode::kTransport, who() + " cannot go on: " + error.what());
  }
  if (lost && !stopping()) {
    joined_.control->shutdown();  // where it is alive after all, it tells the others, which would wait for this one
    end(coordinator_lost(*lost), true);
  } else if (fault && !stopping()) {
    end(*fault, false);
  }
  const Lock lock(mutex_);
  watching_ = false;
  changed_.notify_all();
}

void ProcessGroup::watch_until_stopped() {
  const double silence_s = joined_.formed.timeout_s;
  const double interval_s = std::min(heartbeat_interval_s(silence_s), kQuietSeconds / 4);
  Deadline next_heartbeat = Deadline::after(interval_s);
  Deadline silent = Deadline::after(silence_s);
  std::array<pollfd, 2> polled = {{{joined_.control->stream().poll_fd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}}};
  while (!stopping()) {
    poll_until(polled, next_look(next_heartbeat));
    if (polled[1].revents != 0) {
      drain_event_file(wake_.get());
    }
    if (polled[0].revents != 0) {
      const ControlMessage message = joined_.control->receive(Deadline::after(silence_s));
      silent = Deadline::after(silence_s);
      hear(message);
    } else if (silent.expired()) {
      throw Error(ErrorCode::kDeadlineExceeded, "it was silent for " + seconds_text(silence_s));
    }
    if (next_heartbeat.expired()) {
      joined_.control->send(ControlKind::kHeartbeat, {}, {}, Deadline::after(silence_s));
      next_heartbeat = Deadline::after(interval_s);
    }
    withdraw_overdue();
  }
}

Deadline ProcessGroup::next_look(const Deadline& next_heartbeat) const {
  Deadline next = next_heartbeat;
  const Lock lock(mutex_);
  for (const auto& [name, call] : pending_) {
    if (!call.withdrawing && call.deadline.at() < next.at()) {
      next = call.deadline;
    }
  }
  return next;
}

void ProcessGroup::withdraw_overdue() {
  std::vector<std::string> names;
  {
    const Lock lock(mutex_);
    for (auto& [name, call] : pending_) {
      if (!call.withdrawing && call.deadline.expired()) {
        call.withdrawing = true;
        names.push_back(name);
      }
    }
  }
  for (const std::string& name : names) {
    joined_.control->send(ControlKind::kWithdraw, encode_name(name));
  }
}

void ProcessGroup::hear(const ControlMessage& message) {
  switch (message.kind) {
    case ControlKind::kGroupAwaited: {
      std::string awaited = decode_text(message.payload);
      const Lock lock(mutex_);
      awaited_ = std::move(awaited);
      return;
    }
    case ControlKind::kLeftGroup:
      hear_left(GroupProgress::decode(message.payload));
      return;
    case ControlKind::kGroupEnded: {
      const GroupEnd why = GroupEnd::decode(message.payload);
      end(Error(why.code, why.text), true);
      return;
    }
    case ControlKind::kRunNamed:
      hear_turn(NamedTurn::decode(message.payload));
      return;
    case ControlKind::kWithdrawn:
      hear_withdrawn(NamedNotice::decode(message.payload));
      return;
    case ControlKind::kAllJoined: {
      const Lock lock(mutex_);
      all_joined_ = true;
      changed_.notify_all();
      return;
    }
    default:
      throw Error(ErrorCode::kProtocol, "it sent a control message of an unknown kind");
  }
}

void ProcessGroup::hear_left(const GroupProgress& progress) {
  const Error why(ErrorCode::kPeerClosed, "rank " + std::to_string(progress.rank) + " of group '" + name_ +
                                              "' has left the group; close it on all ranks after the last operation");
  LaneQueue* ordered = nullptr;
  LaneQueue* named = nullptr;
  {
    const Lock lock(mutex_);
    changed_.notify_all();
    if (progress.rank == rank_) {
      left_ = true;
      return;
    }
    left_ranks_.emplace(progress.rank, why);
    left_ordered_ = std::min(left_ordered_, progress.ordered);
    left_named_ = std::min(left_named_, progress.named);
    ordered = ordered_.get();
    named = named_.get();
  }
  if (ordered != nullptr) {
    ordered->end_at(progress.ordered, why);
    named->end_at(progress.named, why);
    messages_->left(progress.rank, why);
  }
  fail_named(why);  // they will have no turn
}

void ProcessGroup::hear_turn(const NamedTurn& turn) {
  std::vector<NamedTurn> next;
  {
    const Lock lock(mutex_);
    if (turn.number < next_turn_ || turns_.size() >= kMostTurns || !named_) {
      throw Error(ErrorCode::kProtocol, "it gave a named operation the number " + std::to_string(turn.number));
    }
    turns_.emplace(turn.number, turn);
    while (!turns_.empty() && turns_.begin()->first == next_turn_) {
      next.push_back(std::move(turns_.begin()->second));
      turns_.erase(turns_.begin());
      ++next_turn_;
    }
  }
  for (const NamedTurn& one : next) {
    give_turn(one);
  }
}

void ProcessGroup::give_turn(const NamedTurn& turn) {
  LaneJob job;
  {
    const Lock lock(mutex_);
    const auto found = pending_.find(turn.name);
    if (found != pending_.end()) {
      job = std::move(found->second.job);
      pending_.erase(found);
    } else if (joining_) {  // the others run it, this rank contributes nothing
      job.operation.kind = OperationKind::kJoin;
      job.timeout_s = timeout_s_;
      job.work = std::make_shared<Work>(this);
    } else if (why_ended_ || !left_ranks_.empty()) {
      return;
    } else {
      throw Error(ErrorCode::kProtocol, "it has operation '" + turn.name + "' run, which this rank did not announce");
    }
    changed_.notify_all();
  }
  named_->submit(std::move(job), false, {});
}

void ProcessGroup::hear_withdrawn(const NamedNotice& notice) {
  LaneJob job;
  {
    const Lock lock(mutex_);
    const auto found = pending_.find(notice.name);
    if (found == pending_.end() || !found->second.withdrawing) {
      return;
    }
    job = std::move(found->second.job);
    pending_.erase(found);
    changed_.notify_all();
  }
  job.work->fail(Error(ErrorCode::kDeadlineExceeded, who() + " has waited " + seconds_text(job.timeout_s) + " for " +
                                                         notice.text + " to call '" + notice.name + "', which is " +
                                                         describe(job.operation) + " here"));
}

Error ProcessGroup::coordinator_lost(const Error& why) const {
  const std::uint32_t host = joined_.formed.hosted_by;
  const std::string also = host < size_ ? " (it lives in the process of rank " + std::to_string(host) + ")" : "";
  return {why.code(), "the coordinator of group '" + name_ + "' at " + joined_.coordinator.text() + also +
                          " is gone: " + why.what()};
}

// ---- how it ends ----

void ProcessGroup::end(const Error& why, bool told) {
  LaneQueue* ordered = nullptr;
  LaneQueue* named = nullptr;
  {
    const Lock lock(mutex_);
    if (why_ended_) {
      return;
    }
    why_ended_ = why;
    has_ended_.store(true, std::memory_order_release);  // pairs with check_usable()
    changed_.notify_all();
    ordered = ordered_.get();
    named = named_.get();
  }
  if (ordered != nullptr) {
    ordered->abort(why);
    named->abort(why);
    messages_->abort(why);
  }
  if (!told) {
    try {
      const std::string text = shortened(why.what(), kMostReasonBytes);
      joined_.control->send(ControlKind::kFailGroup, GroupEnd{rank_, why.code(), text}.encode(), {},
                            Deadline::after(kTellSeconds));
    } catch (const std::exception&) {
      joined_.control->shutdown();  // which tells it, too
    }
  }
  fail_named(why);  // last, because callbacks may not return
}

void ProcessGroup::fail_named(const Error& why) {
  std::map<std::string, NamedCall> pending;
  {
    const Lock lock(mutex_);
    pending.swap(pending_);
    changed_.notify_all();
  }
  for (const auto& [name, call] : pending) {
    call.job.work->fail(why);
  }
}

template <typename Done>
bool ProcessGroup::wait_for(const Done& done, const Deadline& deadline, const Interrupt& interrupt) {
  Lock lock(mutex_);
  while (!done()) {
    const auto step = std::min<Clock::duration>(kInterruptInterval, deadline.left());
    if (!changed_.wait_until(lock, Deadline::after(step), done) && deadline.expired()) {
      return false;
    }
    if (interrupt) {
      lock.unlock();
      interrupt();
      lock.lock();
    }
  }
  return true;
}

void ProcessGroup::close(const Interrupt& interrupt) {
  if (fork_number() != fork_number_ || closed_.exchange(true, std::memory_order_acq_rel)) {
    return;  // after a fork the connections are the parent's
  }
  try {
    leave(Deadline::after(timeout_s_), interrupt);
  } catch (...) {
    abandon();
    shut_down(Deadline::after(kStopSeconds));
    throw;
  }
  shut_down_or_say(interrupt);
}

void ProcessGroup::shut_down_or_say(const Interrupt& interrupt) {
  const Deadline deadline = Deadline::after(kStopSeconds);
  while (const auto waits_for = shut_down(Deadline::after(kInterruptInterval))) {
    if (deadline.expired()) {
      throw Error(ErrorCode::kDeadlineExceeded, who() + " is closed, but " + *waits_for + " has not ended within " +
                                                    seconds_text(kStopSeconds) + "; let callbacks return");
    }
    if (interrupt) {
      interrupt();
    }
  }
}

void ProcessGroup::leave(const Deadline& deadline, const Interrupt& interrupt) {
  const auto turns_given = [this] { return pending_.empty() || why_ended_.has_value(); };
  const bool done = wait_for(turns_given, deadline, interrupt) && ordered_->drain(deadline, interrupt) &&
                    named_->drain(deadline, interrupt) && messages_->drain(deadline, interrupt);
  if (!done) {
    end(Error(ErrorCode::kDeadlineExceeded, who() + " closes while its operations have yet to end"), false);
  }
  if (has_ended_.load(std::memory_order_acquire)) {
    return;
  }
  try {
    joined_.control->send(ControlKind::kLeaveGroup, GroupProgress{rank_, ordered_->number(), named_->number()}.encode(),
                          {}, deadline);
  } catch (const Error&) {
    return;  // the coordinator has gone first, and there is nobody to tell
  }
  wait_for([this] { return left_ || why_ended_.has_value(); }, deadline, interrupt);
}

void ProcessGroup::abandon() {
  if (fork_number() == fork_number_) {
    closed_.store(true, std::memory_order_release);
    joined_.control->shutdown();
    end(Error(ErrorCode::kPeerClosed, who() + " has given the group up"), true);
  }
}

std::optional<std::string> ProcessGroup::stop(const Deadline& deadline) {
  abandon();
  return shut_down(deadline);
}

// Returns what has not come to its end by the deadline.
std::optional<std::string> ProcessGroup::shut_down(const Deadline& deadline) {
  const auto ended = [this](std::string what) {
    const Lock lock(mutex_);
    if (what != stopped_by_) {
      stopped_by_ = std::move(what);
      stopped_since_ = now();
    }
    return stopped_by_.empty() ? std::nullopt : std::optional(stopped_by_);
  };
  {
    Lock lock(mutex_);
    stopping_ = true;
    ring_event_file(wake_.get());
    joined_.control->shutdown();
    if (!changed_.wait_until(lock, deadline, [this] { return !watching_; })) {
      lock.unlock();
      return ended("a callback of an operation");
    }
  }
  if (watcher_.joinable()) {
    watcher_.join();
  }
  for (LaneQueue* const queue : {ordered_.get(), named_.get()}) {
    if (queue != nullptr && !queue->stop(deadline)) {
      return ended(queue->stopped_by());
    }
  }
  if (messages_ && !messages_->stop(deadline)) {
    return ended("a callback of a send or receive");
  }
  return ended("");
}

}  // namespace distnet
