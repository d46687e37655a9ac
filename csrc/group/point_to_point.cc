#include "group/point_to_point.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/platform.h"
#include "base/ranks_text.h"

namespace distnet {
namespace {

using Kind = MessageFrame::Kind;

constexpr double kUndisturbedSeconds = 3600.0;

// Returns how many bytes an array of the operation has. Throws Error(kConfig) for a shape that cannot be.
std::uint64_t array_bytes(const Operation& operation) {
  std::uint64_t bytes = item_bytes(operation.dtype);
  bool fits = operation.shape.size() <= kMostDimensions;
  for (const std::int64_t extent : operation.shape) {
    fits = fits && extent >= 0 && !__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes);
  }
  if (!fits || bytes > kMostVectorBytes) {
    throw Error(ErrorCode::kConfig, std::string("the shape of the array of a ") + kind_name(operation.kind) +
                                        " cannot be: " + describe(operation));
  }
  return bytes;
}

}  // namespace

// A member that this one sends to or receives from.
struct PointToPoint::Peer final : MessageStream::Receiver {
  Peer(PointToPoint& of, std::uint32_t number) : owner(of), rank(number) {}

  void take_frame(const MessageFrame& frame, const std::string& text) override;
  std::span<std::byte> place_for(const MessageFrame& frame) override;
  void payload_came(const MessageFrame& frame) override;
  void payload_left(std::uint64_t id) override;
  bool idle() const { return sends.empty() && fills.empty() && waiting.empty(); }

  PointToPoint& owner;
  const std::uint32_t rank;
  std::unique_ptr<MessageStream> stream;      // null until it is connected
  std::deque<std::shared_ptr<Call>> waiting;  // sends for which there is no stream yet
  Calls sends;                                // offered or on the way
  Calls fills;                                // receives whose payload was asked for
  std::deque<MessageFrame> offers;            // that nobody receives yet
  std::uint64_t ids = 0;
  std::uint64_t last_offered = 0;
  std::optional<Error> gone;
};

PointToPoint::PointToPoint(const Joined& joined, std::uint32_t rank, std::string who, Arrivals& arrivals,
                           LaneOwner& owner)
    : joined_(joined),
      rank_(rank),
      size_(static_cast<std::uint32_t>(joined.formed.members.size())),
      who_(std::move(who)),
      arrivals_(arrivals),
      owner_(owner),
      wake_(FileDescriptor::open(create_event_file)),
      peers_(size_),
      left_(size_) {
  if (!wake_) {
    throw Error(ErrorCode::kTransport, no_descriptor_left("a group of ranks"));
  }
}

PointToPoint::~PointToPoint() { stop(Deadline::forever()); }

// ---- calls, from any thread ----

void PointToPoint::begin(LaneJob job, std::uint64_t tag) {
  const Operation& operation = job.operation;
  auto call = std::make_shared<Call>();
  call->peer = operation.root;
  call->tag = tag;
  const bool sends = operation.kind == OperationKind::kSend;
  if (call->peer == rank_ || (call->peer >= size_ && (sends || call->peer != kAnyRank))) {
    throw Error(ErrorCode::kConfig, who_ + " cannot " + kind_name(operation.kind) + " with rank " +
                                        std::to_string(call->peer) + "; another rank below " + std::to_string(size_) +
                                        " was expected");
  }
  const std::uint64_t bytes = array_bytes(operation);
  const std::size_t outputs = job.operands.outputs.size();
  const bool right = sends ? job.operands.inputs.size() == 1 && job.operands.inputs[0].size() == bytes
                           : outputs == 0 || (outputs == 1 && job.operands.outputs[0].size() == bytes);
  if (!right) {
    throw Error(ErrorCode::kConfig, std::string("the memory of a ") + kind_name(operation.kind) +
                                        " is not one array of " + std::to_string(bytes) +
                                        " bytes, as its shape says: " + describe(operation));
  }
  call->job = std::move(job);
  call->since = now();
  call->deadline = Deadline::after(call->job.timeout_s);
  std::unique_lock lock(mutex_);
  if (why_ended_ || stopping_) {
    const Error why = why_ended_.value_or(Error(ErrorCode::kPeerClosed, "the group is closed"));
    lock.unlock();
    call->job.work->fail(why);
    return;
  }
  if (!has_thread_) {
    start_thread();
  }
  call->number = ++calls_;
  pending_.emplace(call->number, call);
  new_calls_.push_back(call);
  lock.unlock();
  ring_event_file(wake_.get());
}

void PointToPoint::start_thread() {
  try {
    thread_ = Thread("sends, receives", [this] { run(); });
    has_thread_ = true;
  } catch (const std::exception& error) {
    throw Error(ErrorCode::kTransport, who_ + " has no thread that sends and receives: " + error.what());
  }
}

void PointToPoint::left(std::uint32_t rank, const Error& why) {
  if (rank >= size_ || rank == rank_) {
    return;  // the coordinator's word is not trusted so far
  }
  {
    const std::lock_guard lock(mutex_);
    newly_left_.emplace_back(rank, why);
  }
  ring_event_file(wake_.get());
}

void PointToPoint::abort(const Error& why) {
  {
    const std::lock_guard lock(mutex_);
    why_ended_ = why_ended_.value_or(why);
  }
  ring_event_file(wake_.get());
}

bool PointToPoint::drain(const Deadline& deadline, const Interrupt& interrupt) {
  std::unique_lock lock(mutex_);
  while (!pending_.empty()) {
    const auto step = std::min<Clock::duration>(kInterruptInterval, deadline.left());
    if (!changed_.wait_until(lock, Deadline::after(step), [this] { return pending_.empty(); }) && deadline.expired()) {
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

bool PointToPoint::stop(const Deadline& deadline) {
  {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    ring_event_file(wake_.get());
    if (!changed_.wait_until(lock, deadline, [this] { return !has_thread_; })) {
      return false;
    }
  }
  if (thread_.joinable()) {
    thread_.join();
  }
  return true;
}

std::optional<LaneWait> PointToPoint::waiting() const {
  const std::lock_guard lock(mutex_);
  if (pending_.empty()) {
    return std::nullopt;
  }
  const Call& call = *pending_.begin()->second;
  std::vector<std::uint32_t> awaited;
  if (call.peer != kAnyRank) {
    awaited.push_back(call.peer);
  }
  return LaneWait{call.number, call.since, describe(call.job.operation), awaited};
}

// ---- the thread ----

void PointToPoint::run() {
  std::optional<Error> why;
  try {
    run_until_stopped();
  } catch (const Error& error) {
    why = owner_.broken(error, std::nullopt);
  } catch (const std::exception& error) {
    why = owner_.broken(Error(ErrorCode::kTransport, std::string("sends and receives cannot go on: ") + error.what()),
                        std::nullopt);
  }
  {
    const std::lock_guard lock(mutex_);
    why_ended_ = why_ended_.value_or(why.value_or(Error(ErrorCode::kPeerClosed, "the group is closed")));
    why = why_ended_;
  }
  fail_all(*why);
  const std::lock_guard lock(mutex_);
  has_thread_ = false;
  stopping_ = true;  // no other thread begins
  changed_.notify_all();
}

void PointToPoint::run_until_stopped() {
  for (Arrivals::Arrival& arrival : early_) {
    use(arrival.rank, std::move(arrival.connection));
  }
  early_.clear();
  while (take_new_calls()) {
    take_arrivals();
    for (const auto& each : peers_) {
      if (each && each->stream) {
        move(*each);
      }
    }
    look_at_deadlines();
    poll_all();
  }
}

// Returns false where there is an end to it.
bool PointToPoint::take_new_calls() {
  std::deque<std::shared_ptr<Call>> calls;
  std::vector<std::pair<std::uint32_t, Error>> newly_left;
  {
    const std::lock_guard lock(mutex_);
    if (stopping_ || why_ended_) {
      return false;
    }
    calls.swap(new_calls_);
    newly_left.swap(newly_left_);
  }
  for (const auto& [rank, why] : newly_left) {
    part_from(rank, why);
  }
  for (const std::shared_ptr<Call>& call : calls) {
    place(call);
  }
  return true;
}

void PointToPoint::place(const std::shared_ptr<Call>& call) {
  if (call->peer != kAnyRank && left_[call->peer]) {
    conclude(call, left_[call->peer], call->peer);
    return;
  }
  if (call->sends()) {
    Peer& to = peer(call->peer);
    if (to.gone) {
      conclude(call, to.gone, call->peer);
    } else if (to.stream) {
      offer(to, call);
    } else {
      to.waiting.push_back(call);
    }
    return;
  }
  if (call->peer == kAnyRank) {
    for (std::uint32_t rank = 0; rank < size_; ++rank) {
      if (rank != rank_ && !left_[rank] && match(peer(rank), call)) {
        return;
      }
    }
    if (nobody_is_left()) {
      conclude(call, nobody_sends(*call), call->peer);
      return;
    }
  } else if (Peer& from = peer(call->peer); from.gone || match(from, call)) {
    if (from.gone) {
      conclude(call, from.gone, call->peer);
    }
    return;
  }
  receives_.push_back(call);
}

bool PointToPoint::nobody_is_left() const {
  for (std::uint32_t rank = 0; rank < size_; ++rank) {
    if (rank != rank_ && !left_[rank]) {
      return false;
    }
  }
  return true;
}

// Ends what waits for a rank that has left. Payloads that it sent before are on their way, and come.
void PointToPoint::part_from(std::uint32_t rank, const Error& why) {
  left_[rank] = why;
  const bool nobody = nobody_is_left();
  std::vector<std::shared_ptr<Call>> calls;
  std::erase_if(receives_, [&](const std::shared_ptr<Call>& call) {
    const bool ends = call->peer == rank || (call->peer == kAnyRank && nobody);
    if (ends) {
      calls.push_back(call);
    }
    return ends;
  });
  if (const auto& peer = peers_[rank]) {
    peer->offers.clear();
    calls.insert(calls.end(), peer->waiting.begin(), peer->waiting.end());
    peer->waiting.clear();
    std::erase_if(peer->sends, [&](const auto& entry) {
      const bool ends = !peer->stream->is_sending(entry.first);
      if (ends) {
        calls.push_back(entry.second);
      }
      return ends;
    });
  }
  for (const std::shared_ptr<Call>& call : calls) {
    conclude(call, call->peer == kAnyRank ? nobody_sends(*call) : why, rank);
  }
}

// Connects to a member of a lower rank; one of a higher rank comes by itself.
PointToPoint::Peer& PointToPoint::peer(std::uint32_t rank) {
  if (!peers_[rank]) {
    peers_[rank] = std::make_unique<Peer>(*this, rank);
    if (rank < rank_) {
      try {
        use(rank, connect_to_member(joined_, rank_, rank, MemberStream::kMessages,
                                    Deadline::after(joined_.formed.timeout_s), {}));
      } catch (const Error& error) {
        peers_[rank]->gone = owner_.broken(error, rank);
      }
    }
  }
  return *peers_[rank];
}

void PointToPoint::use(std::uint32_t rank, Stream connection) {
  if (!peers_[rank]) {
    peers_[rank] = std::make_unique<Peer>(*this, rank);
  }
  Peer& peer = *peers_[rank];
  if (peer.stream || peer.gone) {
    return;  // a second one
  }
  peer.stream = std::make_unique<MessageStream>(std::move(connection), peer);
  for (const std::shared_ptr<Call>& call : std::exchange(peer.waiting, {})) {
    offer(peer, call);
  }
}

void PointToPoint::take_arrivals() {
  for (Arrivals::Arrival& arrival : arrivals_.take()) {
    if (arrival.stream == MemberStream::kMessages) {
      use(arrival.rank, std::move(arrival.connection));
    }
  }
}

void PointToPoint::poll_all() {
  std::vector<pollfd> polled = {{wake_.get(), POLLIN, 0}};
  arrivals_.add_to(polled);
  for (const auto& each : peers_) {
    if (each && each->stream) {
      const int events = POLLIN | (each->stream->wants_to_write() ? POLLOUT : 0);
      polled.push_back({each->stream->poll_fd(), static_cast<short>(events), 0});
    }
  }
  Deadline until = Deadline::after(kUndisturbedSeconds);
  if (const Deadline next = arrivals_.next_look(); next.at() < until.at()) {
    until = next;
  }
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, call] : pending_) {
      until = call->deadline.at() < until.at() ? call->deadline : until;
    }
  }
  poll_until(polled, until);
  if (polled.front().revents != 0) {
    drain_event_file(wake_.get());
  }
}

void PointToPoint::move(Peer& peer) {
  try {
    peer.stream->move();
  } catch (const Error& error) {
    const std::string where = "rank " + std::to_string(peer.rank) + " of the group: ";
    const bool awaited = std::ranges::any_of(receives_, [&](const auto& call) { return call->peer == peer.rank; });
    if (error.code() == ErrorCode::kPeerClosed && peer.idle() && !awaited) {
      peer.gone = Error(error.code(), where + error.what());  // the coordinator says more, where others are concerned
      peer.stream.reset();
      peer.offers.clear();
      return;
    }
    fail_with(peer, owner_.broken(Error(error.code(), where + error.what()), peer.rank));
  }
}

// ---- offers and payloads ----

void PointToPoint::offer(Peer& peer, const std::shared_ptr<Call>& call) {
  MessageFrame frame;
  frame.kind = Kind::kOffer;
  frame.dtype = static_cast<std::uint16_t>(call->job.operation.dtype);
  frame.id = ++peer.ids;
  frame.tag = call->tag;
  frame.bytes = call->job.operands.inputs[0].size();
  peer.sends.emplace(frame.id, call);
  peer.stream->queue(frame);
}

// Returns whether an offer of this peer is what the call waits for.
bool PointToPoint::match(Peer& peer, const std::shared_ptr<Call>& call) {
  const auto found = std::ranges::find(peer.offers, call->tag, &MessageFrame::tag);
  if (found == peer.offers.end()) {
    return false;
  }
  const MessageFrame offered = *found;
  peer.offers.erase(found);
  accept(peer, offered, call);
  return true;
}

void PointToPoint::accept(Peer& peer, const MessageFrame& offered, const std::shared_ptr<Call>& call) {
  const Operation& operation = call->job.operation;
  const std::uint64_t bytes = array_bytes(operation);
  MessageFrame frame = offered;
  if (offered.dtype != static_cast<std::uint16_t>(operation.dtype) || offered.bytes != bytes) {
    const std::string text = "rank " + std::to_string(peer.rank) + " sends " + std::to_string(offered.bytes) +
                             " bytes of " + dtype_name(static_cast<DType>(offered.dtype)) + " with tag " +
                             std::to_string(offered.tag) + ", rank " + std::to_string(rank_) + " receives " +
                             std::to_string(bytes) + " bytes of " + dtype_name(operation.dtype);
    frame.kind = Kind::kRefuse;
    peer.stream->queue_text(frame, text);
    conclude(call, Error(ErrorCode::kCollectiveMismatch, text), peer.rank);
    return;
  }
  frame.kind = Kind::kAccept;
  peer.fills.emplace(offered.id, call);
  peer.stream->queue(frame);
}

void PointToPoint::Peer::take_frame(const MessageFrame& frame, const std::string& text) {
  const auto sent = sends.find(frame.id);
  switch (frame.kind) {
    case Kind::kOffer: {
      const bool known = frame.dtype != 0 && frame.dtype <= static_cast<std::uint16_t>(kLastDType);
      if (!known || frame.id <= last_offered || offers.size() >= kMostOffers) {
        throw Error(ErrorCode::kProtocol, "it offers what cannot be received");
      }
      last_offered = frame.id;
      const auto fits = std::ranges::find_if(owner.receives_, [&](const std::shared_ptr<Call>& call) {
        return call->tag == frame.tag && (call->peer == rank || call->peer == kAnyRank);
      });
      if (fits == owner.receives_.end()) {
        offers.push_back(frame);
        return;
      }
      const std::shared_ptr<Call> call = std::move(*fits);
      owner.receives_.erase(fits);
      owner.accept(*this, frame, call);
      return;
    }
    case Kind::kAccept:
      if (frame.id > ids || stream->is_sending(frame.id)) {
        throw Error(ErrorCode::kProtocol, "it asks for what it was not offered");
      }
      if (sent != sends.end()) {  // else the send waits no longer
        MessageFrame data = frame;
        data.kind = Kind::kData;
        stream->queue_payload(data, sent->second->job.operands.inputs[0]);
      }
      return;
    case Kind::kRefuse:
      if (sent != sends.end() && !stream->is_sending(frame.id)) {
        const std::shared_ptr<Call> call = sent->second;
        sends.erase(sent);
        owner.conclude(call, Error(ErrorCode::kCollectiveMismatch, text), rank);
      }
      return;
    case Kind::kCancel: {
      std::erase_if(offers, [&](const MessageFrame& offered) { return offered.id == frame.id; });
      const auto filled = fills.find(frame.id);
      if (filled != fills.end()) {
        const std::shared_ptr<Call> call = filled->second;
        fills.erase(filled);
        owner.place(call);
      }
      return;
    }
    case Kind::kData:
      break;
  }
  throw Error(ErrorCode::kProtocol, "it sends a frame of an unknown kind");
}

std::span<std::byte> PointToPoint::Peer::place_for(const MessageFrame& frame) {
  const auto found = fills.find(frame.id);
  if (found == fills.end() || frame.bytes != array_bytes(found->second->job.operation)) {
    throw Error(ErrorCode::kProtocol, "it sends what it was not asked for");
  }
  LaneJob& job = found->second->job;
  if (job.operands.outputs.empty()) {
    found->second->allocated = OwnedBytes(frame.bytes);
    return {found->second->allocated.data(), frame.bytes};
  }
  return job.operands.outputs[0];
}

void PointToPoint::Peer::payload_came(const MessageFrame& frame) {
  const std::shared_ptr<Call> call = fills.at(frame.id);
  fills.erase(frame.id);
  owner.conclude(call, std::nullopt, rank);
}

void PointToPoint::Peer::payload_left(std::uint64_t id) {
  const std::shared_ptr<Call> call = sends.at(id);
  sends.erase(id);
  owner.conclude(call, std::nullopt, rank);
}

// ---- how calls end ----

void PointToPoint::conclude(const std::shared_ptr<Call>& call, const std::optional<Error>& why, std::uint32_t from) {
  if (why) {
    call->job.work->fail(*why);
  } else {
    Result result;
    if (!call->sends()) {
      result.has_output = true;
      result.output = std::move(call->allocated);
      result.dtype = call->job.operation.dtype;
      result.shape = call->job.operation.shape;
      result.last_rank = from;
    }
    call->job.work->finish(std::move(result));
  }
  const std::lock_guard lock(mutex_);
  pending_.erase(call->number);
  changed_.notify_all();
}

Error PointToPoint::overdue(const Call& call) const {
  const std::string peer = call.peer == kAnyRank ? "any rank" : "rank " + std::to_string(call.peer);
  return {ErrorCode::kDeadlineExceeded, who_ + " has waited for its timeout for " + peer +
                                            (call.sends() ? " to receive (tag " : " to send (tag ") +
                                            std::to_string(call.tag) + ")"};
}

Error PointToPoint::nobody_sends(const Call& call) const {
  std::vector<std::uint32_t> others;
  for (std::uint32_t rank = 0; rank < size_; ++rank) {
    if (rank != rank_) {
      others.push_back(rank);
    }
  }
  return {ErrorCode::kPeerClosed, who_ + " waits for any rank to send (tag " + std::to_string(call.tag) +
                                      "), and nobody is left who could: " + ranks_text(others) +
                                      (others.size() == 1 ? " has left the group" : " have left the group")};
}

void PointToPoint::look_at_deadlines() {
  std::vector<std::shared_ptr<Call>> late;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [number, call] : pending_) {
      if (call->deadline.expired() && std::ranges::find(new_calls_, call) == new_calls_.end()) {
        late.push_back(call);
      }
    }
  }
  for (const std::shared_ptr<Call>& call : late) {
    time_out(call);
  }
}

// One whose payload is on its way ends the group, because the memory is in use at one end or the other.
void PointToPoint::time_out(const std::shared_ptr<Call>& call) {
  const Error why = overdue(*call);
  if (std::erase(receives_, call) != 0) {
    conclude(call, why, call->peer);
    return;
  }
  for (const auto& each : peers_) {
    if (!each) {
      continue;
    }
    if (std::erase(each->waiting, call) != 0) {
      conclude(call, why, call->peer);
      return;
    }
    const auto sent = std::ranges::find_if(each->sends, [&](const auto& entry) { return entry.second == call; });
    if (sent != each->sends.end() && !each->stream->is_sending(sent->first)) {
      MessageFrame frame;
      frame.kind = Kind::kCancel;
      frame.id = sent->first;
      each->stream->queue(frame);
      each->sends.erase(sent);
      conclude(call, why, call->peer);
      return;
    }
  }
  owner_.given_up(why);
  abort(why);
}

void PointToPoint::fail_with(Peer& peer, const Error& why) {
  peer.gone = why;
  peer.stream.reset();
  std::vector<std::shared_ptr<Call>> calls(peer.waiting.begin(), peer.waiting.end());
  for (const Calls* const each : {&peer.sends, &peer.fills}) {
    for (const auto& [id, call] : *each) {
      calls.push_back(call);
    }
  }
  for (const std::shared_ptr<Call>& call : receives_) {
    if (call->peer == peer.rank) {
      calls.push_back(call);
    }
  }
  peer.waiting.clear();
  peer.sends.clear();
  peer.fills.clear();
  peer.offers.clear();
  std::erase_if(receives_, [&](const std::shared_ptr<Call>& call) { return call->peer == peer.rank; });
  for (const std::shared_ptr<Call>& call : calls) {
    conclude(call, why, peer.rank);
  }
}

void PointToPoint::fail_all(const Error& why) {
  peers_.clear();
  receives_.clear();
  while (true) {
    std::shared_ptr<Call> call;
    {
      const std::lock_guard lock(mutex_);
      new_calls_.clear();
      if (pending_.empty()) {
        return;
      }
      call = pending_.begin()->second;
    }
    conclude(call, why, call->peer);
  }
}

}  // namespace distnet
