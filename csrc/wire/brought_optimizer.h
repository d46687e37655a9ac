// An optimizer that a client brings together with the model, for a server that was told of none.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "wire/codec.h"

namespace distnet {

struct BroughtOptimizer {
  // Settings of the tensors whose names match a shell pattern; the first that matches counts.
  struct Group {
    std::string pattern;
    double rate_multiplier = 1.0;
    std::optional<double> weight_decay;           // none: the optimizer's own
    std::map<std::string, double> settings = {};  // in place of the optimizer's own
    bool operator==(const Group&) const = default;
  };
  std::string text;  // all of this as clients write it: the server hands it on and does not read it
  std::string name;
  std::map<std::string, double> settings;
  double learning_rate = 0.01;
  double clip_value = 0.0;  // 0: none
  double clip_norm = 0.0;   // 0: none
  std::vector<Group> groups;
  bool operator==(const BroughtOptimizer&) const = default;
};

// What a text about the server or its optimizer may have, and all of a brought one: a message with the largest manifest
// has room for it.
inline constexpr std::size_t kMaxAboutBytes = std::size_t{4} << 10U;
inline constexpr std::size_t kMaxOptimizerTextBytes = std::size_t{20} << 10U;
inline constexpr std::size_t kMaxOptimizerBytes = std::size_t{48} << 10U;

void write_optimizer(Writer& writer, const BroughtOptimizer& optimizer);
// Whether the values make an optimizer is for the server to see. Throws Error(kProtocol) on anything but such bytes.
BroughtOptimizer read_optimizer(Reader& reader);
// Throws Error(kConfig) where the optimizer takes more bytes than a message has room for.
void check_room(const BroughtOptimizer& optimizer);
// Reads a text of at most `most_bytes`.
std::string read_bounded_text(Reader& reader, std::size_t most_bytes);

}  // namespace distnet
