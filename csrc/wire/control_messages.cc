#include "wire/control_messages.h"

#include <cmath>
#include <limits>

#include "wire/learning_rate.h"

namespace distnet {
namespace {

ShardRange read_range(Reader& reader) {
  const auto begin = reader.number<std::uint64_t>();
  return {begin, reader.number<std::uint64_t>()};
}

void check_range(const ShardRange& range, const Manifest& manifest) {
  const auto [begin, end] = range;
  const std::uint64_t limit = manifest.size + kPageFloats * kPageFloats;  // the last shards of a tiny model are padding
  if (begin >= end || end > limit || begin % kAlignFloats != 0 || end % kAlignFloats != 0) {
    throw Error(ErrorCode::kProtocol, "a shard of elements " + std::to_string(begin) + " to " + std::to_string(end) +
                                          " of a model of " + std::to_string(manifest.size));
  }
}

void write_id(Writer& writer, const ClientId& id) {
  writer.number(id.high);
  writer.number(id.low);
}

ClientId read_id(Reader& reader) {
  const auto high = reader.number<std::uint64_t>();
  return {high, reader.number<std::uint64_t>()};
}

void write_proof(Writer& writer, const Proof& proof) {
  writer.number(proof.high);
  writer.number(proof.low);
}

Proof read_proof(Reader& reader) {
  const auto high = reader.number<std::uint64_t>();
  return {high, reader.number<std::uint64_t>()};
}

void write_grant(Writer& writer, const Grant& grant) {
  writer.number(grant.rank);
  writer.number(grant.incarnation);
  writer.number(static_cast<std::uint32_t>(grant.replaces.size()));
  for (const std::uint32_t incarnation : grant.replaces) {
    writer.number(incarnation);
  }
  writer.number(grant.model);
  write_proof(writer, grant.proof);
}

Grant read_grant(Reader& reader) {
  Grant grant;
  grant.rank = reader.number<std::uint32_t>();
  grant.incarnation = reader.number<std::uint32_t>();
  const auto replaced = reader.number<std::uint32_t>();
  if (replaced > kMostReplaced) {
    throw Error(ErrorCode::kProtocol, "a grant that replaces more sessions than one does");
  }
  for (std::uint32_t i = 0; i < replaced; ++i) {
    grant.replaces.push_back(reader.number<std::uint32_t>());
  }
  grant.model = reader.number<std::uint64_t>();
  grant.proof = read_proof(reader);
  return grant;
}

std::vector<std::string> read_groups(Reader& reader) {
  const std::uint32_t count = read_group_count(reader);
  std::vector<std::string> groups;
  for (std::uint32_t i = 0; i < count; ++i) {
    groups.push_back(reader.text());
    if (groups.back().size() > kMaxPatternBytes) {
      throw Error(ErrorCode::kProtocol, "a group whose pattern is too long");
    }
  }
  return groups;
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
  writer.number(start);
  writer.number(timeout_s);
  writer.number(static_cast<std::uint8_t>(brings_parameters));
  writer.number(owner);
  write_id(writer, id);
  write_grant(writer, grant);
  return writer.take();
}

Hello Hello::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Hello hello;
  hello.role = static_cast<Role>(reader.number<std::uint8_t>());
  hello.transport = static_cast<TransportKind>(reader.number<std::uint8_t>());
  hello.rank = reader.number<std::uint32_t>();
  hello.start = reader.number<std::uint32_t>();
  hello.timeout_s = reader.number<double>();
  hello.brings_parameters = reader.number<std::uint8_t>() != 0;
  hello.owner = reader.number<std::uint64_t>();
  hello.id = read_id(reader);
  hello.grant = read_grant(reader);
  reader.expect_end();
  const bool role_known = hello.role == Role::kWorker || hello.role == Role::kObserver;
  if (!role_known || !(hello.timeout_s > 0.0)) {
    throw Error(ErrorCode::kProtocol, "a hello with an unknown role, or a timeout that is no time");
  }
  if (hello.id == ClientId{}) {
    throw Error(ErrorCode::kProtocol, "a hello without the client's own number");
  }
  return hello;
}

std::vector<std::byte> BringGrant::encode() const {
  Writer writer;
  writer.number(model);
  write_proof(writer, proof);
  return writer.take();
}

BringGrant BringGrant::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  BringGrant grant;
  grant.model = reader.number<std::uint64_t>();
  grant.proof = read_proof(reader);
  reader.expect_end();
  return grant;
}

std::vector<std::byte> Bring::encode() const {
  Writer writer;
  write_id(writer, id);
  writer.number(grant.model);
  write_proof(writer, grant.proof);
  return writer.take();
}

Bring Bring::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Bring bring;
  bring.id = read_id(reader);
  bring.grant.model = reader.number<std::uint64_t>();
  bring.grant.proof = read_proof(reader);
  reader.expect_end();
  return bring;
}

std::vector<std::byte> Initial::encode() const {
  Writer writer;
  write_manifest(writer, manifest);
  writer.number(range.begin);
  writer.number(range.end);
  writer.number(static_cast<std::uint8_t>(optimizer.has_value()));
  if (optimizer) {
    write_optimizer(writer, *optimizer);
  }
  return writer.take();
}

Initial Initial::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Initial initial;
  initial.manifest = read_manifest(reader);
  initial.range = read_range(reader);
  check_range(initial.range, initial.manifest);
  if (reader.number<std::uint8_t>() != 0) {
    initial.optimizer = read_optimizer(reader);
  }
  reader.expect_end();
  return initial;
}

std::vector<std::byte> Welcome::encode() const {
  std::vector<std::byte> bytes = encode_head();
  Writer writer;
  write_manifest(writer, manifest);
  const std::vector<std::byte> tail = writer.take();
  bytes.insert(bytes.end(), tail.begin(), tail.end());
  return bytes;
}

std::vector<std::byte> Welcome::encode_head() const {
  Writer writer;
  writer.number(session);
  writer.number(secret);
  write_grant(writer, grant);
  writer.number(timeout_s);
  writer.number(nonce[0]);
  writer.number(nonce[1]);
  writer.number(range.begin);
  writer.number(range.end);
  writer.number(version);
  writer.number(round);
  writer.number(max_inflight);
  writer.number(workers);
  writer.number(buffer_bytes);
  writer.number(ema_offset_bytes);
  writer.number(clip_norm);
  writer.number(static_cast<std::uint8_t>(versions_can_mix));
  writer.number(static_cast<std::uint8_t>(joins_all));
  writer.number(static_cast<std::uint8_t>(takes_means));
  writer.text(about);
  writer.text(optimizer);
  writer.number(static_cast<std::uint32_t>(groups.size()));
  for (const std::string& pattern : groups) {
    writer.text(pattern);
  }
  write_format(writer, push_format);
  write_format(writer, pull_format);
  return writer.take();
}

Welcome Welcome::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Welcome welcome;
  welcome.session = reader.number<std::uint64_t>();
  welcome.secret = reader.number<std::uint64_t>();
  welcome.grant = read_grant(reader);
  welcome.timeout_s = reader.number<double>();
  welcome.nonce[0] = reader.number<std::uint64_t>();
  welcome.nonce[1] = reader.number<std::uint64_t>();
  welcome.range = read_range(reader);
  welcome.version = reader.number<std::uint64_t>();
  welcome.round = reader.number<std::uint64_t>();
  welcome.max_inflight = reader.number<std::uint32_t>();
  welcome.workers = reader.number<std::uint32_t>();
  welcome.buffer_bytes = reader.number<std::uint64_t>();
  welcome.ema_offset_bytes = reader.number<std::uint64_t>();
  welcome.clip_norm = reader.number<double>();
  welcome.versions_can_mix = reader.number<std::uint8_t>() != 0;
  welcome.joins_all = reader.number<std::uint8_t>() != 0;
  welcome.takes_means = reader.number<std::uint8_t>() != 0;
  welcome.about = read_bounded_text(reader, kMaxAboutBytes);
  welcome.optimizer = read_bounded_text(reader, kMaxOptimizerTextBytes);
  welcome.groups = read_groups(reader);
  welcome.push_format = read_format(reader);
  welcome.pull_format = read_format(reader);
  welcome.manifest = read_manifest(reader);
  reader.expect_end();
  check_range(welcome.range, welcome.manifest);
  const std::uint64_t shard_bytes = welcome.range.size() * sizeof(float);
  const bool ema_fits = welcome.ema_offset_bytes == 0 ||
                        (welcome.ema_offset_bytes >= shard_bytes && shard_bytes <= welcome.buffer_bytes &&
                         welcome.ema_offset_bytes <= welcome.buffer_bytes - shard_bytes &&
                         welcome.ema_offset_bytes % (kAlignFloats * sizeof(float)) == 0);
  if (welcome.max_inflight < 1 || welcome.max_inflight > kMaxInFlight || welcome.buffer_bytes < shard_bytes ||
      welcome.workers < 1 || !ema_fits || !(welcome.clip_norm >= 0.0) || !std::isfinite(welcome.clip_norm) ||
      !(welcome.timeout_s >= kLeastTimeoutSeconds && welcome.timeout_s <= kMostTimeoutSeconds)) {
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
  const bool known = code >= 1 && code <= static_cast<std::uint16_t>(kLastErrorCode);
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

std::vector<std::byte> Progress::encode() const {
  Writer writer;
  writer.number(taken_bytes);
  writer.number(replies);
  writer.number(static_cast<std::uint8_t>(busy));
  return writer.take();
}

Progress Progress::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Progress progress;
  progress.taken_bytes = reader.number<std::uint64_t>();
  progress.replies = reader.number<std::uint64_t>();
  progress.busy = reader.number<std::uint8_t>() != 0;
  reader.expect_end();
  return progress;
}

std::vector<std::byte> Notice::encode() const {
  Writer writer;
  writer.number(static_cast<std::uint8_t>(kind));
  writer.text(text);
  return writer.take();
}

Notice Notice::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Notice notice;
  notice.kind = static_cast<Kind>(reader.number<std::uint8_t>());
  notice.text = reader.text();
  reader.expect_end();
  if (notice.kind < Kind::kWarning || notice.kind > Kind::kModelComes) {
    throw Error(ErrorCode::kProtocol, "a notice of an unknown kind");
  }
  return notice;
}

std::vector<std::byte> Follow::encode() const {
  Writer writer;
  writer.number(shard);
  write_proof(writer, proof);
  return writer.take();
}

Follow Follow::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Follow follow;
  follow.shard = reader.number<std::uint32_t>();
  follow.proof = read_proof(reader);
  reader.expect_end();
  return follow;
}

std::vector<std::byte> RoundEvent::encode() const {
  Writer writer;
  writer.number(round);
  writer.number(rank);
  writer.number(incarnation);
  writer.number(static_cast<std::uint8_t>(how));
  return writer.take();
}

RoundEvent RoundEvent::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  RoundEvent event;
  event.round = reader.number<std::uint64_t>();
  event.rank = reader.number<std::uint32_t>();
  event.incarnation = reader.number<std::uint32_t>();
  event.how = static_cast<SessionEnd>(reader.number<std::uint8_t>());
  reader.expect_end();
  if (event.how < SessionEnd::kDone || event.how > SessionEnd::kStopped) {
    throw Error(ErrorCode::kProtocol, "a session that ended in an unknown way");
  }
  return event;
}

std::vector<std::byte> RoundMembers::encode() const {
  Writer writer;
  writer.number(round);
  write_rate(writer, set_rate);
  write_rate(writer, push_rate);
  writer.number(static_cast<std::uint32_t>(group_rates.size()));
  for (const double rate : group_rates) {
    writer.number(rate);
  }
  writer.number(static_cast<std::uint32_t>(members.size()));
  for (const RoundMember& member : members) {
    writer.number(member.rank);
    writer.number(member.incarnation);
  }
  return writer.take();
}

RoundMembers RoundMembers::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  RoundMembers round;
  round.round = reader.number<std::uint64_t>();
  round.set_rate = read_rate(reader);
  round.push_rate = read_rate(reader);
  const std::uint32_t groups = read_group_count(reader);
  for (std::uint32_t i = 0; i < groups; ++i) {
    round.group_rates.push_back(read_rate(reader).value_or(std::numeric_limits<double>::quiet_NaN()));
  }
  const auto count = reader.number<std::uint32_t>();
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto rank = reader.number<std::uint32_t>();
    round.members.push_back({rank, reader.number<std::uint32_t>()});
  }
  reader.expect_end();
  return round;
}

}  // namespace distnet
