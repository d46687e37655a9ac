// What a session needs of the process: descriptors and shared memory, also for what will be made on its account later.
//
// It is taken before anybody hears of the session. So at a limit a newcomer is refused and nobody else is touched, and
// who was admitted lacks no descriptor in the middle of its work. Threads are made when they are needed.
//
// Thread safety: one thread.
#pragma once

#include <memory>
#include <optional>

#include "server/bell.h"
#include "server/shard.h"
#include "transport/registry.h"

namespace distnet {

struct Seat {
  // Throws Error(kTransport) when the process has no descriptors for it, Error(kConfig) when there is no memory.
  Seat(Shard& at, const Hello& hello, const Welcome& welcome, const ControlConnection& control, Memory& memory);
  Seat(const Seat&) = delete;
  Seat& operator=(const Seat&) = delete;
  ~Seat();

  Shard& shard;
  const Transport& transport;
  const ChannelShape shape;
  const std::uint32_t pins;  // versions that its replies may hold at once
  FileDescriptor process;    // of the client, where it is on this host
  std::optional<Bell> bell;  // of the second stream, whose descriptor it keeps; none where there is one only
  std::unique_ptr<ServerChannel> channel;  // opened with the second stream, where there is one
};

}  // namespace distnet
