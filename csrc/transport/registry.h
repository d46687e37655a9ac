// The transports: a wire is one pair of files and one line of table.cc for each end.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "transport/channel.h"

namespace distnet {

// The server's end of a channel that passes file descriptors to the client instead of opening a data connection.
struct LocalChannel {
  std::unique_ptr<ServerChannel> channel;
  std::vector<int> fds;
};

LocalChannel open_local_channel(const ChannelShape& shape, const Tuning& tuning);
std::unique_ptr<ServerChannel> open_remote_channel(const ChannelShape& shape, const Tuning& tuning, Socket data);

std::unique_ptr<ClientChannel> join_local_channel(const ChannelShape& shape, const Tuning& tuning,
                                                  std::vector<FileDescriptor> fds,
                                                  std::function<Region(std::uint32_t)> map_buffer);
std::unique_ptr<ClientChannel> join_remote_channel(const ChannelShape& shape, const Tuning& tuning, Socket data);

}  // namespace distnet
