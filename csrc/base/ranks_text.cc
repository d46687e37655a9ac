#include "base/ranks_text.h"

#include <algorithm>

namespace distnet {

std::string ranks_text(std::span<const std::uint32_t> ranks) {
  constexpr std::size_t kMostNamed = 16;
  if (ranks.empty()) {
    return "no rank";
  }
  if (ranks.size() == 1) {
    return "rank " + std::to_string(ranks[0]);
  }
  const std::size_t named = std::min(ranks.size(), kMostNamed);
  const std::size_t others = ranks.size() - named;
  std::string text = "ranks ";
  for (std::size_t i = 0; i < named; ++i) {
    const bool last = i + 1 == named && others == 0;
    text += (i == 0 ? "" : last ? " and " : ", ") + std::to_string(ranks[i]);
  }
  return others == 0 ? text : text + " and " + std::to_string(others) + (others == 1 ? " other" : " others");
}

}  // namespace distnet
