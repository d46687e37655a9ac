// One line of the table of formats: what a format's own file (float16.cc, int8.cc, ...) hands to table.cc.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "wire/format.h"

namespace distnet {

// Legal values: minimum <= value <= maximum.
struct FormatSetting {
  std::string_view name;
  double default_value;
  double minimum;
  double maximum;
};

// All settings of a format, checked, defaults filled in.
using FormatSettings = std::map<std::string, double, std::less<>>;

struct FormatEntry {
  std::string_view name;
  std::span<const FormatSetting> settings;
  std::unique_ptr<WireFormat> (*make)(const FormatSettings& settings);
};

// The size of `bytes` with its padding.
constexpr std::size_t padded_bytes(std::size_t bytes) {
  return (bytes + kFormatAlignBytes - 1) / kFormatAlignBytes * kFormatAlignBytes;
}

// Fills the padding of a chunk with zeros: nothing of the sender's memory leaves with it.
void clear_padding(std::byte* chunk, std::size_t bytes);

}  // namespace distnet
