#include "group/coordinator_server.h"

#include "base/error.h"
#include "base/random.h"

namespace distnet {
namespace {

Address named(Address address) {
  if (address.within_host() && address.name.empty()) {
    address.name = random_local_name();
  }
  return address;
}

}  // namespace

CoordinatorServer::CoordinatorServer(const Address& listen)
    : nonce_{random_number(), random_number()}, fork_number_(fork_number()), door_(*this) {
  address_ = door_.listen(named(listen));
  local_name_ = address_.within_host() ? address_.name : door_.listen(named({Address::Kind::kUnix, "", 0})).name;
  door_.open();
}

// One that cannot stop for want of memory ends the process: its threads use this object.
// NOLINTNEXTLINE(bugprone-exception-escape)
CoordinatorServer::~CoordinatorServer() { stop(0.0); }

void CoordinatorServer::stop(double patience_s) {
  if (stopped_ || fork_number() != fork_number_) {
    return;  // after a fork the threads and connections are the parent's
  }
  stopped_ = true;
  coordinator_.wait_until_empty(Deadline::after(patience_s));
  coordinator_.stop("it was stopped");
  door_.close();
}

ProbeReply CoordinatorServer::describe() const { return {{nonce_[0], nonce_[1]}, local_name_, address_.text()}; }

void CoordinatorServer::serve(Handshake::Step step, Visitor& visitor) {
  if (step != Handshake::Step::kGroup) {
    throw Error(ErrorCode::kConfig,
                "this is a coordinator of groups of ranks, which has no parameters; connect to a "
                "parameter server");
  }
  coordinator_.serve(visitor);
}

void CoordinatorServer::attach(const Attach& /*attach*/, Stream /*stream*/) {}  // the stream ends here

}  // namespace distnet
