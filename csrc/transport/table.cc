#include "transport/table.h"

#include "base/error.h"
#include "transport/shm_channel.h"
#include "transport/tcp_channel.h"

namespace distnet {

ChannelShape shape_of(const Welcome& welcome) {
  return {welcome.range.size(), welcome.max_inflight,         {welcome.nonce[0], welcome.nonce[1]},
          welcome.buffer_bytes, welcome.average_offset_bytes, welcome.versions_can_mix};
}

LocalChannel open_local_channel(const ChannelShape& shape) {
  auto channel = std::make_unique<ShmServerChannel>(shape);
  std::vector<int> fds{channel->control_fd(), channel->slots_fd()};
  return {std::move(channel), std::move(fds)};
}

std::unique_ptr<ServerChannel> open_remote_channel(const ChannelShape& shape, Socket data) {
  return std::make_unique<TcpServerChannel>(shape, std::move(data));
}

std::unique_ptr<ClientChannel> join_local_channel(const ChannelShape& shape, std::vector<FileDescriptor> fds,
                                                  std::function<Region(std::uint32_t)> map_buffer) {
  if (fds.size() != 2) {
    throw Error(ErrorCode::kProtocol, "the server passed no shared memory with its welcome");
  }
  const int control = fds[0].release();
  const int slots = fds[1].release();
  return std::make_unique<ShmClientChannel>(shape, control, slots, std::move(map_buffer));
}

std::unique_ptr<ClientChannel> join_remote_channel(const ChannelShape& shape, Socket data) {
  return std::make_unique<TcpClientChannel>(shape, std::move(data));
}

}  // namespace distnet
