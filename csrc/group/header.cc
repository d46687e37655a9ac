// How a header travels.
#include <string>

#include "base/error.h"
#include "group/operation.h"
#include "group/traffic.h"
#include "wire/codec.h"

namespace distnet {
namespace {

constexpr std::uint8_t kTakesAny = 1;    // a flag
constexpr std::size_t kFixedBytes = 48;  // of a header without shape and splits

[[noreturn]] void refuse(const std::string& why) { throw Error(ErrorCode::kProtocol, why); }

template <typename T>
T known(std::uint8_t value, T last) {
  if (value == 0 || value > static_cast<std::uint8_t>(last)) {
    refuse("an unknown kind, dtype or reduction");
  }
  return static_cast<T>(value);
}

// Returns fields whose types are right, and no more.
Header decode_fields(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  Header header;
  Operation& operation = header.operation;
  operation.kind = known(reader.number<std::uint8_t>(), kLastOperationKind);
  operation.dtype = known(reader.number<std::uint8_t>(), kLastDType);
  operation.reduction = known(reader.number<std::uint8_t>(), kLastReduction);
  const auto flags = reader.number<std::uint8_t>();
  if (flags > kTakesAny) {
    refuse("an unknown flag");
  }
  operation.takes_any = flags != 0;
  operation.root = reader.number<std::uint32_t>();
  header.number = reader.number<std::uint64_t>();
  header.joined_since = reader.number<std::uint64_t>();
  operation.prescale = reader.number<double>();
  operation.postscale = reader.number<double>();
  const auto dimensions = reader.number<std::uint32_t>();
  const auto splits = reader.number<std::uint32_t>();
  // Both loops end with the message, whose length is bounded.
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    operation.shape.push_back(reader.number<std::int64_t>());
  }
  for (std::uint32_t i = 0; i < splits; ++i) {
    operation.splits.push_back(reader.number<std::uint64_t>());
  }
  reader.expect_end();
  return header;
}

}  // namespace

std::size_t header_bytes_bound(std::uint32_t size) {
  return kFixedBytes + sizeof(std::int64_t) * kMostDimensions + sizeof(std::uint64_t) * size;
}

std::vector<std::byte> encode(const Header& header) {
  const Operation& operation = header.operation;
  Writer writer;
  writer.number(static_cast<std::uint8_t>(operation.kind));
  writer.number(static_cast<std::uint8_t>(operation.dtype));
  writer.number(static_cast<std::uint8_t>(operation.reduction));
  writer.number(operation.takes_any ? kTakesAny : std::uint8_t{0});
  writer.number(operation.root);
  writer.number(header.number);
  writer.number(header.joined_since);
  writer.number(operation.prescale);
  writer.number(operation.postscale);
  writer.number(static_cast<std::uint32_t>(operation.shape.size()));
  writer.number(static_cast<std::uint32_t>(operation.splits.size()));
  for (const std::int64_t dimension : operation.shape) {
    writer.number(dimension);
  }
  for (const std::uint64_t split : operation.splits) {
    writer.number(split);
  }
  return writer.take();
}

Header decode_header(std::span<const std::byte> bytes, std::uint32_t rank, std::uint32_t size) {
  try {
    const Header header = decode_fields(bytes);
    if (!header.operation.splits.empty() && header.operation.splits.size() != size) {
      refuse(std::to_string(header.operation.splits.size()) + " splits");
    }
    check_values(header.operation, rank, size);
    return header;
  } catch (const Error& error) {
    throw Error(ErrorCode::kProtocol,
                "rank " + std::to_string(rank) + " sent a header that cannot be: " + error.what());
  }
}

}  // namespace distnet
