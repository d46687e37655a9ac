#include "transport/address.h"

#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/platform.h"

namespace distnet {
namespace {

constexpr std::size_t kMaxNameBytes = 80;  // a Unix socket's abstract name has at most 107

constexpr std::string_view kTcp = "tcp://";
constexpr std::string_view kShm = "shm://";

std::optional<Address> tcp_address(std::string_view host_and_port) {
  const std::size_t colon = host_and_port.rfind(':');
  if (colon == std::string_view::npos) {
    return std::nullopt;
  }
  std::string_view host = host_and_port.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  const std::string_view digits = host_and_port.substr(colon + 1);
  std::uint16_t port = 0;
  const auto [at, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (error != std::errc{} || at != digits.data() + digits.size() || host.empty()) {
    return std::nullopt;
  }
  return Address{Address::Kind::kTcp, std::string(host), port};
}

[[noreturn]] void refuse(const std::string& text) {
  const bool forgot_scheme = text.find("://") == std::string::npos && tcp_address(text);
  throw Error(ErrorCode::kConfig, "the address '" + text + "' is neither shm://name nor tcp://host:port" +
                                      (forgot_scheme ? "; did you mean tcp://" + text + "?" : ""));
}

// Whether a host's name means the host where it is used: every interface, or loopback.
bool means_here(const std::string& name) {
  return name == "0.0.0.0" || name == "::" || name == "::1" || name == "localhost" || name.starts_with("127.");
}

}  // namespace

std::string Address::text() const {
  if (within_host()) {
    return "shm://" + name;
  }
  const bool bracketed = name.find(':') != std::string::npos;
  return "tcp://" + (bracketed ? "[" + name + "]" : name) + ":" + std::to_string(port);
}

Address parse_address(const std::string& text) {
  if (text.starts_with(kShm)) {
    std::string name = text.substr(kShm.size());
    if (name.size() > kMaxNameBytes || name.find_first_of(", \t\n\0") != std::string::npos) {
      refuse(text);
    }
    return {Address::Kind::kUnix, std::move(name), 0};
  }
  if (text.starts_with(kTcp)) {
    if (std::optional<Address> address = tcp_address(std::string_view(text).substr(kTcp.size()))) {
      return *std::move(address);
    }
  }
  refuse(text);
}

std::vector<Address> parse_addresses(const std::string& text) {
  std::vector<Address> addresses;
  std::size_t begin = 0;
  while (true) {
    const std::size_t comma = text.find(',', begin);
    addresses.push_back(parse_address(text.substr(begin, comma - begin)));
    if (comma == std::string::npos) {
      return addresses;
    }
    begin = comma + 1;
  }
}

// Not by random_number(): a simulation of the same seed in another process would draw the same name.
std::string random_local_name() {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string name = "distnet-";
  for (std::uint64_t number = system_random_number(), i = 0; i < 16; ++i, number >>= 4U) {
    name += kDigits[number & 15U];
  }
  return name;
}

std::vector<Address> as_reached(const Address& given, std::vector<Address> directory) {
  const std::string first_host = directory.front().name;
  if (given.within_host() || directory.front().within_host()) {
    return directory;
  }
  for (Address& address : directory) {
    if (!address.within_host() && (address.name == first_host || means_here(address.name))) {
      address.name = given.name;
    }
  }
  directory.front() = given;
  return directory;
}

}  // namespace distnet
