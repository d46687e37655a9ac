// The allocator of a shard, and pins of what lies in it.
#include <algorithm>

#include "base/error.h"
#include "base/memory.h"
#include "base/pin.h"
#include "check.h"
#include "store_case.h"

namespace {

using namespace distnet;

TEST(memory_is_zeroed_aligned_and_counted_while_it_lives) {
  Memory memory;
  {
    const Region own = memory.allocate(1000);
    Region shared = memory.allocate_shared(5000, false);
    CHECK_EQUAL(memory.held_bytes(), 6000U);
    CHECK(own.fd() < 0 && shared.fd() >= 0);
    for (const Region* const region : {&own, static_cast<const Region*>(&shared)}) {
      CHECK_EQUAL(reinterpret_cast<std::uintptr_t>(region->data()) % 4096, 0U);
      CHECK(
          std::all_of(region->data(), region->data() + region->bytes(), [](std::byte b) { return b == std::byte{0}; }));
    }
    const Region moved = std::move(shared);
    CHECK_EQUAL(memory.held_bytes(), 6000U);
    Region replaced = memory.allocate(1);
    replaced = Region();
    CHECK_EQUAL(memory.held_bytes(), 6000U);
  }
  CHECK_EQUAL(memory.held_bytes(), 0U);
}

TEST(a_region_may_outlive_its_memory_and_what_is_not_to_be_had_is_not_counted) {
  Region left;
  {
    Memory memory;
    left = memory.allocate(100);
    CHECK_THROWS(memory.allocate(std::size_t{1} << 60), Error);
    CHECK_EQUAL(memory.held_bytes(), 100U);
  }
  left = Region();
}

TEST(a_store_takes_all_that_must_outlive_the_process_from_its_memory) {
  constexpr std::size_t kSize = 100'000;
  for (const char* const guard : {"mutex", "lock-free"}) {
    Memory memory;
    UpdateRuleSpec rule = adding_rule();
    rule.optimizer.name = "adam";
    rule.ema_decay = 0.5;
    const auto store = make_store(guard, rule, std::vector<float>(kSize, 0.0F), memory);
    CHECK(memory.held_bytes() >= 4 * kSize * sizeof(float));  // parameters, average, two moments
  }
}

class Owner final : public PinOwner {
 public:
  void unpin(std::uint32_t buffer) noexcept override { unpinned.push_back(buffer); }
  std::vector<std::uint32_t> unpinned;
};

TEST(a_pin_comes_home_once_however_it_is_moved) {
  Owner owner;
  const float parameter = 1.0F;
  {
    Pin pin(owner, 3, 17, &parameter, nullptr);
    Pin moved = std::move(pin);
    CHECK(moved && moved.buffer() == 3 && moved.version() == 17 && moved.parameters() == &parameter);
    CHECK(moved.ema() == nullptr);
    CHECK(!pin);
    Pin other(owner, 4, 18, &parameter, nullptr);
    other = std::move(moved);
    CHECK(owner.unpinned == std::vector<std::uint32_t>{4});
    other.release();
    other.release();
    CHECK(!other && other.parameters() == nullptr);
  }
  CHECK((owner.unpinned == std::vector<std::uint32_t>{4, 3}));
}

}  // namespace
