#include "transport/address.h"

#include <charconv>

#include "base/error.h"

namespace distnet {
namespace {

constexpr std::size_t kMaxNameBytes = 80;  // a Unix socket's abstract name has at most 107

[[noreturn]] void refuse(const std::string& text) {
  throw Error(ErrorCode::kConfig, "the address '" + text + "' is neither shm://name nor tcp://host:port");
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
  if (text.rfind("shm://", 0) == 0) {
    std::string name = text.substr(6);
    if (name.size() > kMaxNameBytes || name.find_first_of(", \t\n\0") != std::string::npos) {
      refuse(text);
    }
    return {Address::Kind::kUnix, std::move(name), 0};
  }
  const std::size_t colon = text.rfind(':');
  if (text.rfind("tcp://", 0) != 0 || colon == std::string::npos || colon < 6) {
    refuse(text);
  }
  std::string host = text.substr(6, colon - 6);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  std::uint16_t port = 0;
  const char* const end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data() + colon + 1, end, port);
  if (error != std::errc{} || at != end || host.empty()) {
    refuse(text);
  }
  return {Address::Kind::kTcp, std::move(host), port};
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

}  // namespace distnet
