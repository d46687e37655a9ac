// The messages of a control connection.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "wire/brought_optimizer.h"
#include "wire/codec.h"
#include "wire/format.h"
#include "wire/manifest.h"
#include "wire/protocol.h"

namespace distnet {

enum class ControlKind : std::uint16_t {
  kProbe = 1,           // client: who are you?
  kProbeReply = 2,      // ProbeReply
  kHello = 3,           // Hello
  kNeedParameters = 4,  // server: bring the model; BringGrant
  kInitial = 5,         // Initial, followed by range.size() floats
  kWelcome = 6,         // Welcome (shared memory: with the session's file descriptors)
  kRefused = 7,         // Refusal; the connection ends
  kAttach = 8,          // Attach: this connection carries the data of a session
  kAttached = 9,
  kHeartbeat = 10,  // client
  kGoodbye = 11,    // client: settle what I pushed, then let me go
  kGoodbyeReply = 12,
  kBuffer = 13,       // u32 index: pass me this parameter buffer
  kBufferReply = 14,  // u32 index, with its file descriptor
  kStats = 15,
  kStatsReply = 16,  // text: JSON
  kArrived = 18,     // shard to shard 0: RoundEvent: this rank's push of this round is here
  kGone = 19,        // shard to shard 0: RoundEvent: this session ended here
  kCloseRound = 20,  // shard 0 to the others: RoundMembers
  kCannotMake = 30,  // shard to shard 0: RoundEvent: there is no memory here for this round
  kRoundsOver = 31,  // shard 0 to the others and back: text: why the rounds have ended there; the last message
  kProgress = 23,    // server: the answer to a heartbeat; Progress
  kNotice = 24,      // server: Notice
  kBring = 25,       // client to a shard that is not the first: Bring; I bring your share of the model
  kReceived = 26,    // server: the share is here
  kBrought = 27,     // client to shard 0: every shard has its share
  kFollow = 28,      // shard to shard 0: Follow; I take part in your rounds
  kFollowing = 29,   // shard 0: u64 the round that is open
  kWake = 40,        // client: a request is there, and the server has no thread that looks for it

  // These are about gatherings, at shard 0; wire/gathering_messages.h has their contents.
  kGather = 60,           // client: GatherAsk: I am here, and wait for the others
  kGathered = 61,         // server: GatherVerdict
  kLeaveGathering = 62,   // client: u64 number: I wait no longer; the verdict is the answer
  kAwaited = 63,          // client: whom does a gathering wait for?
  kAwaitedReply = 64,     // text: empty where nobody gathers
  kWhyAborted = 65,       // client: u64 round: why did it end without an update?
  kWhyAbortedReply = 66,  // text: empty where a gathering was not the reason; kNotice says before it why rounds ended

  // These are about groups of ranks; wire/group_messages.h has their contents.
  kJoinGroup = 70,       // member: JoinGroup
  kGroupFormed = 71,     // coordinator: GroupFormed (shared memory: with the descriptor of the lanes' memory)
  kGroupAwaited = 72,    // coordinator, the answer to a heartbeat: text: whom the member waits for; may be empty
  kLeaveGroup = 73,      // member: GroupProgress: it has done with the group
  kLeftGroup = 74,       // coordinator: the same of the named rank; to the rank itself the answer
  kFailGroup = 75,       // member: GroupEnd: it cannot go on
  kGroupEnded = 76,      // coordinator: GroupEnd: why nobody can go on
  kAnnounce = 77,        // member: text: it is ready for the operation of that name
  kRunNamed = 78,        // coordinator: NamedTurn: all are ready, or have joined
  kWithdraw = 79,        // member: text: it waits no longer for the operation of that name
  kWithdrawn = 80,       // coordinator: GroupNotice; whom it waited for
  kJoinOperations = 81,  // member: it announces no more until all have said this
  kAllJoined = 82,       // coordinator: u32 the rank that was last

  // These carry snapshots; wire/snapshot_messages.h has their contents.
  kSnapshot = 21,        // owner: SnapshotAsk: I want one
  kSnapshotReady = 22,   // server: u64 key: it is your turn
  kCut = 32,             // owner: CutAsk: cut now
  kCutMade = 33,         // server: CutMade
  kMorePieces = 34,      // owner: MorePieces: I can take so many more
  kPiece = 35,           // server: PieceHeader, then the floats of all vectors
  kSnapshotEnd = 36,     // owner: u64 key: I want no more of it
  kSnapshotFailed = 37,  // server: SnapshotFailure: there will be no more of it
  kCutRound = 38,        // shard 0 to the others: CutRound
  kSavedPiece = 55,      // shard 0: SavedPiece, before its first kPiece

  // wire/client_messages.h has the contents of these.
  kSetLearningRate = 50,  // rank 0 or the owner: SetLearningRate
  kLearningRateSet = 51,  // server: the next update has it
  kSave = 52,             // worker to shard 0: Save
  kSaveAnswer = 53,       // SaveAnswer
  kSaved = 54,            // shard 0, before kAttached: the bytes that the rank has saved
};

struct ControlHeader {
  std::uint32_t magic = kMagic;
  std::uint16_t version = kProtocolVersion;
  std::uint16_t kind = 0;
  std::uint32_t payload_bytes = 0;
};
static_assert(sizeof(ControlHeader) == 12);

enum class Role : std::uint8_t { kWorker = 1, kObserver = 2 };
enum class TransportKind : std::uint8_t { kShm = 1, kTcp = 2 };
enum class SessionEnd : std::uint8_t { kDone = 1, kDied = 2, kSilent = 3, kFenced = 4, kStopped = 5 };

// A random number that a client makes once. A new connection with the same number belongs to the same client.
struct ClientId {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  auto operator<=>(const ClientId&) const = default;
};

// A keyed hash by which the shards of one job recognise each other's messages.
struct Proof {
  std::uint64_t high = 0;
  std::uint64_t low = 0;
  bool operator==(const Proof&) const = default;
};

// A hello is at most kMaxStrangerBytes long, and so is the grant in it.
inline constexpr std::uint32_t kMostReplaced = 256;

// What shard 0 grants to a client. The other shards take the client by this grant.
struct Grant {
  std::uint32_t rank = 0;
  std::uint32_t incarnation = 0;        // counts the sessions that shard 0 granted, from 1; 0 is no grant
  std::vector<std::uint32_t> replaces;  // the incarnations that this one fences, at most kMostReplaced
  std::uint64_t model = 0;              // the model that all shards must hold
  Proof proof;
};

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
  std::uint32_t start = 0;  // the launcher's count of starts of this rank: a higher one replaces a lower one
  double timeout_s = 30.0;  // seconds of silence after which either side is to give the other up
  bool brings_parameters = false;
  std::uint64_t owner = 0;  // proves that the server's owner asks; 0: somebody else does
  ClientId id;
  Grant grant;  // at shards other than the first
  std::vector<std::byte> encode() const;
  static Hello decode(std::span<const std::byte> bytes);
};

// Shard 0's grant to bring the model. The client shows it to the other shards.
struct BringGrant {
  std::uint64_t model = 0;
  Proof proof;
  std::vector<std::byte> encode() const;
  static BringGrant decode(std::span<const std::byte> bytes);
};

struct Bring {
  ClientId id;
  BringGrant grant;
  std::vector<std::byte> encode() const;
  static Bring decode(std::span<const std::byte> bytes);
};

struct Initial {
  Manifest manifest;
  ShardRange range;
  std::optional<BroughtOptimizer> optimizer = {};  // for a server that was told of none
  std::vector<std::byte> encode() const;
  static Initial decode(std::span<const std::byte> bytes);
};

struct Welcome {
  std::uint64_t session = 0;
  std::uint64_t secret = 0;  // proves an Attach
  Grant grant;
  double timeout_s = 30.0;  // the session's: what the hello asked for, within the server's bounds
  std::uint64_t nonce[2] = {};
  Manifest manifest;
  ShardRange range;
  std::uint64_t version = 0;
  std::uint64_t round = 0;  // shard 0's counts: the first round that waits for this session
  std::uint32_t max_inflight = 0;
  std::uint32_t workers = 1;  // how many the server expects
  std::uint64_t buffer_bytes = 0;
  std::uint64_t ema_offset_bytes = 0;  // 0: no average kept
  double clip_norm = 0.0;              // 0: none
  bool versions_can_mix = false;
  bool joins_all = false;
  bool takes_means = false;  // of the gradients of a round, so weights count
  std::string about;         // what the owner says of the server, for clients; nobody on the way reads it
  std::string optimizer;     // the same of its optimizer, by who brought that
  // Patterns of the groups that a push may have rates for: the server's first, at most kMaxRatedGroups. Empty: one that
  // is longer than kMaxPatternBytes, and cannot be named.
  std::vector<std::string> groups;
  FormatSpec push_format;  // of gradients and parameters over TCP
  FormatSpec pull_format;
  // All but the manifest, which follows it: a server has that encoded once for all of its clients.
  std::vector<std::byte> encode_head() const;
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

// How far a session's data connection got, by the server's count. The connection is broken when a client has waited
// longer than its timeout for what the server has sent already.
struct Progress {
  std::uint64_t taken_bytes = 0;  // bytes of requests and gradients received
  std::uint64_t replies = 0;      // replies that have left
  bool busy = false;              // a request has arrived in full and is being served
  std::vector<std::byte> encode() const;
  static Progress decode(std::span<const std::byte> bytes);
  bool operator==(const Progress&) const = default;
};

struct Notice {
  enum class Kind : std::uint8_t {
    kWarning = 1,       // the user is to hear of it
    kRoundsEnded = 2,   // why there will be no more rounds
    kModelAwaited = 3,  // before the welcome: nobody has brought the model yet
    kModelComes = 4,    // before the welcome: another client brings it
  };
  Kind kind = Kind::kWarning;
  std::string text;
  std::vector<std::byte> encode() const;
  static Notice decode(std::span<const std::byte> bytes);
};

// A shard asks to take part in the rounds that shard 0 leads.
struct Follow {
  std::uint32_t shard = 0;
  Proof proof;
  std::vector<std::byte> encode() const;
  static Follow decode(std::span<const std::byte> bytes);
};

struct RoundEvent {
  std::uint64_t round = 0;
  std::uint32_t rank = 0;
  std::uint32_t incarnation = 0;
  SessionEnd how = SessionEnd::kDied;  // how a session ended
  std::vector<std::byte> encode() const;
  static RoundEvent decode(std::span<const std::byte> bytes);
};

struct RoundMember {
  std::uint32_t rank = 0;
  std::uint32_t incarnation = 0;
  auto operator<=>(const RoundMember&) const = default;
};

struct RoundMembers {
  std::uint64_t round = 0;
  std::vector<RoundMember> members;      // in rank order
  std::optional<double> set_rate = {};   // the learning rate from this round on, in place of the schedule's
  std::optional<double> push_rate = {};  // of this round's update alone, in place of either
  std::vector<double> group_rates = {};  // the same by groups, at most kMaxRatedGroups; NaN: the group has none
  std::vector<std::byte> encode() const;
  static RoundMembers decode(std::span<const std::byte> bytes);
};

}  // namespace distnet
