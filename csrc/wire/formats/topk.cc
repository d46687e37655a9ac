// topk: of each chunk only the k = max(1, round(ratio * length)) values of the largest magnitude are sent, the first of
// equal ones; all others become 0. It is meant for gradients whose senders keep the rest as their residual.
//
// The u16 places of the values in the chunk come first, rising, then the values as float32.
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "kernels/access.h"
#include "kernels/kernels.h"
#include "kernels/multiversion.h"
#include "wire/formats/format_entry.h"

namespace distnet {
namespace {

using Place = std::uint16_t;

constexpr std::size_t kMaxRuns = kFormatChunkFloats / kTopkRunFloats;
constexpr std::int32_t kMagnitude = 0x7FFFFFFF;

// Returns the magnitude as bits, which order like the magnitudes, with any NaN above infinity.
inline std::int32_t magnitude_of(float value) { return std::bit_cast<std::int32_t>(value) & kMagnitude; }

// Both load the values to choose from, and the largest magnitude of each run of them.
DISTNET_MULTIVERSION void load(float* values, float* largest, const float* from, float scale, std::size_t count) {
  for (std::size_t begin = 0; begin < count; begin += kTopkRunFloats) {
    const std::size_t end = std::min(begin + kTopkRunFloats, count);
    std::int32_t found = 0;
    DISTNET_INDEPENDENT
    for (std::size_t i = begin; i < end; ++i) {
      const float value = shared_load(from + i) * scale;
      found = std::max(found, magnitude_of(value));
      values[i] = value;
    }
    largest[begin / kTopkRunFloats] = std::bit_cast<float>(found);
  }
}

DISTNET_MULTIVERSION void load_with_carried(float* values, float* largest, const float* from, const float* carried,
                                            float scale, std::size_t count) {
  for (std::size_t begin = 0; begin < count; begin += kTopkRunFloats) {
    const std::size_t end = std::min(begin + kTopkRunFloats, count);
    std::int32_t found = 0;
    DISTNET_INDEPENDENT
    for (std::size_t i = begin; i < end; ++i) {
      const float value = shared_load(from + i) * scale + carried[i];
      found = std::max(found, magnitude_of(value));
      values[i] = value;
    }
    largest[begin / kTopkRunFloats] = std::bit_cast<float>(found);
  }
}

// Returns a magnitude that at least `k` of the values reach, and hardly more. It is the lower edge of the histogram
// bin, by exponent and three bits of mantissa, that holds the k-th largest.
std::int32_t reached_by(std::size_t k, const float* values, std::size_t count) {
  constexpr int kShift = 20;
  std::uint16_t bins[(static_cast<std::uint32_t>(kMagnitude) >> kShift) + 1] = {};
  for (std::size_t i = 0; i < count; ++i) {
    ++bins[magnitude_of(values[i]) >> kShift];
  }
  std::int32_t bin = kMagnitude >> kShift;
  for (std::size_t reached = bins[bin]; reached < k; reached += bins[bin]) {
    --bin;
  }
  return bin << kShift;
}

// Writes the places, rising, of all values that reach a magnitude, and returns how many there are.
std::size_t candidates(Place* places, const float* values, const float* largest, std::int32_t least,
                       std::size_t count) {
  std::size_t found = 0;
  for (std::size_t begin = 0; begin < count; begin += kTopkRunFloats) {
    if (magnitude_of(largest[begin / kTopkRunFloats]) < least) {
      continue;
    }
    const std::size_t end = std::min(begin + kTopkRunFloats, count);
    for (std::size_t i = begin; i < end; ++i) {
      places[found] = static_cast<Place>(i);
      found += magnitude_of(values[i]) >= least ? 1 : 0;
    }
  }
  return found;
}

// Reduces `found` rising places to those of the k largest magnitudes, still rising.
void keep_largest(Place* places, std::size_t found, std::size_t k, const float* values) {
  if (found == k) {
    return;
  }
  const auto goes_before = [values](Place left, Place right) {
    const std::int32_t left_magnitude = magnitude_of(values[left]);
    const std::int32_t right_magnitude = magnitude_of(values[right]);
    return left_magnitude != right_magnitude ? left_magnitude > right_magnitude : left < right;
  };
  Place order[kFormatChunkFloats];
  std::copy_n(places, found, order);
  std::nth_element(order, order + k - 1, order + found, goes_before);
  const Place last = order[k - 1];
  static_cast<void>(std::remove_if(places, places + found, [&](Place place) { return goes_before(last, place); }));
}

class TopK final : public WireFormat {
 public:
  explicit TopK(double ratio) : ratio_(ratio) {}

  bool for_pulls() const override { return false; }
  std::size_t chunk_bytes(std::size_t chunk) const override { return padded_bytes(layout(chunk).bytes); }

  bool encode(std::byte* to, const float* from, std::size_t chunk, float scale,
              const Residual& residual) const override {
    const Layout at = layout(chunk);
    alignas(64) float scratch[kFormatChunkFloats];
    float* const values = residual.left != nullptr ? residual.left : scratch;
    float largest[kMaxRuns];
    const std::size_t runs = (chunk + kTopkRunFloats - 1) / kTopkRunFloats;
    if (residual.left != nullptr) {
      load_with_carried(values, largest, from, residual.carried, scale, chunk);
    } else {
      load(values, largest, from, scale, chunk);
    }
    // k runs whose largest magnitudes reach a bound hold k values that do.
    const std::int32_t least = at.k <= runs ? reached_by(at.k, largest, runs) : reached_by(at.k, values, chunk);
    Place chosen[kFormatChunkFloats + 1];  // one more: candidates() writes before it knows
    keep_largest(chosen, candidates(chosen, values, largest, least, chunk), at.k, values);

    clear_padding(to, at.bytes);
    std::fill(to + at.k * sizeof(Place), to + at.values, std::byte{0});
    std::copy_n(chosen, at.k, reinterpret_cast<Place*>(to));
    auto* const sent = reinterpret_cast<float*>(to + at.values);
    for (std::size_t i = 0; i < at.k; ++i) {
      sent[i] = values[chosen[i]];
      values[chosen[i]] = 0.0F;
    }
    return all_finite(largest, runs);
  }

  bool decode(float* to, const std::byte* from, std::size_t chunk, std::size_t begin,
              std::size_t count) const override {
    const Layout at = layout(chunk);
    const auto* const values = reinterpret_cast<const float*>(from + at.values);
    // Each place is read once: a peer that shares this memory may change it between a check and its use.
    const auto* const places = reinterpret_cast<const volatile Place*>(from);
    std::size_t first = 0;
    for (std::size_t left = at.k; left > 0;) {  // the first place that is not before `begin`
      const std::size_t half = left / 2;
      const bool before = places[first + half] < begin;
      first = before ? first + half + 1 : first;
      left = before ? left - half - 1 : half;
    }
    std::fill_n(to, count, 0.0F);
    bool finite = true;
    for (std::size_t i = first; i < at.k; ++i) {
      const std::size_t place = std::size_t{places[i]} - begin;
      if (place >= count) {
        break;
      }
      to[place] = values[i];
      finite = finite && std::isfinite(to[place]);
    }
    return finite;
  }

  bool valid(const std::byte* from, std::size_t chunk) const override {
    const std::size_t k = layout(chunk).k;
    const auto* const places = reinterpret_cast<const Place*>(from);
    return std::adjacent_find(places, places + k, std::greater_equal<>()) == places + k && places[k - 1] < chunk;
  }

  bool finite(const std::byte* from, std::size_t chunk) const override {
    const Layout at = layout(chunk);
    return all_finite(reinterpret_cast<const float*>(from + at.values), at.k);
  }

 private:
  struct Layout {
    std::size_t k;
    std::size_t values;  // where they begin, in bytes
    std::size_t bytes;
  };

  Layout layout(std::size_t chunk) const {
    const auto k =
        std::max<std::size_t>(1, static_cast<std::size_t>(std::llround(ratio_ * static_cast<double>(chunk))));
    const std::size_t values = (k * sizeof(Place) + sizeof(float) - 1) / sizeof(float) * sizeof(float);
    return {k, values, values + k * sizeof(float)};
  }

  double ratio_;
};

constexpr FormatSetting kSettings[] = {{"ratio", 0.01, 1e-6, 1.0}};

}  // namespace

extern const FormatEntry topk_entry;
const FormatEntry topk_entry = {"topk", kSettings, [](const FormatSettings& settings) -> std::unique_ptr<WireFormat> {
                                  return std::make_unique<TopK>(settings.find("ratio")->second);
                                }};

}  // namespace distnet
