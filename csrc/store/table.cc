// The table of all guards: a guard is one file and one line of kGuards.
#include <string>

#include "base/error.h"
#include "store/lockfree_store.h"
#include "store/mutex_store.h"
#include "store/store.h"

namespace distnet {
namespace {

template <typename Guarded>
std::unique_ptr<Store> make(const UpdateRuleSpec& rule, std::span<const float> initial, Memory& memory) {
  return std::make_unique<Guarded>(rule, initial, memory);
}

struct Guard {
  std::string_view name;
  std::unique_ptr<Store> (*make)(const UpdateRuleSpec& rule, std::span<const float> initial, Memory& memory);
};

constexpr Guard kGuards[] = {
    {"mutex", make<MutexStore>},
    {"lock-free", make<LockFreeStore>},
};

}  // namespace

std::unique_ptr<Store> make_store(std::string_view guard, const UpdateRuleSpec& rule, std::span<const float> initial,
                                  Memory& memory) {
  std::string known;
  for (const Guard& entry : kGuards) {
    if (entry.name == guard) {
      return entry.make(rule, initial, memory);
    }
    known += (known.empty() ? "'" : ", '") + std::string(entry.name) + "'";
  }
  throw Error(ErrorCode::kConfig, "unknown guard '" + std::string(guard) + "': expected one of " + known);
}

}  // namespace distnet
