#include "wire/gathering_messages.h"

namespace distnet {

std::vector<std::byte> GatherAsk::encode() const {
  Writer writer;
  writer.number(number);
  writer.number(static_cast<std::uint8_t>(kind));
  return writer.take();
}

GatherAsk GatherAsk::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  GatherAsk ask;
  ask.number = reader.number<std::uint64_t>();
  ask.kind = static_cast<GatherKind>(reader.number<std::uint8_t>());
  reader.expect_end();
  if (ask.kind != GatherKind::kBarrier && ask.kind != GatherKind::kFinish) {
    throw Error(ErrorCode::kProtocol, "a gathering of an unknown kind");
  }
  return ask;
}

std::vector<std::byte> GatherVerdict::encode() const {
  Writer writer;
  writer.number(number);
  writer.number(static_cast<std::uint16_t>(code));
  writer.text(text);
  writer.number(round);
  return writer.take();
}

GatherVerdict GatherVerdict::decode(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  GatherVerdict verdict;
  verdict.number = reader.number<std::uint64_t>();
  const auto code = reader.number<std::uint16_t>();
  const bool known = code <= static_cast<std::uint16_t>(kLastErrorCode);
  verdict.code = known ? static_cast<ErrorCode>(code) : ErrorCode::kProtocol;
  verdict.text = reader.text();
  verdict.round = reader.number<std::uint64_t>();
  reader.expect_end();
  return verdict;
}

std::vector<std::byte> encode_number(std::uint64_t number) {
  Writer writer;
  writer.number(number);
  return writer.take();
}

std::uint64_t decode_number(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  const auto number = reader.number<std::uint64_t>();
  reader.expect_end();
  return number;
}

std::vector<std::byte> encode_text(const std::string& text) {
  Writer writer;
  writer.text(text);
  return writer.take();
}

std::string decode_text(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  std::string text = reader.text();
  reader.expect_end();
  return text;
}

}  // namespace distnet
