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

  bool decode(float* to, const void* encoded, std::uint64_t begin, std::size_t count) const override {
    const std::uint64_t chunk = begin / kFormatChunkFloats;
    const auto within = static_cast<std::size_t>(begin - chunk * kFormatChunkFloats);
    return format_->decode(to, bytes_of(encoded, chunk), length_of(chunk), within, count);
  }

  bool finite(const void* encoded, std::uint64_t begin, std::uint64_t end) const override {
    bool finite = true;
    for (std::uint64_t chunk = begin / kFormatChunkFloats; chunk * kFormatChunkFloats < end; ++chunk) {
      finite = format_->finite(bytes_of(encoded, chunk), length_of(chunk)) && finite;
    }
    return finite;
  }

 private:
  std::size_t length_of(std::uint64_t chunk) const {
    return static_cast<std::size_t>(std::min<std::uint64_t>(kFormatChunkFloats, floats_ - chunk * kFormatChunkFloats));
  }
  const std::byte* bytes_of(const void* encoded, std::uint64_t chunk) const {
    return static_cast<const std::byte*>(encoded) + format_->chunk_offset_bytes(chunk);
  }

  const std::shared_ptr<const WireFormat> format_;
  const std::uint64_t floats_;
};

}  // namespace distnet
