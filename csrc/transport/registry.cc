#include "transport/registry.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/error.h"
#include "transport/shm/shm_channel.h"
#include "transport/tcp/tcp_channel.h"

namespace distnet {
namespace {

constexpr std::array kTransports = {
    Transport{TransportKind::kShm, "shm", true, false, &open_shm_channel, &join_shm_channel},
    Transport{TransportKind::kTcp, "tcp", false, true, &open_tcp_channel, &join_tcp_channel},
};

const Transport& first_that_is(bool within_host) {
  return *std::ranges::find(kTransports, within_host, &Transport::within_host);
}

}  // namespace

const Transport& transport_of(TransportKind kind) {
  const auto* const found = std::ranges::find(kTransports, kind, &Transport::kind);
  if (found == kTransports.end()) {
    throw Error(ErrorCode::kProtocol, "a transport of an unknown kind");
  }
  return *found;
}

const Transport& transport_named(std::string_view name) {
  const auto* const found =
      std::ranges::find(kTransports, name, [](const Transport& one) { return std::string_view(one.name); });
  if (found == kTransports.end()) {
    std::string known = "auto";
    for (const Transport& one : kTransports) {
      known += std::string(", ") + one.name;
    }
    throw Error(ErrorCode::kConfig, "no transport is named '" + std::string(name) + "'; expected one of " + known);
  }
  return *found;
}

const Transport& transport_within_host() { return first_that_is(true); }

const Transport& transport_between_hosts() { return first_that_is(false); }

ChannelShape shape_of(const Welcome& welcome, Role role, const Transport& transport) {
  ChannelShape shape;
  shape.shard_floats = welcome.range.size();
  shape.max_inflight = welcome.max_inflight;
  shape.nonce[0] = welcome.nonce[0];
  shape.nonce[1] = welcome.nonce[1];
  shape.buffer_bytes = welcome.buffer_bytes;
  shape.ema_offset_bytes = welcome.ema_offset_bytes;
  shape.live = welcome.versions_can_mix;
  shape.rated_groups = static_cast<std::uint32_t>(welcome.groups.size());
  shape.takes_pushes = role == Role::kWorker;
  shape.timeout_s = welcome.timeout_s;
  // Within a host, moving float32 costs less than encoding it.
  shape.push_format = make_format(transport.within_host ? FormatSpec() : welcome.push_format);
  shape.pull_format = make_format(transport.within_host ? FormatSpec() : welcome.pull_format);
  return shape;
}

}  // namespace distnet
