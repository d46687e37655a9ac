// Formats of two bytes for each value, which differ only in their kernels.
#pragma once

#include <cstdint>

#include "wire/formats/format_entry.h"

namespace distnet {

// These are functions, not templates, so that each is compiled once for each level of vector instructions (see
// kernels/multiversion.h).
struct TwoByteKernels {
  bool (*encode)(std::uint16_t* to, const float* from, float scale, std::size_t count);
  bool (*encode_with_residual)(std::uint16_t* to, float* left, const float* from, const float* carried, float scale,
                               std::size_t count);
  bool (*decode)(float* to, const std::uint16_t* from, std::size_t count);
  bool (*finite)(const std::uint16_t* from, std::size_t count);
};

class TwoByteFormat final : public WireFormat {
 public:
  explicit TwoByteFormat(const TwoByteKernels& kernels) : kernels_(kernels) {}

  std::size_t chunk_bytes(std::size_t chunk) const override { return padded_bytes(chunk * sizeof(std::uint16_t)); }

  bool encode(std::byte* to, const float* from, std::size_t chunk, float scale,
              const Residual& residual) const override {
    auto* const values = reinterpret_cast<std::uint16_t*>(to);
    clear_padding(to, chunk * sizeof(std::uint16_t));
    return residual.left == nullptr
               ? kernels_.encode(values, from, scale, chunk)
               : kernels_.encode_with_residual(values, residual.left, from, residual.carried, scale, chunk);
  }

  bool decode(float* to, const std::byte* from, std::size_t /*chunk*/, std::size_t begin,
              std::size_t count) const override {
    return kernels_.decode(to, reinterpret_cast<const std::uint16_t*>(from) + begin, count);
  }

  bool finite(const std::byte* from, std::size_t chunk) const override {
    return kernels_.finite(reinterpret_cast<const std::uint16_t*>(from), chunk);
  }

 private:
  const TwoByteKernels kernels_;
};

}  // namespace distnet
