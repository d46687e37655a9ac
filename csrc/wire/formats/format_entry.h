// One line of the table of formats, which a format's own file (float16.cc, int8.cc, ...) hands to table.cc.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "wire/format.h"

namespace distnet {

// A value is legal when minimum <= value <= maximum.
struct FormatSetting {
  std::string_view name;
  double default_value;
  double minimum;
  double maximum;
};

// All settings of a format, checked and with defaults filled in.
using FormatSettings = std::map<std::string, double, std::less<>>;

struct FormatEntry {
  std::string_view name;
  std::span<const FormatSetting> settings;
  std::unique_ptr<WireFormat> (*make)(const FormatSettings& settings);
};

// Returns `bytes` with the padding added.
constexpr std::size_t padded_bytes(std::size_t bytes) {
  return (bytes + kFormatAlignBytes - 1) / kFormatAlignBytes * kFormatAlignBytes;
}

// Fills the padding of a chunk with zeros, so that nothing else of the sender's memory leaves with it.
void clear_padding(std::byte* chunk, std::size_t bytes);

}  // namespace distnet
