// The errors of DistNet, named as in Python (distnet/errors.py). Faults raise; broken invariants abort with a message.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace distnet {

enum class ErrorCode : std::uint16_t {
  kNone = 0,
  kConfig = 1,               // ConfigError
  kManifestMismatch = 2,     // ManifestMismatch
  kTransport = 3,            // TransportError
  kConnect = 4,              // ConnectError
  kPeerClosed = 5,           // PeerClosed
  kDeadlineExceeded = 6,     // DeadlineExceeded
  kProtocol = 7,             // ProtocolError
  kRoundAborted = 8,         // RoundAborted
  kNonFiniteGradient = 9,    // NonFiniteGradient
  kUnauthorized = 10,        // Unauthorized
  kFenced = 11,              // Fenced
  kCollectiveMismatch = 12,  // CollectiveMismatch
};
inline constexpr ErrorCode kLastErrorCode = ErrorCode::kCollectiveMismatch;

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  // A copy has a text of its own. Copies of std::runtime_error share one, by a count that ThreadSanitizer cannot see, and
  // the same error is told to the threads of many calls.
  Error(const Error& other) : std::runtime_error(other.what()), code_(other.code_) {}
  Error& operator=(const Error& other) {
    std::runtime_error::operator=(std::runtime_error(other.what()));
    code_ = other.code_;
    return *this;
  }
  ~Error() override = default;

  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// Aborts with the message. Called for a broken invariant, never for a fault of a peer or a user.
[[noreturn]] void invariant_broken(const char* what, const char* file, int line);

}  // namespace distnet

#define DISTNET_INVARIANT(condition) \
  ((condition) ? static_cast<void>(0) : ::distnet::invariant_broken(#condition, __FILE__, __LINE__))
