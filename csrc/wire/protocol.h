// The protocol of docs/protocol.md: its version, its messages, its bounds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "wire/codec.h"
#include "wire/format.h"
#include "wire/manifest.h"

namespace distnet {

inline constexpr std::uint32_t kMagic = 0x54454E44;  // "DNET"
inline constexpr std::uint16_t kProtocolVersion = 2;
inline constexpr std::uint32_t kMaxControlBytes = 1U << 20U;   // of any control message but one that carries a manifest
inline constexpr std::uint32_t kMaxManifestBytes = 1U << 26U;  // of a manifest message
inline constexpr std::uint32_t kMaxInFlight = 16;              // requests of one session on the way

// ---- Control connection ----

enum class ControlKind : std::uint16_t {
  kProbe = 1,           // client: who are you?
  kProbeReply = 2,      // ProbeReply
  kHello = 3,           // Hello
  kNeedParameters = 4,  // server to rank 0: send Initial, then the raw values of your shard
  kInitial = 5,         // Initial, followed by range.size() floats
  kWelcome = 6,         // Welcome (shared memory: with the session's file descriptors)
  kRefused = 7,         // Refusal; the connection ends
  kAttach = 8,          // Attach: this TCP connection carries the data of a session
  kAttached = 9,
  kHeartbeat = 10,  // both ways; the server answers each
  kGoodbye = 11,    // client: settle what I pushed, then let me go
  kGoodbyeReply = 12,
  kBuffer = 13,       // u32 index: pass me this parameter buffer
  kBufferReply = 14,  // u32 index, with its file descriptor
  kStats = 15,
  kStatsReply = 16,  // text: JSON
  kArrived = 18,     // shard to shard 0: RoundEvent: this rank's push of this round is here
  kGone = 19,        // shard to shard 0: RoundEvent: this rank's connection to me ended
  kCloseRound = 20,  // shard 0 to the others: RoundMembers
  kState = 21,       // u32 slot: give me this vector of optimizer state
  kStateReply = 22,  // u32 how many there are; then the shard's floats, where there is this one
};

struct ControlHeader {
  std::uint32_t magic = kMagic;
  std::uint16_t version = kProtocolVersion;
  std::uint16_t kind = 0;
  std::uint32_t payload_bytes = 0;
};
static_assert(sizeof(ControlHeader) == 12);

enum class Role : std::uint8_t { kWorker = 1, kObserver = 2, kShard = 3 };
enum class TransportKind : std::uint8_t { kShm = 1, kTcp = 2 };

struct ProbeReply {
  std::uint64_t nonce[2] = {};
  std::string local_name;  // where the same server listens for clients of its own host
  std::string directory;   // the endpoints of all shards, comma-joined; empty while unknown
  std::vector<std::byte> encode() const;
  static ProbeReply decode(std::span<const std::byte> bytes);
};

struct Hello {
  Role role = Role::kWorker;
  TransportKind transport = TransportKind::kShm;
  std::uint32_t rank = 0;
  double deadline_s = 30.0;  // silence after which either side gives the other up
  bool brings_parameters = false;
  std::vector<std::byte> encode() const;
  static Hello decode(std::span<const std::byte> bytes);
};

struct Initial {
  Manifest manifest;
  ShardRange range;
  std::vector<std::byte> encode() const;
  static Initial decode(std::span<const std::byte> bytes);
};

struct Welcome {
  std::uint64_t session = 0;
  std::uint64_t secret = 0;  // proves an Attach
  std::uint64_t nonce[2] = {};
  Manifest manifest;
  ShardRange range;
  std::uint64_t version = 0;
  std::uint64_t round = 0;
  std::uint32_t max_inflight = 0;
  std::uint64_t buffer_bytes = 0;
  std::uint64_t average_offset_bytes = 0;  // 0: no average kept
  double clip_norm = 0.0;                  // 0: none
  bool versions_can_mix = false;
  bool joins_all = false;
  FormatSpec push_format;  // of gradients and parameters over TCP
  FormatSpec pull_format;
  std::vector<std::byte> encode() const;
  static Welcome decode(std::span<const std::byte> bytes);
};

struct Refusal {
  ErrorCode code = ErrorCode::kProtocol;
  std::string message;
  std::vector<std::byte> encode() const;
  static Refusal decode(std::span<const std::byte> bytes);
};

struct Attach {
  std::uint64_t session = 0;
  std::uint64_t secret = 0;
  std::vector<std::byte> encode() const;
  static Attach decode(std::span<const std::byte> bytes);
};

struct RoundEvent {
  std::uint64_t round = 0;
  std::uint32_t rank = 0;
  std::vector<std::byte> encode() const;
  static RoundEvent decode(std::span<const std::byte> bytes);
};

struct RoundMembers {
  std::uint64_t round = 0;
  std::vector<std::uint32_t> ranks;
  std::vector<std::byte> encode() const;
  static RoundMembers decode(std::span<const std::byte> bytes);
};

// ---- Data: requests and replies, the same over every transport ----

enum class RequestKind : std::uint16_t {
  kPush = 1,  // with the shard's part of one gradient
  kPull = 2,
};
enum RequestFlag : std::uint16_t {
  kWantParameters = 1,
  kWantAverage = 2,
  kWantSettled = 4,  // first wait until every push accepted before is settled, but for those of a round still open
  // Put the parameters into the client's replica (shared memory), or send them ahead of the reply, while the gradient
  // arrives (TCP). The reply says by it that this was done.
  kDeliver = 8,
  kDrafted = 32,  // shared memory, in a reply: its parameters are what the draft word told of
  kAhead = 16,    // TCP, in a header whose payload is that of the reply which follows with the same number
};

struct RequestHeader {
  std::uint32_t magic = kMagic;
  RequestKind kind = RequestKind::kPull;
  std::uint16_t flags = 0;
  std::uint64_t number = 0;        // requests of the session, from 1
  std::uint64_t push = 0;          // pushes of the session, from 1; 0 in a pull
  std::uint64_t base_version = 0;  // the version that the gradient was computed from
  std::uint64_t round = 0;         // joins "all": the round this push is for
  std::uint64_t payload_bytes = 0;
};
static_assert(sizeof(RequestHeader) == 48);

struct ReplyHeader {
  std::uint32_t magic = kMagic;
  std::uint16_t flags = 0;   // of the request
  std::uint16_t status = 0;  // an ErrorCode
  std::uint64_t number = 0;  // of the request
  std::uint64_t version = 0;
  std::uint64_t accepted = 0;   // sequence number of the session's newest accepted push
  std::uint64_t applied = 0;    // … of its newest applied push
  std::uint64_t staleness = 0;  // of push number `applied`
  std::uint64_t round = 0;      // the round now open
  std::uint64_t payload_bytes = 0;
  std::uint32_t buffer = 0;     // shared memory: where the parameters lie
  std::uint32_t delivered = 0;  // … and how many blocks of kDeliveredFloats of them, from the first, were delivered
};
static_assert(sizeof(ReplyHeader) == 72);

}  // namespace distnet
