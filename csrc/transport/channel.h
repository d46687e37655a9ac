// Channels move the requests, gradients, replies and parameters of one session. There is one interface, and one folder
// of files for each transport.
//
// The code above a channel sees one kind of event: a request, whose payload is complete or on its way. A channel knows
// bytes, not stores. The parameters of a reply are pinned memory that stays as it is until the pin is released.
//
// Thread safety: one thread calls a channel. Other threads may call the methods of Outlet, client_left(), stop_taking()
// and close().
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/arrival.h"
#include "base/gradient_view.h"
#include "base/memory.h"
#include "base/pin.h"
#include "base/time.h"
#include "base/tuning.h"
#include "wire/control_messages.h"
#include "wire/data_messages.h"

namespace distnet {

// A channel whose client has asked for nothing for so long falls dormant. The request after that waits for a thread to
// start, a fifth of a millisecond: far below a thousandth of the silence.
inline constexpr double kIdleSeconds = 1.0;

struct Request {
  RequestHeader header;
  // Learning rates by groups, where the header says that it has some; in memory like the gradient's.
  std::span<const double> group_rates;
  GradientView gradient;        // in memory that the server owns, unchanged until settled(header.push)
  Arrival* arriving = nullptr;  // waited for before the next request; null when the gradient is complete
  float* replica = nullptr;     // the client's copy of the parameters, when it wants the reply's written there
  bool takes_ahead = false;     // send_ahead() may be used
};

struct Reply {
  ReplyHeader header;
  Pin pin;                      // empty: a reply without parameters
  const float* data = nullptr;  // the parameters, in what is pinned
  std::uint64_t count = 0;      // floats
  bool live = false;            // written to while they are read: copied float by float, never torn
  bool then_applies = false;    // the caller makes an update next, which must not wait for a client that does not read
};

// Tells a session's client about its pushes. Any thread may call it, but only one at a time for one push.
class Outlet {
 public:
  virtual ~Outlet() = default;
  // Tells that push number `push` is settled: its gradient's memory may be written again.
  virtual void settled(std::uint64_t push) = 0;
  // Tells that elements [0, elements) of the version that push `push` makes lie in `buffer`, where the client may begin
  // to read them.
  virtual void drafted(std::uint64_t push, std::uint32_t buffer, std::uint64_t elements) {
    static_cast<void>(push), static_cast<void>(buffer), static_cast<void>(elements);
  }
  // Unpins what the client has released since the last call.
  virtual void collect_released() {}
};

class ServerChannel : public Outlet {
 public:
  // Returns the descriptors that the client gets with its welcome.
  virtual std::vector<int> descriptors() const { return {}; }
  // The client has them: this side needs them no more.
  virtual void descriptors_passed() {}

  // Waits for the next request and its payload. Returns nothing when no more come, and when none has come for
  // kIdleSeconds: then the channel is dormant. Throws Error(kProtocol) when the client breaks a rule of the protocol.
  virtual std::optional<Request> next() = 0;
  // A dormant channel holds as little as it can, and needs no thread that waits in next(). It is dormant from its
  // beginning, too. Its client says when a request is there: wake_fd() polls readable or, where there is none, Wake
  // comes over the control connection. The thread that called next() asks for it.
  virtual bool is_dormant() const { return false; }
  virtual int wake_fd() const { return -1; }
  virtual void reply(Reply reply) = 0;
  // Sends the parameters of the reply to `request` before it, while the gradient of that request arrives.
  virtual void send_ahead(const RequestHeader& request, Reply ahead) {
    static_cast<void>(request), static_cast<void>(ahead);
  }

  // Tells that the client has ended. next() still returns what arrived from it in full, then nothing.
  virtual void client_left() = 0;
  // From now on next() returns nothing; replies still leave.
  virtual void stop_taking() = 0;
  // next() returns nothing from now on, and replies are dropped.
  virtual void close() = 0;

  // Returns whether the client ended in the middle of a push, which then changed nothing. Called after next() has
  // returned nothing.
  virtual bool was_cut_off() const { return false; }
  virtual Progress progress() const = 0;
  virtual std::uint64_t bytes_received() const = 0;
  virtual std::uint64_t bytes_sent() const = 0;
};

// Consecutive elements of a shard in the caller's memory. Lists of slices are in order of offset.
struct SourceSlice {
  const float* from = nullptr;
  std::uint64_t offset = 0;  // floats from the shard's first
  std::uint64_t count = 0;
};
struct TargetSlice {
  float* to = nullptr;
  std::uint64_t offset = 0;
  std::uint64_t count = 0;
};

class ClientChannel {
 public:
  virtual ~ClientChannel() = default;

  // Maps the replica of the shard's parameters over [at, at + the shard's floats), which begins a page. Returns false
  // when there is no replica; no request may then ask for delivery.
  virtual bool place_replica(float* at) { return static_cast<void>(at), false; }

  virtual std::uint64_t push_bytes() const = 0;  // the size of a gradient's payload
  // Returns whether there is room for the gradient of push number `push`.
  virtual bool has_room(std::uint64_t push) = 0;
  // Begins to send a push: its request, its learning rates by groups where the header says that it has some, and its
  // gradient with each element times `scale`. The slices' memory is read until flush() returns true.
  virtual void start(const RequestHeader& request, std::span<const double> group_rates,
                     std::span<const SourceSlice> gradient, float scale) = 0;
  // Returns whether the gradient could be sent: it holds no NaN, no infinity and nothing too large for the format.
  // Called after flush().
  virtual bool finite() const = 0;
  // Ends the push: it counts, or it is withdrawn. The server accepts nothing before. Call flush() then.
  virtual void conclude(bool counts) = 0;
  // Withdraws a push that was begun and not concluded. The rest of its payload is filled in. Call flush() then. Returns
  // false when no push is half-way.
  virtual bool withdraw() = 0;
  // Sends a request without a gradient.
  virtual void post(const RequestHeader& request) = 0;
  // Returns what a lossy format left unsent of the pushes so far and adds to the next one, for all of the shard's
  // floats. Empty when the format leaves nothing unsent.
  virtual std::span<float> unsent() { return {}; }

  // Says where the parameters of the reply to the newest request may be written while its gradient is sent. Holds until
  // the next request.
  virtual void expect(std::span<const TargetSlice> parameters) { static_cast<void>(parameters); }
  // Sends as many bytes of requests as it can without waiting. Returns true when all have left.
  virtual bool flush() = 0;

  // Receives as much of the next reply as it can without waiting. Returns true when header and payload are complete;
  // until then a part of the parameters may have been written.
  virtual bool receive(ReplyHeader& reply, std::span<const TargetSlice> parameters) = 0;
  // Returns the parameters of the reply just received when they can be read in place until the next receive(),
  // otherwise null.
  virtual const float* in_place() const { return nullptr; }

  // How far this end got, for comparison with the server's count.
  virtual std::uint64_t sent_bytes() const { return 0; }
  virtual std::uint64_t received_bytes() const { return 0; }
  virtual std::uint64_t replies_received() const = 0;

  // Returns the core on which the server's thread of this session last ran, a hint; none where that is not known.
  virtual std::optional<std::uint32_t> server_core() const { return std::nullopt; }
  // Asks that thread to leave a core, if it still runs there: one that serves this client for another shard does, too.
  virtual void ask_to_leave(std::uint32_t core) { static_cast<void>(core); }

  // Waits until has_room, flush or receive may get further, close() is called, or the time is over. May wake early.
  virtual void wait(milliseconds at_most) = 0;
  // Returns the descriptor to poll instead of wait(), or -1 when there is none.
  virtual int poll_fd() const { return -1; }
  virtual short poll_events() const { return 0; }

  virtual TransportKind kind() const = 0;
  virtual void close() = 0;
};

// What both ends need to know about a session.
struct ChannelShape {
  std::uint64_t shard_floats = 0;
  std::uint32_t max_inflight = 1;
  std::uint64_t nonce[2] = {};
  std::uint64_t buffer_bytes = 0;      // shared memory: the size of each parameter buffer
  std::uint64_t ema_offset_bytes = 0;  // shared memory: where the average lies in it
  bool live = false;                   // shared memory: whether buffers are written to while they are read
  std::uint32_t rated_groups = 0;      // that a push may have learning rates for
  bool takes_pushes = true;            // false: the session has neither gradients nor a replica
  double timeout_s = 30.0;             // until a peer that no longer answers is given up
  std::shared_ptr<const WireFormat> push_format;
  std::shared_ptr<const WireFormat> pull_format;

  std::uint64_t push_bytes() const { return payload_bytes(*push_format); }
  std::uint64_t pull_bytes() const { return payload_bytes(*pull_format); }

 private:
  std::uint64_t payload_bytes(const WireFormat& format) const {
    return format.plain() ? shard_floats * sizeof(float) : format.encoded_bytes(shard_floats);
  }
};

}  // namespace distnet
