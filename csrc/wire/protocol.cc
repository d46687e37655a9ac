#include "wire/protocol.h"

#include <cmath>

namespace distnet {
namespace {

ShardRange read_range(Reader& reader, const Manifest& manifest) {
  const auto begin = reader.number<std::uint64_t>();
  const auto end = reader.number<std::uint64_t>();
  const std::uint64_t limit = manifest.size + kPageFloats * kPageFloats;  // the last shards of a tiny model are padding
  if (begin >= end || end > limit || begin % kAlignFloats != 0 || end % kAlignFloats != 0) {
    throw Error(ErrorCode::kProtocol, "a shard of elements " + std::to_string(begin) + " to " + std::to_string(end) +
                                          " of a model of " + std::to_string(manifest.size));
  }
  return {begin, end};
}

}  // namespace

std::vector<std::byte> ProbeReply::encode() const {
  Writer writer;
  writer.number(nonce[0]);
  writer.number(nonce[1]);
  writer.text(local_name);
  writer.text(directory);
  return writer.take();
}

ProbeReply ProbeReply::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  ProbeReply reply;
  reply.nonce[0] = reader.number<std::uint64_t>();
  reply.nonce[1] = reader.number<std::uint64_t>();
  reply.local_name = reader.text();
  reply.directory = reader.text();
  reader.expect_end();
  return reply;
}

std::vector<std::byte> Hello::encode() const {
  Writer writer;
  writer.number(static_cast<std::uint8_t>(role));
  writer.number(static_cast<std::uint8_t>(transport));
  writer.number(rank);
  writer.number(deadline_s);
  writer.number(static_cast<std::uint8_t>(brings_parameters));
  return writer.take();
}

Hello Hello::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Hello hello;
  hello.role = static_cast<Role>(reader.number<std::uint8_t>());
  hello.transport = static_cast<TransportKind>(reader.number<std::uint8_t>());
  hello.rank = reader.number<std::uint32_t>();
  hello.deadline_s = reader.number<double>();
  hello.brings_parameters = reader.number<std::uint8_t>() != 0;
  reader.expect_end();
  const bool role_known = hello.role >= Role::kWorker && hello.role <= Role::kShard;
  const bool transport_known = hello.transport == TransportKind::kShm || hello.transport == TransportKind::kTcp;
  if (!role_known || !transport_known || !(hello.deadline_s > 0.0) || hello.deadline_s > 1e9) {
    throw Error(ErrorCode::kProtocol, "a hello with an unknown role or transport, or a deadline that is no time");
  }
  return hello;
}

std::vector<std::byte> Initial::encode() const {
  Writer writer;
  write_manifest(writer, manifest);
  writer.number(range.begin);
  writer.number(range.end);
  return writer.take();
}

Initial Initial::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Initial initial;
  initial.manifest = read_manifest(reader);
  initial.range = read_range(reader, initial.manifest);
  reader.expect_end();
  return initial;
}

std::vector<std::byte> Welcome::encode() const {
  Writer writer;
  writer.number(session);
  writer.number(secret);
  writer.number(nonce[0]);
  writer.number(nonce[1]);
  write_manifest(writer, manifest);
  writer.number(range.begin);
  writer.number(range.end);
  writer.number(version);
  writer.number(round);
  writer.number(max_inflight);
  writer.number(buffer_bytes);
  writer.number(average_offset_bytes);
  writer.number(clip_norm);
  writer.number(static_cast<std::uint8_t>(versions_can_mix));
  writer.number(static_cast<std::uint8_t>(joins_all));
  write_format(writer, push_format);
  write_format(writer, pull_format);
  return writer.take();
}

Welcome Welcome::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Welcome welcome;
  welcome.session = reader.number<std::uint64_t>();
  welcome.secret = reader.number<std::uint64_t>();
  welcome.nonce[0] = reader.number<std::uint64_t>();
  welcome.nonce[1] = reader.number<std::uint64_t>();
  welcome.manifest = read_manifest(reader);
  welcome.range = read_range(reader, welcome.manifest);
  welcome.version = reader.number<std::uint64_t>();
  welcome.round = reader.number<std::uint64_t>();
  welcome.max_inflight = reader.number<std::uint32_t>();
  welcome.buffer_bytes = reader.number<std::uint64_t>();
  welcome.average_offset_bytes = reader.number<std::uint64_t>();
  welcome.clip_norm = reader.number<double>();
  welcome.versions_can_mix = reader.number<std::uint8_t>() != 0;
  welcome.joins_all = reader.number<std::uint8_t>() != 0;
  welcome.push_format = read_format(reader);
  welcome.pull_format = read_format(reader);
  reader.expect_end();
  const std::uint64_t shard_bytes = welcome.range.size() * sizeof(float);
  const bool average_fits = welcome.average_offset_bytes == 0 ||
                            (welcome.average_offset_bytes >= shard_bytes && shard_bytes <= welcome.buffer_bytes &&
                             welcome.average_offset_bytes <= welcome.buffer_bytes - shard_bytes &&
                             welcome.average_offset_bytes % (kAlignFloats * sizeof(float)) == 0);
  if (welcome.max_inflight < 1 || welcome.max_inflight > kMaxInFlight || welcome.buffer_bytes < shard_bytes ||
      !average_fits || !(welcome.clip_norm >= 0.0) || !std::isfinite(welcome.clip_norm)) {
    throw Error(ErrorCode::kProtocol, "a welcome whose sizes contradict each other");
  }
  return welcome;
}

std::vector<std::byte> Refusal::encode() const {
  Writer writer;
  writer.number(static_cast<std::uint16_t>(code));
  writer.text(message);
  return writer.take();
}

Refusal Refusal::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Refusal refusal;
  const auto code = reader.number<std::uint16_t>();
  const bool known = code >= 1 && code <= static_cast<std::uint16_t>(ErrorCode::kUnauthorized);
  refusal.code = known ? static_cast<ErrorCode>(code) : ErrorCode::kProtocol;
  refusal.message = reader.text();
  reader.expect_end();
  return refusal;
}

std::vector<std::byte> Attach::encode() const {
  Writer writer;
  writer.number(session);
  writer.number(secret);
  return writer.take();
}

Attach Attach::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Attach attach;
  attach.session = reader.number<std::uint64_t>();
  attach.secret = reader.number<std::uint64_t>();
  reader.expect_end();
  return attach;
}

std::vector<std::byte> RoundEvent::encode() const {
  Writer writer;
  writer.number(round);
  writer.number(rank);
  return writer.take();
}

RoundEvent RoundEvent::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  RoundEvent event;
  event.round = reader.number<std::uint64_t>();
  event.rank = reader.number<std::uint32_t>();
  reader.expect_end();
  return event;
}

std::vector<std::byte> RoundMembers::encode() const {
  Writer writer;
  writer.number(round);
  writer.number(static_cast<std::uint32_t>(ranks.size()));
  for (const std::uint32_t rank : ranks) {
    writer.number(rank);
  }
  return writer.take();
}

RoundMembers RoundMembers::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  RoundMembers members;
  members.round = reader.number<std::uint64_t>();
  const auto count = reader.number<std::uint32_t>();
  for (std::uint32_t i = 0; i < count; ++i) {
    members.ranks.push_back(reader.number<std::uint32_t>());
  }
  reader.expect_end();
  return members;
}

}  // namespace distnet
