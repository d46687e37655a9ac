// A worker's end: one gradient in, fresh parameters out, over all shards at once.
//
// Thread safety: one thread a client. Calls end in the order they began; at most max_inflight are on the way.
// A call that throws leaves the client usable where the error says so: after kDeadlineExceeded or an interrupt in
// finish(), the call is settled before the next one begins.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/link.h"

namespace distnet {

struct ClientOptions {
  std::string address;                // comma-joined endpoints
  std::optional<std::uint32_t> rank;  // none: an observer, which pulls only
  double deadline_s = 30.0;
  TransportChoice transport = TransportChoice::kAuto;
  Tuning tuning;
};

class Client {
 public:
  enum class Call : std::uint8_t { kPull, kPullAverage, kPullSettled, kPullAverageSettled, kPush, kPushPull };

  // `initial`: a model for a server that has none; tensors in the manifest's order. Empty manifest: none.
  Client(const ClientOptions& options, const Manifest& initial, std::span<const float* const> initial_tensors,
         const Interrupt& interrupt);
  ~Client();

  const Manifest& manifest() const { return manifest_; }
  std::uint64_t flat_floats() const { return flat_floats_; }  // of the client's own buffer, shard padding included
  float* flat() const { return flat_.as<float>(); }
  bool has_average() const;
  TransportKind transport() const;

  // Sends one request to every shard. `gradient`: one pointer a tensor; may be overwritten on return. `into_flat`: the
  // caller waits for the reply at once, and the parameters may be put into flat() from now on. Returns the call's
  // number. Throws Error(kNonFiniteGradient), having settled the sequence number as refused.
  std::uint64_t begin(Call call, std::span<const float* const> gradient, bool into_flat, const Interrupt& interrupt);
  // Waits for the replies to call `number`, which must be the oldest. Parameters go to `targets` (one pointer a
  // tensor), or to flat() where it is empty. Throws Error with the first status that is not good.
  void finish(std::uint64_t number, std::span<float* const> targets, const Interrupt& interrupt);
  // finish() without a copy: the tensors where the store has them, until the next call; else in flat().
  std::vector<const float*> finish_in_place(std::uint64_t number, const Interrupt& interrupt);

  // What lossy push formats have left unsent so far, one pointer a tensor; goes along with the next push. False: none
  // of the job's formats leaves anything. Restoring it is for a worker that goes on where an earlier one ended.
  bool unsent(std::span<float* const> targets);
  void restore_unsent(std::span<const float* const> tensors);

  void close(const Interrupt& interrupt);
  void abandon();
  std::string stats(const Interrupt& interrupt);  // a JSON list, one object a shard
  // Vector number `slot` of the optimizer's state, into one pointer a tensor. False: it has fewer.
  bool optimizer_state(std::uint32_t slot, std::span<float* const> targets, const Interrupt& interrupt);

  std::vector<std::uint64_t> versions() const;
  std::uint64_t accepted() const;
  std::uint64_t applied() const;
  std::uint64_t staleness() const;
  std::uint64_t round() const;

 private:
  // The part of one tensor that lies in one shard.
  struct TensorPiece {
    std::size_t tensor = 0;
    std::uint64_t tensor_offset = 0;
    std::uint64_t shard_offset = 0;
    std::uint64_t count = 0;
  };
  struct Shard {
    std::unique_ptr<Link> link;
    std::vector<TensorPiece> pieces;
    std::uint64_t flat_offset = 0;
    bool delivers = false;  // the server can put parameters into flat()
    ReplyHeader last{};
    std::uint64_t parameters_version = 0;  // of the newest parameters it brought
    std::vector<SourcePiece> sources;
    std::vector<TargetPiece> targets;
  };
  struct Outstanding {
    std::uint64_t number = 0;
    Call call = Call::kPull;
    bool abandoned = false;  // nobody waits for it: a skip, or interrupted in finish()
    std::vector<bool> received;
    ErrorCode status = ErrorCode::kNone;
    std::uint64_t round = 0;  // joins "all": that its push is for
  };

  void check_usable() const;
  void lay_out();
  float clip_scale(std::span<const float* const> gradient) const;
  bool reaches_flat(std::span<const float* const> gradient) const;
  RequestHeader request_for(Call call, bool into_flat) const;
  RequestHeader to_shard(const RequestHeader& request, const Shard& shard) const;
  void start(const RequestHeader& request, std::span<const float* const> gradient);
  void remember(const RequestHeader& request, Call call);
  bool send_push(const RequestHeader& request, std::span<const float* const> gradient, const Interrupt& interrupt);
  void expect_delivery();
  void flush(const Interrupt& interrupt);
  void drain_abandoned(const Interrupt& interrupt);
  void receive_all(Outstanding& outstanding, const Interrupt& interrupt);
  void take_reply(Outstanding& outstanding, std::size_t index, const ReplyHeader& reply);
  void find_round_again();
  void use_own_targets();
  template <typename Done>
  void wait_for_links(const Done& done, const Interrupt& interrupt);
  void raise(const Outstanding& outstanding) const;

  ClientOptions options_;
  Manifest manifest_;
  std::vector<Shard> shards_;
  Region flat_;
  std::uint64_t flat_floats_ = 0;
  std::deque<Outstanding> outstanding_;
  std::uint64_t next_number_ = 1;
  std::uint64_t pushes_ = 0;
  std::uint64_t rounds_begun_ = 0;
  std::uint32_t max_inflight_ = 1;
  bool joins_all_ = false;
  double clip_norm_ = 0.0;
  bool closed_ = false;
  std::string broken_;  // why the streams are no more in step
  int process_;
};

}  // namespace distnet
