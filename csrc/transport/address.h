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

// Returns a name for a Unix socket that nobody else chooses.
std::string random_local_name();

// Returns where a client finds the shards that a server's directory names, when it has reached shard 0 as `given`. It
// keeps to that address, whatever the server calls itself: behind a mapped port or in a container, only the client knows
// a way in. So the others' hosts are the one it was given, too, where the directory puts them on shard 0's host, on
// every interface (0.0.0.0), or on the host itself (127.0.0.1). Names of this host are left as they are.
std::vector<Address> as_reached(const Address& given, std::vector<Address> directory);

}  // namespace distnet
