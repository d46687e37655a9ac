// Names ranks in messages.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace distnet {

// Returns "rank 2", "ranks 1 and 2", or "ranks 0, 1, 2 and 40 others"; "no rank" where there is none.
std::string ranks_text(std::span<const std::uint32_t> ranks);

}  // namespace distnet
