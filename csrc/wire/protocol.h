// The protocol of docs/design/protocol.md: its version and its bounds.
#pragma once

#include <cstdint>

namespace distnet {

inline constexpr std::uint32_t kMagic = 0x54454E44;  // "DNET"
inline constexpr std::uint16_t kProtocolVersion = 5;
inline constexpr std::uint32_t kMaxControlBytes = 1U << 20U;   // any control message except those that carry a manifest
inline constexpr std::uint32_t kMaxManifestBytes = 1U << 26U;  // a message that carries a manifest
inline constexpr std::uint32_t kMaxStrangerBytes = 4096;       // a message before the hello
inline constexpr std::uint32_t kMaxQuestionBytes = 64;         // a message of a client whose session stands
inline constexpr std::uint32_t kMaxSavedBytes = 1U << 16U;     // that a rank has the server keep with a push
inline constexpr std::uint32_t kMaxSavedRanks = 1024;          // that a shard keeps such bytes for
inline constexpr std::uint32_t kMaxAnswerBytes = 1U << 23U;    // the answer to one: counters of 4,096 sessions
inline constexpr std::uint32_t kMaxRatedGroups = 64;           // groups of a server that a push may have rates for
inline constexpr std::uint32_t kMaxPatternBytes = 256;         // of such a group
inline constexpr std::uint32_t kMaxInFlight = 16;              // unanswered requests of one session
inline constexpr double kHandshakeSeconds = 10.0;
// Between these a session's timeout lies, whatever its client asks for: a shorter one would take a busy machine for a
// dead peer, and for the time of a longer one the server would keep what a dead client holds.
inline constexpr double kLeastTimeoutSeconds = 1.0;
inline constexpr double kMostTimeoutSeconds = 3600.0;

// Returns the timeout of a session whose client asks for `asked_s` seconds.
constexpr double session_timeout_s(double asked_s) {
  return asked_s < kLeastTimeoutSeconds  ? kLeastTimeoutSeconds
         : asked_s > kMostTimeoutSeconds ? kMostTimeoutSeconds
                                         : asked_s;
}

// Returns the seconds between heartbeats of a client that gives its peer up after `timeout_s` seconds of silence.
constexpr double heartbeat_interval_s(double timeout_s) {
  const double quarter = timeout_s / 4;
  return quarter < 0.01 ? 0.01 : quarter > 5.0 ? 5.0 : quarter;
}

}  // namespace distnet
