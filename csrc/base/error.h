// The errors of DistNet, named as in Python (distnet/errors.py). Faults raise; broken invariants abort with a message.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace distnet {

enum class ErrorCode : std::uint16_t {
  kNone = 0,
  kConfig = 1,             // ConfigError
  kManifestMismatch = 2,   // ManifestMismatch
  kTransport = 3,          // TransportError
  kConnect = 4,            // ConnectError
  kPeerClosed = 5,         // PeerClosed
  kDeadlineExceeded = 6,   // DeadlineExceeded
  kProtocol = 7,           // ProtocolError
  kRoundAborted = 8,       // RoundAborted
  kNonFiniteGradient = 9,  // NonFiniteGradient
  kUnauthorized = 10,      // Unauthorized
  kFenced = 11,            // Fenced
};
inline constexpr ErrorCode kLastErrorCode = ErrorCode::kFenced;

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Aborts with the message. Called for a broken invariant, never for a fault of a peer or a user.
[[noreturn]] void invariant_broken(const char* what, const char* file, int line);

}  // namespace distnet

#define DISTNET_INVARIANT(condition) \
  ((condition) ? static_cast<void>(0) : ::distnet::invariant_broken(#condition, __FILE__, __LINE__))
