#include "front/handshake.h"

#include "base/error.h"

namespace distnet {

Handshake::Step Handshake::on_message(ControlKind kind) {
  switch (kind) {
    case ControlKind::kProbe:
      if (++probes_ > kMostProbes) {
        throw Error(ErrorCode::kProtocol, "a client that asks on and on who this is");
      }
      return Step::kDescribe;
    case ControlKind::kHello:
      return Step::kHello;
    case ControlKind::kBring:
      return Step::kBring;
    case ControlKind::kFollow:
      return Step::kFollow;
    case ControlKind::kJoinGroup:
      return Step::kGroup;
    case ControlKind::kAttach:
      if (!within_host_) {
        return Step::kAttach;
      }
      [[fallthrough]];
    default:
      throw Error(ErrorCode::kProtocol, "a conversation starts with a probe or a hello");
  }
}

}  // namespace distnet
