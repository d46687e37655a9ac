// Where a shard listens, as one string: "shm://name" (this host) or "tcp://host:port". An address does not say how
// payloads move: a client of a TCP address on the same host may use shared memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "wire/control_messages.h"

namespace distnet {

struct Address {
  enum class Kind : std::uint8_t { kUnix, kTcp };

  Kind kind = Kind::kUnix;
  std::string name;  // Unix: the abstract name; TCP: the host
  std::uint16_t port = 0;

  bool within_host() const { return kind == Kind::kUnix; }
  std::string text() const;
};

// Throws Error(kConfig) unless the text has one of the two forms. An IPv6 host stands in brackets.
Address parse_address(const std::string& text);
// Parses comma-joined addresses, at least one. Throws as parse_address() does.
std::vector<Address> parse_addresses(const std::string& text);

}  // namespace distnet
