#include "transport/registry.h"

#include "base/error.h"
#include "transport/shm/shm_channel.h"
#include "transport/tcp/tcp_channel.h"

namespace distnet {

ChannelShape shape_of(const Welcome& welcome, Role role, TransportKind transport) {
  // Within a host, moving the bytes costs less than rounding them.
  const bool as_floats = transport == TransportKind::kShm;
  ChannelShape shape;
  shape.shard_floats = welcome.range.size();
  shape.max_inflight = welcome.max_inflight;
  shape.nonce[0] = welcome.nonce[0];
  shape.nonce[1] = welcome.nonce[1];
  shape.buffer_bytes = welcome.buffer_bytes;
  shape.average_offset_bytes = welcome.average_offset_bytes;
  shape.live = welcome.versions_can_mix;
  shape.takes_pushes = role == Role::kWorker;
  shape.push_format = make_format(as_floats ? FormatSpec() : welcome.push_format);
  shape.pull_format = make_format(as_floats ? FormatSpec() : welcome.pull_format);
  return shape;
}

LocalChannel open_local_channel(const ChannelShape& shape, const Tuning& tuning) {
  auto channel = std::make_unique<ShmServerChannel>(shape, tuning);
  std::vector<int> fds = channel->fds();
  return {std::move(channel), std::move(fds)};
}

std::unique_ptr<ServerChannel> open_remote_channel(const ChannelShape& shape, const Tuning& tuning, Socket data) {
  return std::make_unique<TcpServerChannel>(shape, tuning, std::move(data));
}

std::unique_ptr<ClientChannel> join_local_channel(const ChannelShape& shape, const Tuning& tuning,
                                                  std::vector<FileDescriptor> fds,
                                                  std::function<Region(std::uint32_t)> map_buffer) {
  return std::make_unique<ShmClientChannel>(shape, tuning, std::move(fds), std::move(map_buffer));
}

std::unique_ptr<ClientChannel> join_remote_channel(const ChannelShape& shape, const Tuning& tuning, Socket data) {
  return std::make_unique<TcpClientChannel>(shape, tuning, std::move(data));
}

}  // namespace distnet
