// float32: the values as they are.
#include "kernels/access.h"
#include "kernels/kernels.h"
#include "kernels/multiversion.h"
#include "wire/formats/format_entry.h"

namespace distnet {
namespace {

DISTNET_MULTIVERSION void add_carried(float* to, float* left, const float* carried, std::size_t count) {
  DISTNET_INDEPENDENT
  for (std::size_t i = 0; i < count; ++i) {
    to[i] += carried[i];
    left[i] = 0.0F;
  }
}

class Float32 final : public WireFormat {
 public:
  bool plain() const override { return true; }
  std::size_t chunk_bytes(std::size_t chunk) const override { return padded_bytes(chunk * sizeof(float)); }

  bool encode(std::byte* to, const float* from, std::size_t chunk, float scale,
              const Residual& residual) const override {
    float* const values = reinterpret_cast<float*>(to);
    clear_padding(to, chunk * sizeof(float));
    if (residual.left == nullptr) {
      return copy_scaled_finite(values, from, scale, chunk);
    }
    static_cast<void>(copy_scaled_finite(values, from, scale, chunk));
    add_carried(values, residual.left, residual.carried, chunk);
    return all_finite(values, chunk);
  }

  bool decode(float* to, const std::byte* from, std::size_t /*chunk*/, std::size_t begin,
              std::size_t count) const override {
    return copy_finite(to, reinterpret_cast<const float*>(from) + begin, count);
  }

  bool finite(const std::byte* from, std::size_t chunk) const override {
    return all_finite(reinterpret_cast<const float*>(from), chunk);
  }
};

}  // namespace

extern const FormatEntry float32_entry;
const FormatEntry float32_entry = {
    "float32", {}, [](const FormatSettings&) -> std::unique_ptr<WireFormat> { return std::make_unique<Float32>(); }};

}  // namespace distnet
