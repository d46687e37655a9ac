#include "wire/brought_optimizer.h"

#include <cmath>
#include <cstdint>
#include <utility>

#include "base/error.h"

namespace distnet {
namespace {

constexpr std::uint32_t kMaxOptimizerSettings = 64;

double read_finite(Reader& reader) {
  const auto value = reader.number<double>();
  if (!std::isfinite(value)) {
    throw Error(ErrorCode::kProtocol, "an optimizer with a setting that is not finite");
  }
  return value;
}

void write_settings(Writer& writer, const std::map<std::string, double>& settings) {
  writer.number(static_cast<std::uint32_t>(settings.size()));
  for (const auto& [name, value] : settings) {
    writer.text(name);
    writer.number(value);
  }
}

std::map<std::string, double> read_settings(Reader& reader) {
  const auto count = reader.number<std::uint32_t>();
  if (count > kMaxOptimizerSettings) {
    throw Error(ErrorCode::kProtocol, "an optimizer with " + std::to_string(count) + " settings");
  }
  std::map<std::string, double> settings;
  for (std::uint32_t i = 0; i < count; ++i) {
    std::string name = reader.text();
    const double value = read_finite(reader);
    if (!settings.emplace(std::move(name), value).second) {
      throw Error(ErrorCode::kProtocol, "an optimizer with two settings of one name");
    }
  }
  return settings;
}

BroughtOptimizer::Group read_group(Reader& reader) {
  BroughtOptimizer::Group group;
  group.pattern = reader.text();
  group.rate_multiplier = read_finite(reader);
  if (reader.number<std::uint8_t>() != 0) {
    group.weight_decay = read_finite(reader);
  }
  group.settings = read_settings(reader);
  return group;
}

}  // namespace

void write_optimizer(Writer& writer, const BroughtOptimizer& optimizer) {
  writer.text(optimizer.text);
  writer.text(optimizer.name);
  write_settings(writer, optimizer.settings);
  writer.number(optimizer.learning_rate);
  writer.number(optimizer.clip_value);
  writer.number(optimizer.clip_norm);
  writer.number(static_cast<std::uint32_t>(optimizer.groups.size()));
  for (const BroughtOptimizer::Group& group : optimizer.groups) {
    writer.text(group.pattern);
    writer.number(group.rate_multiplier);
    writer.number(static_cast<std::uint8_t>(group.weight_decay.has_value()));
    if (group.weight_decay) {
      writer.number(*group.weight_decay);
    }
    write_settings(writer, group.settings);
  }
}

BroughtOptimizer read_optimizer(Reader& reader) {
  BroughtOptimizer optimizer;
  const std::size_t before = reader.left();
  optimizer.text = read_bounded_text(reader, kMaxOptimizerTextBytes);
  optimizer.name = reader.text();
  optimizer.settings = read_settings(reader);
  optimizer.learning_rate = read_finite(reader);
  optimizer.clip_value = read_finite(reader);
  optimizer.clip_norm = read_finite(reader);
  const auto groups = reader.number<std::uint32_t>();
  for (std::uint32_t i = 0; i < groups; ++i) {
    optimizer.groups.push_back(read_group(reader));
  }
  if (optimizer.clip_value < 0.0 || optimizer.clip_norm < 0.0 || before - reader.left() > kMaxOptimizerBytes) {
    throw Error(ErrorCode::kProtocol, "an optimizer that clips to less than nothing, or has too many groups");
  }
  return optimizer;
}

void check_room(const BroughtOptimizer& optimizer) {
  Writer writer;
  write_optimizer(writer, optimizer);
  if (optimizer.text.size() > kMaxOptimizerTextBytes || writer.take().size() > kMaxOptimizerBytes) {
    throw Error(ErrorCode::kConfig, "the optimizer has " + std::to_string(optimizer.groups.size()) +
                                        " groups, more than a client can bring: use patterns that match more tensors, "
                                        "or start the server with the optimizer");
  }
}

std::string read_bounded_text(Reader& reader, std::size_t most_bytes) {
  std::string text = reader.text();
  if (text.size() > most_bytes) {
    throw Error(ErrorCode::kProtocol, "a text of " + std::to_string(text.size()) + " bytes, where " +
                                          std::to_string(most_bytes) + " are taken");
  }
  return text;
}

}  // namespace distnet
