#include "wire/group_messages.h"

#include <algorithm>
#include <cmath>

namespace distnet {
namespace {

constexpr std::size_t kMaxHostBytes = 256;

std::string checked_name(std::string name) {
  if (name.empty() || name.size() > kMaxGroupNameBytes) {
    throw Error(ErrorCode::kProtocol, "a name of " + std::to_string(name.size()) + " bytes; names have 1 to " +
                                          std::to_string(kMaxGroupNameBytes));
  }
  if (!is_utf8(name)) {
    throw Error(ErrorCode::kProtocol, "a name that is not UTF-8");
  }
  return name;
}

std::string checked_host(std::string host) {
  if (host.size() > kMaxHostBytes) {
    throw Error(ErrorCode::kProtocol, "the name of a host of " + std::to_string(host.size()) + " bytes");
  }
  return host;
}

GroupTransport checked_transport(std::uint8_t transport) {
  if (transport > static_cast<std::uint8_t>(GroupTransport::kTcp)) {
    throw Error(ErrorCode::kProtocol, "a group's transport of an unknown kind");
  }
  return static_cast<GroupTransport>(transport);
}

// How many bytes the character has that begins with this one; 0 where none does.
std::size_t bytes_of_character(unsigned char first) {
  return first < 0x80U ? 1 : first < 0xC2U ? 0 : first < 0xE0U ? 2 : first < 0xF0U ? 3 : first < 0xF5U ? 4 : 0;
}

bool continues(char byte) { return (static_cast<unsigned char>(byte) & 0xC0U) == 0x80U; }

}  // namespace

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const auto first = static_cast<unsigned char>(text[0]);
    const std::size_t bytes = bytes_of_character(first);
    if (bytes == 0 || bytes > text.size() || !std::ranges::all_of(text.substr(1, bytes - 1), continues)) {
      return false;
    }
    const unsigned char second = bytes > 1 ? static_cast<unsigned char>(text[1]) : 0;
    const bool too_long = (first == 0xE0U && second < 0xA0U) || (first == 0xF0U && second < 0x90U);
    const bool surrogate = first == 0xEDU && second >= 0xA0U;
    const bool beyond_unicode = first == 0xF4U && second >= 0x90U;
    if (too_long || surrogate || beyond_unicode) {
      return false;
    }
    text.remove_prefix(bytes);
  }
  return true;
}

std::string shortened(std::string_view text, std::size_t most_bytes) {
  std::size_t end = std::min(text.size(), most_bytes);
  while (end < text.size() && end > 0 && continues(text[end])) {
    --end;
  }
  return std::string(text.substr(0, end));
}

std::vector<std::byte> JoinGroup::encode() const {
  Writer writer;
  writer.text(name);
  writer.number(rank);
  writer.number(size);
  writer.number(timeout_s);
  writer.number(static_cast<std::uint8_t>(transport));
  writer.number(process);
  writer.text(local_name);
  writer.number(port);
  return writer.take();
}

JoinGroup JoinGroup::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  JoinGroup join;
  join.name = checked_name(reader.text());
  join.rank = reader.number<std::uint32_t>();
  join.size = reader.number<std::uint32_t>();
  join.timeout_s = reader.number<double>();
  join.transport = checked_transport(reader.number<std::uint8_t>());
  join.process = reader.number<std::uint64_t>();
  join.local_name = checked_host(reader.text());
  join.port = reader.number<std::uint16_t>();
  reader.expect_end();
  if (join.size == 0 || join.size > kMostGroupRanks || join.rank >= join.size) {
    throw Error(ErrorCode::kConfig, "rank " + std::to_string(join.rank) + " of a group of " +
                                        std::to_string(join.size) + "; a group has 1 to " +
                                        std::to_string(kMostGroupRanks) + " ranks, counted from 0");
  }
  if (!std::isfinite(join.timeout_s) || join.timeout_s <= 0.0) {
    throw Error(ErrorCode::kProtocol, "a group's timeout that is no positive number of seconds");
  }
  return join;
}

std::vector<std::byte> GroupFormed::encode() const {
  Writer writer;
  writer.number(generation);
  writer.number(timeout_s);
  writer.number(static_cast<std::uint8_t>(transport));
  writer.number(secret[0]);
  writer.number(secret[1]);
  writer.number(memory_bytes);
  writer.number(hosted_by);
  writer.number(static_cast<std::uint32_t>(members.size()));
  for (const MemberAddress& member : members) {
    writer.text(member.host);
    writer.number(member.port);
    writer.text(member.local_name);
  }
  return writer.take();
}

GroupFormed GroupFormed::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  GroupFormed formed;
  formed.generation = reader.number<std::uint64_t>();
  formed.timeout_s = reader.number<double>();
  formed.transport = checked_transport(reader.number<std::uint8_t>());
  formed.secret[0] = reader.number<std::uint64_t>();
  formed.secret[1] = reader.number<std::uint64_t>();
  formed.memory_bytes = reader.number<std::uint64_t>();
  formed.hosted_by = reader.number<std::uint32_t>();
  const auto count = reader.number<std::uint32_t>();
  if (count > kMostGroupRanks) {
    throw Error(ErrorCode::kProtocol, "a group of " + std::to_string(count) + " ranks");
  }
  for (std::uint32_t i = 0; i < count; ++i) {
    MemberAddress& member = formed.members.emplace_back();
    member.host = checked_host(reader.text());
    member.port = reader.number<std::uint16_t>();
    member.local_name = checked_host(reader.text());
  }
  reader.expect_end();
  if (!std::isfinite(formed.timeout_s) || formed.timeout_s <= 0.0 || formed.transport == GroupTransport::kAuto) {
    throw Error(ErrorCode::kProtocol, "a group formed without a timeout or a transport");
  }
  return formed;
}

std::vector<std::byte> GroupProgress::encode() const {
  Writer writer;
  writer.number(rank);
  writer.number(ordered);
  writer.number(named);
  return writer.take();
}

GroupProgress GroupProgress::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  GroupProgress progress;
  progress.rank = reader.number<std::uint32_t>();
  progress.ordered = reader.number<std::uint64_t>();
  progress.named = reader.number<std::uint64_t>();
  reader.expect_end();
  return progress;
}

std::vector<std::byte> GroupEnd::encode() const {
  Writer writer;
  writer.number(rank);
  writer.number(static_cast<std::uint16_t>(code));
  writer.text(text);
  return writer.take();
}

GroupEnd GroupEnd::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  GroupEnd end;
  end.rank = reader.number<std::uint32_t>();
  const auto code = reader.number<std::uint16_t>();
  const bool known = code != 0 && code <= static_cast<std::uint16_t>(kLastErrorCode);
  end.code = known ? static_cast<ErrorCode>(code) : ErrorCode::kProtocol;
  end.text = reader.text();
  reader.expect_end();
  return end;
}

std::vector<std::byte> NamedTurn::encode() const {
  Writer writer;
  writer.number(number);
  writer.text(name);
  return writer.take();
}

NamedTurn NamedTurn::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  NamedTurn turn;
  turn.number = reader.number<std::uint64_t>();
  turn.name = checked_name(reader.text());
  reader.expect_end();
  return turn;
}

std::vector<std::byte> NamedNotice::encode() const {
  Writer writer;
  writer.text(name);
  writer.text(text);
  return writer.take();
}

NamedNotice NamedNotice::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  NamedNotice notice;
  notice.name = checked_name(reader.text());
  notice.text = reader.text();
  reader.expect_end();
  return notice;
}

std::vector<std::byte> encode_name(const std::string& name) {
  Writer writer;
  writer.text(name);
  return writer.take();
}

std::string decode_name(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  std::string name = checked_name(reader.text());
  reader.expect_end();
  return name;
}

}  // namespace distnet
