// How requests, gradients, replies and parameters of one session move: one interface, one pair of files a wire.
//
// Above a channel there is one event: a request, with its payload complete or on its way. A channel knows bytes, not
// stores: a reply's payload is memory that stays as it is until `release` is called.
//
// Thread safety: one thread calls a channel; only stop_taking(), close(), settled() and collect_released() may be
// called from others.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "base/arrival.h"
#include "base/decoder.h"
#include "base/region.h"
#include "base/time.h"
#include "base/tuning.h"
#include "transport/control.h"
#include "wire/format.h"
#include "wire/protocol.h"

namespace distnet {

struct Request {
  RequestHeader header;
  const float* payload = nullptr;    // in memory the server owns, until settled(header.push)
  const Decoder* decoder = nullptr;  // reads the payload; null: it is floats
  Arrival* arriving = nullptr;  // while the payload is on its way, to be waited for before the next request; else null
  float* replica = nullptr;     // the client's own copy of the parameters, where it wants the reply's to be put
  bool takes_ahead = false;     // send_ahead() may be used
};

struct ReplyPayload {
  const float* data = nullptr;    // null: a reply without parameters
  std::uint64_t count = 0;        // floats
  bool live = false;              // written to while it is read: copy float by float, never torn
  std::function<void()> release;  // called once, from any thread, when the data is not needed any more
};

class ServerChannel {
 public:
  virtual ~ServerChannel() = default;

  // Waits for the next request and its payload; nothing once closed. Throws Error(kProtocol) on a broken rule.
  virtual std::optional<Request> next() = 0;
  // `then_applies`: the caller has an update to make next, which is not to wait for a client that does not read.
  virtual void reply(const ReplyHeader& header, ReplyPayload payload, bool then_applies) = 0;
  // Sends the parameters of the reply to `request` before it, while the gradient of that request arrives.
  virtual void send_ahead(const RequestHeader& request, ReplyPayload payload) {
    static_cast<void>(request);
    payload.release();
  }

  // Push number `push` is settled: its gradient's memory may be written again.
  virtual void settled(std::uint64_t push) = 0;
  // Elements [0, elements) of the version that push `push` makes lie in `buffer`: a client may begin to read them. Any
  // thread, one at a time.
  virtual void drafted(std::uint64_t push, std::uint32_t buffer, std::uint64_t elements) {
    static_cast<void>(push), static_cast<void>(buffer), static_cast<void>(elements);
  }
  // Releases what the client has let go since.
  virtual void collect_released() {}
  // From now on next() returns nothing; replies still leave.
  virtual void stop_taking() = 0;
  // At once: next() returns nothing, replies are dropped.
  virtual void close() = 0;

  // The client ended in the middle of a push, which changed nothing.
  virtual bool was_cut_off() const { return false; }
  virtual std::uint64_t bytes_received() const = 0;
  virtual std::uint64_t bytes_sent() const = 0;
};

// A run of a shard's elements in the caller's memory, in order of offset.
struct SourcePiece {
  const float* from = nullptr;
  std::uint64_t offset = 0;  // floats from the shard's first
  std::uint64_t count = 0;
};
struct TargetPiece {
  float* to = nullptr;
  std::uint64_t offset = 0;
  std::uint64_t count = 0;
};

class ClientChannel {
 public:
  virtual ~ClientChannel() = default;

  // Maps the replica of the shard's parameters over [at, at + the shard's floats), which begins a page. False: there is
  // none, and no request may ask for delivery.
  virtual bool place_replica(float* at) { return static_cast<void>(at), false; }

  virtual std::uint64_t push_bytes() const = 0;  // of a gradient's payload
  // Whether there is room for the gradient of push number `push`.
  virtual bool has_room(std::uint64_t push) = 0;
  // Begins to send a push: its request, and its gradient, each element times `scale`. The pieces' memory is read until
  // flush() says that all is gone.
  virtual void start(const RequestHeader& request, std::span<const SourcePiece> gradient, float scale) = 0;
  // Whether the gradient could be sent as it is: no NaN, no infinity, nothing too large for the format. After flush().
  virtual bool finite() const = 0;
  // Ends the push: it counts, or it is withdrawn. Nothing is accepted before. Then flush().
  virtual void conclude(bool counts) = 0;
  // Sends a request without a gradient.
  virtual void post(const RequestHeader& request) = 0;
  // What the lossy format left unsent of the pushes so far, and goes along with the next one: the shard's floats.
  // Empty: nothing ever is.
  virtual std::span<float> unsent() { return {}; }

  // Where the parameters of the reply to the newest request may be put before it is received. Until the next one.
  virtual void expect(std::span<const TargetPiece> parameters) { static_cast<void>(parameters); }
  // Moves as many bytes of requests as go without waiting; true when all are gone.
  virtual bool flush() = 0;

  // Takes as much of the next reply as is there without waiting; true when header and payload are complete.
  virtual bool receive(ReplyHeader& reply, std::span<const TargetPiece> parameters) = 0;
  // The parameters of the reply just received, where they can be read in place until the next receive(); else null.
  virtual const float* in_place() const { return nullptr; }

  // Waits until has_room, flush or receive may get further, or close() is called, or the time is over. May wake early.
  virtual void wait(milliseconds at_most) = 0;
  // The descriptor to poll instead, and for what; -1 where there is none.
  virtual int poll_fd() const { return -1; }
  virtual short poll_events() const { return 0; }

  virtual TransportKind kind() const = 0;
  virtual void close() = 0;
};

// What both ends need to know of a session.
struct ChannelShape {
  std::uint64_t shard_floats = 0;
  std::uint32_t max_inflight = 1;
  std::uint64_t nonce[2] = {};
  std::uint64_t buffer_bytes = 0;          // shared memory: of each parameter buffer
  std::uint64_t average_offset_bytes = 0;  // … and where the average lies in it
  bool live = false;                       // … and whether it is written to while it is read
  bool takes_pushes = true;                // else neither gradients nor a replica
  std::shared_ptr<const WireFormat> push_format;
  std::shared_ptr<const WireFormat> pull_format;

  std::uint64_t push_bytes() const { return payload_bytes(*push_format); }
  std::uint64_t pull_bytes() const { return payload_bytes(*pull_format); }

 private:
  std::uint64_t payload_bytes(const WireFormat& format) const {
    return format.plain() ? shard_floats * sizeof(float) : format.encoded_bytes(shard_floats);
  }
};

ChannelShape shape_of(const Welcome& welcome, Role role, TransportKind transport);

}  // namespace distnet
