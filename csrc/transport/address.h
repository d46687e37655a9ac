// Where a shard listens, as one string: "shm://name" (this host) or "tcp://host:port".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "wire/protocol.h"

namespace distnet {

struct Endpoint {
  TransportKind transport = TransportKind::kShm;
  std::string name;  // shm: the name; tcp: the host
  std::uint16_t port = 0;

  std::string text() const;
};

// Throws Error(kConfig) on anything else than the two forms. An IPv6 host stands in brackets.
Endpoint parse_endpoint(const std::string& text);
// Comma-joined endpoints, at least one.
std::vector<Endpoint> parse_address(const std::string& text);

}  // namespace distnet
