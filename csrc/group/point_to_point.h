// Sends and receives between two members, which meet by peer and tag.
//
// A send offers its payload, and the payload leaves when the peer has asked for it. So a send ends when the peer has
// begun to receive, and nothing is buffered beyond what peers have asked for. Of equal tags the oldest meet first. One
// thread moves all of it, and starts with the first call.
//
// Thread safety: any number of threads may call all methods; one destroys it, after stop().
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/threads.h"
#include "base/waiting.h"
#include "group/lane_queue.h"
#include "group/mesh.h"
#include "group/message_stream.h"

namespace distnet {

class PointToPoint {
 public:
  static constexpr std::uint32_t kAnyRank = ~0U;     // a receive takes from whoever sends
  static constexpr std::size_t kMostOffers = 65536;  // of one peer, not yet received

  // What it refers to outlives it. `arrivals` is its own from now on.
  PointToPoint(const Joined& joined, std::uint32_t rank, std::string who, Arrivals& arrivals, LaneOwner& owner);
  PointToPoint(const PointToPoint&) = delete;
  PointToPoint& operator=(const PointToPoint&) = delete;
  ~PointToPoint();

  // Connections that came before anybody asked for them.
  void add(std::vector<Arrivals::Arrival> early) { early_ = std::move(early); }
  // `job`: a send or a receive; its root is the peer. Throws Error(kConfig) where it cannot be.
  void begin(LaneJob job, std::uint64_t tag);
  // This rank has left in order: it has taken and sent all that it will. What waits for it, and all that comes later, fails
  // with `why`; a payload that is on its way still comes. Receives from any rank fail once nobody is left.
  void left(std::uint32_t rank, const Error& why);
  // Everything pending and everything later fails with this.
  void abort(const Error& why);
  // Waits until nothing is pending. Returns false when the deadline passed first.
  bool drain(const Deadline& deadline, const Interrupt& interrupt);
  // Returns false where something has not come to its end by the deadline; it may be called again.
  bool stop(const Deadline& deadline);
  // The oldest call that is pending.
  std::optional<LaneWait> waiting() const;

 private:
  struct Call {
    LaneJob job;
    std::uint64_t tag = 0;
    std::uint64_t number = 0;  // of the calls of this member
    Clock::time_point since;
    Deadline deadline = Deadline::forever();
    std::uint32_t peer = 0;  // as asked for
    OwnedBytes allocated;    // of a receive without outputs
    bool sends() const { return job.operation.kind == OperationKind::kSend; }
  };
  using Calls = std::map<std::uint64_t, std::shared_ptr<Call>>;  // by the payload's id
  struct Peer;

  void start_thread();
  void run();
  void run_until_stopped();
  void poll_all();
  bool take_new_calls();
  void place(const std::shared_ptr<Call>& call);
  void part_from(std::uint32_t rank, const Error& why);
  bool nobody_is_left() const;
  Error nobody_sends(const Call& call) const;
  void take_arrivals();
  void use(std::uint32_t rank, Stream connection);
  Peer& peer(std::uint32_t rank);
  void move(Peer& peer);
  void offer(Peer& peer, const std::shared_ptr<Call>& call);
  bool match(Peer& peer, const std::shared_ptr<Call>& call);
  void accept(Peer& peer, const MessageFrame& offered, const std::shared_ptr<Call>& call);
  void look_at_deadlines();
  void time_out(const std::shared_ptr<Call>& call);
  void conclude(const std::shared_ptr<Call>& call, const std::optional<Error>& why, std::uint32_t from);
  void fail_all(const Error& why);
  void fail_with(Peer& peer, const Error& why);
  Error overdue(const Call& call) const;

  const Joined& joined_;
  const std::uint32_t rank_;
  const std::uint32_t size_;
  const std::string who_;
  Arrivals& arrivals_;
  LaneOwner& owner_;
  FileDescriptor wake_;

  // Only its thread uses these.
  std::vector<Arrivals::Arrival> early_;
  std::vector<std::unique_ptr<Peer>> peers_;    // by rank; null until somebody is to be reached
  std::deque<std::shared_ptr<Call>> receives_;  // that no offer fits yet
  std::vector<std::optional<Error>> left_;      // by rank: why it takes and sends nothing more

  mutable Mutex mutex_;  // guards what follows
  Condition changed_;
  std::deque<std::shared_ptr<Call>> new_calls_;
  std::map<std::uint64_t, std::shared_ptr<Call>> pending_;  // by number
  std::vector<std::pair<std::uint32_t, Error>> newly_left_;
  std::uint64_t calls_ = 0;
  std::optional<Error> why_ended_;
  bool stopping_ = false;
  bool has_thread_ = false;  // which may still use this
  Thread thread_;
};

}  // namespace distnet
