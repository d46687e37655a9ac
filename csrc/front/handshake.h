// What a connection is for, by its first messages. A value: a message comes in, what to do about it goes out.
#pragma once

#include "transport/control.h"

namespace distnet {

class Handshake {
 public:
  enum class Step : std::uint8_t {
    kDescribe,  // answer a probe, and go on
    kHello,     // a client begins or takes up a session
    kBring,     // a client brings this shard's share of the model
    kFollow,    // a shard takes part in the rounds of this one
    kGroup,     // a member of a group comes to its coordinator
    kAttach,    // the stream carries a session's payloads
  };

  explicit Handshake(bool within_host) : within_host_(within_host) {}

  // Throws Error(kProtocol) on a message that no conversation begins with, or one probe too many.
  Step on_message(ControlKind kind);

 private:
  static constexpr int kMostProbes = 16;
  const bool within_host_;
  int probes_ = 0;
};

}  // namespace distnet
