#include "server/seat.h"

namespace distnet {

Seat::Seat(Shard& at, const Hello& hello, const Welcome& welcome, const ControlConnection& control, Memory& memory)
    : shard(at),
      transport(transport_of(hello.transport)),
      shape(shape_of(welcome, hello.role, transport)),
      // A reply for each call that may be on its way, and one that the client reads in place.
      pins(welcome.max_inflight + 1),
      process(control.stream().watch_peer_process()) {
  if (transport.second_stream) {
    bell.emplace("the second connection of a client");
  } else {
    channel = transport.open(shape, shard.settings().tuning, memory, {});
  }
  shard.store().expect_pins(pins);
}

Seat::~Seat() {
  channel.reset();  // its pins, before the promise of them
  shard.store().expect_fewer_pins(pins);
}

}  // namespace distnet
