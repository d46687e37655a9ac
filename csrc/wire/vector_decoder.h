// Decodes a range of a whole encoded vector, as updates read it.
#pragma once

#include <algorithm>
#include <memory>

#include "base/decoder.h"
#include "wire/format.h"

namespace distnet {

class VectorDecoder final : public Decoder {
 public:
  VectorDecoder(std::shared_ptr<const WireFormat> format, std::uint64_t floats)
      : format_(std::move(format)), floats_(floats) {}

  void decode(float* to, const void* encoded, std::uint64_t begin, std::size_t count) const override {
    const std::uint64_t chunk = begin / kFormatChunkFloats;
    const std::uint64_t first = chunk * kFormatChunkFloats;
    const auto length = static_cast<std::size_t>(std::min<std::uint64_t>(kFormatChunkFloats, floats_ - first));
    const auto* const bytes = static_cast<const std::byte*>(encoded) + format_->chunk_offset_bytes(chunk);
    format_->decode(to, bytes, length, static_cast<std::size_t>(begin - first), count);
  }

 private:
  const std::shared_ptr<const WireFormat> format_;
  const std::uint64_t floats_;
};

}  // namespace distnet
