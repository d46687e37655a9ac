// The messages between the members of a group and its coordinator, on their control connections, and the first bytes
// of the streams between two members.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "wire/codec.h"

namespace distnet {

inline constexpr std::uint32_t kMostGroupRanks = 1024;
inline constexpr std::uint32_t kMostMeshRanks = 256;    // where each member has streams to all others
inline constexpr std::size_t kMaxGroupNameBytes = 256;  // of a group, or of a named operation
inline constexpr std::uint32_t kMaxMemberBytes = 4096;  // any message from a member

// Returns whether it is UTF-8, as texts on the wire are.
bool is_utf8(std::string_view text);
// Returns the beginning of a text, of at most so many bytes; no character of UTF-8 is cut in two.
std::string shortened(std::string_view text, std::size_t most_bytes);

enum class GroupTransport : std::uint8_t { kAuto = 0, kShm = 1, kTcp = 2 };

// A member of a group comes to the coordinator.
struct JoinGroup {
  std::string name;
  std::uint32_t rank = 0;
  std::uint32_t size = 1;
  double timeout_s = 30.0;  // seconds of silence after which either side gives the other up
  GroupTransport transport = GroupTransport::kAuto;
  std::uint64_t process = 0;  // a random number of the member's process
  std::string local_name;     // where it listens for members of its host
  std::uint16_t port = 0;     // where it listens for all; 0: nowhere
  std::vector<std::byte> encode() const;
  static JoinGroup decode(std::span<const std::byte> bytes);  // checks the bounds
  bool operator==(const JoinGroup&) const = default;
};

// Where other members find one.
struct MemberAddress {
  std::string host;  // as the coordinator sees it; empty: the coordinator's own
  std::uint16_t port = 0;
  std::string local_name;
  bool operator==(const MemberAddress&) const = default;
};

// All are there.
struct GroupFormed {
  std::uint64_t generation = 0;  // of all groups of this coordinator, from 1
  double timeout_s = 30.0;       // of this member
  GroupTransport transport = GroupTransport::kShm;
  std::uint64_t secret[2] = {};        // by which members prove to each other that they are of this group
  std::uint64_t memory_bytes = 0;      // of the memory that comes along; 0: none does
  std::uint32_t hosted_by = ~0U;       // the rank whose process the coordinator lives in; all ones: none
  std::vector<MemberAddress> members;  // by rank
  std::vector<std::byte> encode() const;
  static GroupFormed decode(std::span<const std::byte> bytes);
};

// How many operations of each lane a rank had done when it left.
struct GroupProgress {
  std::uint32_t rank = 0;
  std::uint64_t ordered = 0;
  std::uint64_t named = 0;
  std::vector<std::byte> encode() const;
  static GroupProgress decode(std::span<const std::byte> bytes);
  bool operator==(const GroupProgress&) const = default;
};

// Why a group has ended, or ends.
struct GroupEnd {
  std::uint32_t rank = 0;  // because of which
  ErrorCode code = ErrorCode::kPeerClosed;
  std::string text;
  std::vector<std::byte> encode() const;
  static GroupEnd decode(std::span<const std::byte> bytes);
  bool operator==(const GroupEnd&) const = default;
};

// The named operation that runs as number `number` of the named lane.
struct NamedTurn {
  std::uint64_t number = 0;
  std::string name;
  std::vector<std::byte> encode() const;
  static NamedTurn decode(std::span<const std::byte> bytes);
  bool operator==(const NamedTurn&) const = default;
};

// Something about one named operation.
struct NamedNotice {
  std::string name;
  std::string text;
  std::vector<std::byte> encode() const;
  static NamedNotice decode(std::span<const std::byte> bytes);
  bool operator==(const NamedNotice&) const = default;
};

// What a stream between two members is for.
enum class MemberStream : std::uint16_t { kOrdered = 0, kNamed = 1, kMessages = 2 };

// The first bytes of such a stream, from the member that connected. The proof is a keyed hash of the rest, under the
// group's secret.
struct MemberHello {
  std::uint32_t magic = 0;
  std::uint16_t version = 0;
  MemberStream stream = MemberStream::kOrdered;
  std::uint32_t from = 0;
  std::uint32_t to = 0;
  std::uint64_t generation = 0;
  std::uint64_t proof[2] = {};
};
static_assert(sizeof(MemberHello) == 40);

// What goes over a stream of messages between two members, in both directions. The receiver asks for a payload when it
// has somewhere to put it.
struct MessageFrame {
  enum class Kind : std::uint16_t {
    kOffer = 1,   // sender: here is a payload
    kAccept = 2,  // receiver: send it
    kData = 3,    // sender: `bytes` of it follow
    kRefuse = 4,  // receiver: it expected something else; `bytes` of text follow
    kCancel = 5,  // sender: it waits no longer
  };
  Kind kind = Kind::kOffer;
  std::uint16_t dtype = 0;
  std::uint32_t reserved = 0;
  std::uint64_t id = 0;  // of the payload, by the sender's count on this stream
  std::uint64_t tag = 0;
  std::uint64_t bytes = 0;
};
static_assert(sizeof(MessageFrame) == 32);
inline constexpr std::size_t kMaxRefusalBytes = 1024;

// A message that holds one name alone: a named operation's. Throws Error(kProtocol) where it is empty or too long.
std::vector<std::byte> encode_name(const std::string& name);
std::string decode_name(std::span<const std::byte> bytes);

}  // namespace distnet
