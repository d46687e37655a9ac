// A gradient as all floors pass it on: where it lies, how it is read, and the settings that travel with it.
//
// It stands in base/ because transports, stores and the server all use it. It owns nothing: the memory and the decoder
// stay in place, unchanged, for as long as the view is used.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "base/decoder.h"

namespace distnet {

// The settings of the step that applies a push. A field that is not set leaves the server's own setting.
struct PushSettings {
  std::optional<double> learning_rate = {};  // before groups multiply it; finite, not negative
  std::optional<float> weight = {};          // in the mean of a round; finite, above 0; none: 1
  // Learning rates of the server's first groups, in place of the other. NaN: that group has none of its own.
  std::span<const double> group_rates = {};
};

struct GradientView {
  enum class Kind : std::uint8_t {
    kNone,     // the worker has no usable gradient this time
    kDense,    // one float32 for each element
    kEncoded,  // `decoder` reads it
  };
  enum class Meaning : std::uint8_t {
    kGradient,  // the optimizer makes a step of it
    kChange,    // it is added to the parameters, without optimizer, clipping or decay
  };

  Kind kind = Kind::kNone;
  const void* data = nullptr;
  const Decoder* decoder = nullptr;
  std::uint64_t elements = 0;
  PushSettings settings = {};
  Meaning meaning = Meaning::kGradient;

  static GradientView none() { return {}; }
  static GradientView dense(const float* data, std::uint64_t elements) {
    return {Kind::kDense, data, nullptr, elements, {}, {}};
  }
  static GradientView encoded(const void* data, const Decoder& decoder, std::uint64_t elements) {
    return {Kind::kEncoded, data, &decoder, elements, {}, {}};
  }

  bool present() const { return kind != Kind::kNone; }
  bool is_encoded() const { return kind == Kind::kEncoded; }
  bool is_change() const { return meaning == Meaning::kChange; }
  // Returns whether there is one value for each of `expected` elements, as in every gradient except none().
  bool has_size(std::uint64_t expected) const { return present() && elements == expected; }
  const float* floats() const { return static_cast<const float*>(data); }  // for kDense only
};

}  // namespace distnet
