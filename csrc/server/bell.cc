#include "server/bell.h"

#include <array>

#include "base/error.h"
#include "base/platform.h"
#include "base/waiting.h"

namespace distnet {

Bell::Bell(const std::string& what) : event_(FileDescriptor::open(create_event_file)) {
  if (!event_) {
    throw Error(ErrorCode::kTransport, no_descriptor_left(what));
  }
}

void Bell::ring() const { ring_event_file(event_.get()); }

bool Bell::wait(const ControlConnection& client, const Deadline& deadline) const {
  std::array<pollfd, 2> polled = {{{event_.get(), POLLIN, 0}, {client.stream().poll_fd(), POLLRDHUP, 0}}};
  while (poll_until(polled, deadline) == 0) {
    if (deadline.expired()) {
      return false;
    }
  }
  if (polled[1].revents != 0) {
    throw Error(ErrorCode::kPeerClosed, "the client has gone");
  }
  drain_event_file(event_.get());
  return true;
}

}  // namespace distnet
