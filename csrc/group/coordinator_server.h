// A coordinator behind a door of its own, for jobs without a parameter server.
//
// Thread safety: one thread starts and stops it.
#pragma once

#include <string>

#include "front/door.h"
#include "group/coordinator.h"

namespace distnet {

class CoordinatorServer final : private Host {
 public:
  // Listens and serves. A TCP coordinator also listens at a local name, for members of its own host. Throws
  // Error(kConnect) where the address is taken.
  explicit CoordinatorServer(const Address& listen);
  CoordinatorServer(const CoordinatorServer&) = delete;
  CoordinatorServer& operator=(const CoordinatorServer&) = delete;
  ~CoordinatorServer() override;

  std::string address() const { return address_.text(); }
  // Waits until all members have gone, for at most `patience_s`, and ends. Members that are left hear why.
  void stop(double patience_s);

 private:
  ProbeReply describe() const override;
  void serve(Handshake::Step step, Visitor& visitor) override;
  void attach(const Attach& attach, Stream stream) override;

  const std::uint64_t nonce_[2];
  const std::uint32_t fork_number_;  // of the process that made this
  Coordinator coordinator_;
  Address address_;
  std::string local_name_;
  bool stopped_ = false;
  Door door_;  // last: its threads use all the others
};

}  // namespace distnet
