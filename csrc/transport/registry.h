// The table of transports. A transport is a folder of files and one row of the table in registry.cc.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "transport/channel.h"
#include "transport/stream.h"

namespace distnet {

// What a client's channel asks of its session's control connection.
struct ControlCalls {
  // Maps parameter buffer `index`, whose descriptor the server passes on request.
  std::function<Region(std::uint32_t index)> map_buffer;
  // Tells a server whose channel is dormant that a request is there.
  std::function<void()> wake_server;
};

struct Transport {
  TransportKind kind;
  const char* name;    // as users write it
  bool within_host;    // both ends share memory: descriptors come with the welcome, and values travel as float32
  bool second_stream;  // payloads have a connection of their own

  // `data` is the second stream, where there is one.
  std::unique_ptr<ServerChannel> (*open)(const ChannelShape& shape, const Tuning& tuning, Memory& memory, Stream data);
  std::unique_ptr<ClientChannel> (*join)(const ChannelShape& shape, const Tuning& tuning, Stream data,
                                         std::vector<FileDescriptor>&& fds, const ControlCalls& calls);
};

// Throws Error(kProtocol) on an unknown kind.
const Transport& transport_of(TransportKind kind);
// Throws Error(kConfig) on an unknown name.
const Transport& transport_named(std::string_view name);
// Return the transport that is tried first within a host, and between hosts.
const Transport& transport_within_host();
const Transport& transport_between_hosts();

ChannelShape shape_of(const Welcome& welcome, Role role, const Transport& transport);

}  // namespace distnet
