// The table of all formats: a format is one file and one line of DISTNET_FORMATS.
#include <algorithm>
#include <sstream>

#include "base/error.h"
#include "wire/formats/format_entry.h"

#define DISTNET_FORMATS(X) \
  X(float32_entry)         \
  X(bfloat16_entry)        \
  X(float16_entry)         \
  X(int8_entry)            \
  X(topk_entry)

namespace distnet {

#define DISTNET_DECLARE(entry) extern const FormatEntry entry;
DISTNET_FORMATS(DISTNET_DECLARE)
#undef DISTNET_DECLARE

namespace {

constexpr std::size_t kMaxNameBytes = 64;  // for formats and settings
constexpr std::uint8_t kMaxSettings = 16;

#define DISTNET_ADDRESS(entry) &(entry),
constexpr const FormatEntry* kFormats[] = {DISTNET_FORMATS(DISTNET_ADDRESS)};
#undef DISTNET_ADDRESS

const FormatEntry& find_format(const std::string& name) {
  std::string known;
  for (const FormatEntry* entry : kFormats) {
    if (entry->name == name) {
      return *entry;
    }
    known += known.empty() ? "" : ", ";
    known += entry->name;
  }
  throw Error(ErrorCode::kConfig, "unknown wire format '" + name + "': expected one of " + known);
}

FormatSettings checked_settings(const FormatEntry& entry, const FormatSpec& spec) {
  FormatSettings settings;
  std::string known;
  for (const FormatSetting& setting : entry.settings) {
    settings.emplace(setting.name, setting.default_value);
    known += known.empty() ? "" : ", ";
    known += setting.name;
  }
  for (const auto& [name, value] : spec.settings) {
    const auto found = settings.find(name);
    if (found == settings.end()) {
      throw Error(ErrorCode::kConfig, "wire format '" + spec.name + "' has no setting '" + name + "': expected " +
                                          (known.empty() ? "none" : "one of " + known));
    }
    found->second = value;
  }
  for (const FormatSetting& setting : entry.settings) {
    const double value = settings.find(setting.name)->second;
    if (value >= setting.minimum && value <= setting.maximum) {
      continue;
    }
    std::ostringstream message;
    message << "setting '" << setting.name << "' of wire format '" << spec.name << "' is " << value
            << ": expected at least " << setting.minimum << " and at most " << setting.maximum;
    throw Error(ErrorCode::kConfig, message.str());
  }
  return settings;
}

std::string read_name(Reader& reader) {
  std::string name = reader.text();
  if (name.empty() || name.size() > kMaxNameBytes) {
    throw Error(ErrorCode::kProtocol, "a wire format with a name of " + std::to_string(name.size()) +
                                          " bytes; names have 1 to " + std::to_string(kMaxNameBytes));
  }
  return name;
}

}  // namespace

std::uint64_t WireFormat::encoded_bytes(std::uint64_t floats) const {
  const auto rest = static_cast<std::size_t>(floats % kFormatChunkFloats);
  return chunk_offset_bytes(floats / kFormatChunkFloats) + (rest == 0 ? 0 : chunk_bytes(rest));
}

void clear_padding(std::byte* chunk, std::size_t bytes) {
  std::fill(chunk + bytes, chunk + padded_bytes(bytes), std::byte{0});
}

std::unique_ptr<WireFormat> make_format(const FormatSpec& spec) {
  const FormatEntry& entry = find_format(spec.name);
  return entry.make(checked_settings(entry, spec));
}

FormatSpec complete_format(const FormatSpec& spec) {
  const FormatSettings settings = checked_settings(find_format(spec.name), spec);
  return {spec.name, {settings.begin(), settings.end()}};
}

void write_format(Writer& writer, const FormatSpec& spec) {
  const FormatSpec complete = complete_format(spec);
  writer.text(complete.name);
  writer.number(static_cast<std::uint8_t>(complete.settings.size()));
  for (const auto& [name, value] : complete.settings) {
    writer.text(name);
    writer.number(value);
  }
}

FormatSpec read_format(Reader& reader) {
  FormatSpec spec;
  spec.name = read_name(reader);
  const auto count = reader.number<std::uint8_t>();
  if (count > kMaxSettings) {
    throw Error(ErrorCode::kProtocol, "a wire format with " + std::to_string(count) + " settings; at most " +
                                          std::to_string(kMaxSettings) + " are taken");
  }
  for (std::uint8_t i = 0; i < count; ++i) {
    std::string name = read_name(reader);
    const auto value = reader.number<double>();
    if (!spec.settings.emplace(std::move(name), value).second) {
      throw Error(ErrorCode::kProtocol, "a wire format with two settings of one name");
    }
  }
  return spec;
}

}  // namespace distnet
