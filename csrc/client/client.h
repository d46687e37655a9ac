// A worker's end: one gradient in, fresh parameters out, over all shards at once.
//
// Thread safety: one thread a client; drop() may be called from any. Replies come in the order of the calls; at most
// max_inflight are on the way.
//
// Invariants
// - A call that cannot be finished is refused before a byte of it is sent.
// - A call that nobody waits for (dropped, interrupted, refused) settles by itself before the next one begins.
// - A push that was broken off half-way is withdrawn: the server settles its number as refused.
// - After an error the client goes on, unless its connection is lost: then every later call throws the same error.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/gatherer.h"
#include "client/link.h"
#include "client/snapshot_reader.h"

namespace distnet {

struct ClientOptions {
  std::string address;                   // comma-joined addresses
  std::optional<std::uint32_t> rank;     // none: an observer, which pulls only
  double timeout_s = 30.0;               // of silence; the server keeps it within bounds
  const Transport* transport = nullptr;  // null: within the host where the server is here, else between hosts
  Tuning tuning;
  std::uint32_t start = 0;  // the launcher's count of starts of this rank
  std::uint64_t owner = 0;  // proves that the server's owner asks; 0: somebody else does
  WhileConnecting waiting = {};
  std::optional<BroughtOptimizer> optimizer = {};  // goes with the model, for servers that were told of none
  Interrupt stopped = {};  // what callers give each wait, beside what they have of their own: see Client::stopped()
};

class Client {
 public:
  static constexpr double kBrokenOffSeconds = 2.0;

  enum class Call : std::uint8_t {
    kPull,
    kPullEma,
    kPullSettled,
    kPullEmaSettled,
    kPush,
    kPushPull,
    kAbstain,      // a push that brings no gradient
    kAbstainPull,  // the same, for its reply's parameters
    kAdd,          // a push of a change of the parameters
    kAddPull,      // the same, for its reply's parameters
    kSettle,
  };

  // `initial`: a model for a server that has none; tensors in the manifest's order. Empty manifest: none.
  Client(const ClientOptions& options, const Manifest& initial, std::span<const float* const> initial_tensors,
         const Interrupt& interrupt);
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  ~Client();

  const Manifest& manifest() const { return manifest_; }
  // What the server's owner says of it, and whoever brought its optimizer of that.
  const std::string& about() const { return shards_.front().link->welcome().about; }
  const std::string& about_optimizer() const { return shards_.front().link->welcome().optimizer; }
  std::uint64_t flat_floats() const { return flat_floats_; }  // of the client's own buffer, shard padding included
  float* flat() const { return flat_.as<float>(); }
  bool has_ema() const;
  // Patterns of the server's groups that a push may have learning rates for, in the order of PushSettings::group_rates.
  const std::vector<std::string>& groups() const { return shards_.front().link->welcome().groups; }
  // Within the host where all shards are reached so.
  const Transport& transport() const;

  // How the caller goes on after begin().
  enum class Then : std::uint8_t {
    kLater,         // finishes the call some time
    kAtOnce,        // finishes it next; refused where an older call has yet to be finished
    kAtOnceInFlat,  // the same, and the parameters may be put into flat() from now on
  };
  // Sends one request to every shard. `gradient`: one pointer a tensor; may be overwritten on return. Returns the call's
  // number. Throws Error(kNonFiniteGradient), having settled the sequence number as refused, and Error(kConfig) for
  // settings that cannot be, or that have no meaning under the server's semantics; an abstention has none, and neither
  // has a change.
  std::uint64_t begin(Call call, std::span<const float* const> gradient, Then then, const Interrupt& interrupt,
                      const PushSettings& settings = {});
  // Waits for the replies to call `number`, once. Parameters go to `targets` (one pointer a tensor), or to flat() where
  // it is empty. What comes of older calls before is kept until they are finished. Throws Error with the first status
  // that is not good.
  void finish(std::uint64_t number, std::span<float* const> targets, const Interrupt& interrupt);
  // finish() without a copy: the tensors where the store has them, until the next call; else in flat().
  std::vector<const float*> finish_in_place(std::uint64_t number, const Interrupt& interrupt);

  // What lossy push formats have left unsent so far, one pointer a tensor; goes along with the next push. False: none
  // of the job's formats leaves anything. Restoring it is for a worker that goes on where an earlier one ended.
  bool unsent(std::span<float* const> targets);
  void restore_unsent(std::span<const float* const> tensors);

  // Says that nobody will wait for this call. Any thread may call it, at any time.
  void drop(std::uint64_t number);

  // ---- waits for the other ranks
  // How many workers the server expects.
  std::uint32_t workers() const { return shards_.front().link->welcome().workers; }
  // Settles what was pushed at every shard, and says that this rank waits for the others: within `timeout_s`, else it
  // throws Error(kDeadlineExceeded). A rank that finishes pushes no more.
  void arrive(GatherKind kind, double timeout_s, const Interrupt& interrupt);
  // See Gatherer::wait() and leave(). A barrier that all have reached then throws what the server has found out about
  // this client's last push.
  bool wait_for_others(double at_most_s, const Interrupt& interrupt);
  void stop_waiting(const Interrupt& interrupt);
  void give_up_waiting();
  std::string awaited(const Interrupt& interrupt);  // whom a gathering waits for now; empty: nobody

  // Leaves in order, once everything that was pushed is settled; for a call that was broken off it waits no longer than
  // kBrokenOffSeconds. Closes in any case; throws what kept it from the
  // rest, unless a call has thrown that before.
  void close(const Interrupt& interrupt);
  void abandon();
  // Also where the connection was lost.
  bool closed() const;
  // What ends each wait from another thread: the client keeps it for its callers, from the connecting on.
  const Interrupt& stopped() const { return options_.stopped; }
  std::uint64_t next_number() const { return next_number_; }                      // that the next call will have
  double timeout_s() const { return shards_.front().link->welcome().timeout_s; }  // that counts
  std::uint32_t incarnation() const { return shards_.front().link->welcome().grant.incarnation; }
  // What the servers want the user to hear, since the last call.
  std::vector<std::string> take_warnings();
  bool has_warnings() const;
  std::string stats(const Interrupt& interrupt);  // a JSON list, one object a shard
  // Has all shards cut; read_snapshot() follows. See SnapshotReader.
  SnapshotShape begin_snapshot(std::optional<std::uint64_t> at_round, double timeout_s, const Interrupt& interrupt);
  // Reads what was cut: for each vector one pointer a tensor. Returns what ranks had saved.
  SavedByRank read_snapshot(std::span<const std::vector<float*>> vectors, const Interrupt& interrupt);

  // Replaces the schedule by this learning rate: the next push has it, and in rounds the round that closes next, with
  // all that others have pushed for it. A worker's own pushes are settled first. Rank 0 or the owner; throws
  // Error(kConfig) for anybody else, where it is negative or not finite, or while a call has yet to be finished.
  void set_learning_rate(double learning_rate, const Interrupt& interrupt);
  // Has shard 0 keep bytes if the next push is applied. Throws Error(kConfig) for an observer, for a rank that has
  // finished, for more than kMaxSavedBytes, and where the server keeps none for this rank.
  void save_with(std::span<const std::byte> data, const Interrupt& interrupt);
  // What the rank had saved when this client connected.
  const std::optional<std::vector<std::byte>>& saved() const { return shards_.front().link->saved(); }

  std::vector<std::uint64_t> versions() const;
  std::uint64_t accepted() const;
  std::uint64_t applied() const;  // or abstained
  std::uint64_t staleness() const;
  std::uint64_t round() const;

 private:
  struct Shard {
    std::unique_ptr<Link> link;
    std::vector<TensorSlice> slices;
    std::uint64_t flat_offset = 0;
    bool delivers = false;  // the server can put parameters into flat()
    ReplyHeader last{};
    std::uint64_t parameters_version = 0;  // of the newest parameters it brought
    std::vector<SourceSlice> sources;
    std::vector<TargetSlice> targets;
  };
  struct Outstanding {
    std::uint64_t number = 0;
    Call call = Call::kPull;
    bool at_once = false;     // it is finished before the next one begins
    bool abandoned = false;   // nobody waits for it: dropped, interrupted, or refused
    bool broken_off = false;  // because it was interrupted
    std::vector<bool> received;
    std::vector<float> parked;  // its parameters, where a later call was settled before it
    ErrorCode status = ErrorCode::kNone;
    std::uint64_t round = 0;   // joins "all": that its push is for
    std::uint64_t pushes = 0;  // how many there were, its own included
  };

  void check_usable() const;
  void lose(const Error& why);
  void check_lost() const;
  template <typename Ask>
  void for_each_link(const Ask& ask);
  template <typename Ask>
  auto of_shard_0(const Ask& ask);
  bool loss_was_told() const;
  std::deque<Outstanding>::iterator come_to(std::uint64_t number, const Interrupt& interrupt);
  void lay_out();
  float clip_scale(std::span<const float* const> gradient) const;
  bool reaches_flat(std::span<const float* const> gradient) const;
  void check_settings(const PushSettings& settings) const;
  void check_unsent(Call call);
  RequestHeader request_for(Call call, bool into_flat, const PushSettings& settings) const;
  RequestHeader to_shard(const RequestHeader& request, const Shard& shard) const;
  void start(const RequestHeader& request, std::span<const float* const> gradient, const PushSettings& settings);
  void remember(const RequestHeader& request, Call call, bool at_once);
  void give_up_unfinished();
  bool send(Call call, const RequestHeader& request, std::span<const float* const> gradient,
            const PushSettings& settings, const Interrupt& interrupt);
  bool send_push(const RequestHeader& request, std::span<const float* const> gradient, const PushSettings& settings,
                 const Interrupt& interrupt);
  void break_off();
  void expect_delivery();
  void flush(const Interrupt& interrupt);
  void mark_dropped();
  void drain_abandoned(const Interrupt& interrupt);
  void make_room(const Interrupt& interrupt);
  void park(Outstanding& outstanding, const Interrupt& interrupt);
  void receive_all(Outstanding& outstanding, const Interrupt& interrupt);
  void receive_front(const Interrupt& interrupt);
  void part_those_that_share_a_core();
  void take_reply(Outstanding& outstanding, std::size_t index, const ReplyHeader& reply);
  void find_round_again();
  void use_own_targets() { use_targets(flat()); }
  void use_targets(float* flat);
  template <typename Done>
  void wait_for_links(const Done& done, bool for_replies, const Interrupt& interrupt);
  template <typename Done>
  void wait_until_done(const Done& done, bool for_replies, const Interrupt& interrupt);
  std::string why_rounds_ended() const;
  std::string why_aborted(std::uint64_t round, const Interrupt& interrupt);
  void raise(const Outstanding& outstanding, const Interrupt& interrupt);
  void raise_refused_before();
  std::string why_not_finite(Call call, std::span<const float* const> gradient) const;

  ClientOptions options_;
  Manifest manifest_;
  std::vector<Shard> shards_;
  Region flat_;
  std::uint64_t flat_floats_ = 0;
  std::unique_ptr<Gatherer> gatherer_;        // over the link to shard 0
  bool finished_ = false;                     // it pushes no more
  std::unique_ptr<SnapshotReader> snapshot_;  // null unless one is being read
  std::deque<Outstanding> outstanding_;
  std::uint64_t next_number_ = 1;
  std::uint64_t pushes_ = 0;
  // Whether lossy formats left unsent something of changes, or of gradients. None: nothing, or what was restored.
  std::optional<bool> unsent_of_changes_;
  std::uint64_t refused_before_ =
      0;  // a push that the server refused after its reply, until a call has thrown it; or 0
  std::uint64_t rounds_begun_ = 0;
  std::uint32_t max_inflight_ = 1;
  bool joins_all_ = false;
  bool takes_means_ = false;
  double clip_norm_ = 0.0;
  bool half_sent_ = false;  // what a break left of a request is yet to leave
  bool closed_ = false;
  std::uint32_t fork_number_;  // of the process that made this

  mutable Mutex lost_mutex_;
  std::optional<Error> why_lost_;
  mutable bool loss_was_told_ = false;  // a call has thrown it

  Mutex dropped_mutex_;
  std::vector<std::uint64_t> dropped_;  // calls that drop() named, until the client's own thread sees to them
};

}  // namespace distnet
