// On which core a thread runs: what it is told, and that it can be asked to go.
#include <sched.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/platform.h"
#include "check.h"
#include "transport/shm/shm_channel.h"

namespace {

using namespace distnet;

cpu_set_t allowed_now() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  CHECK_EQUAL(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  return allowed;
}

}  // namespace

TEST(a_thread_that_leaves_its_core_may_use_the_same_ones_as_before) {
  const cpu_set_t before = allowed_now();
  bool moved = false;
  for (int tries = 0; tries < 100 && !moved; ++tries) {  // the system may move it back at once
    const std::uint32_t core = current_core();
    leave_core();
    moved = current_core() != core;
  }
  const cpu_set_t after = allowed_now();
  CHECK(CPU_EQUAL(&before, &after));
  CHECK_EQUAL(usable_cores(), static_cast<std::uint32_t>(CPU_COUNT(&before)));
  CHECK(moved || usable_cores() == 1);
}

TEST(a_server_says_where_it_runs_with_each_request_and_stays_where_it_has_one_core) {
  const cpu_set_t before = allowed_now();
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(current_core(), &one);
  CHECK_EQUAL(sched_setaffinity(0, sizeof(one), &one), 0);
  const std::uint32_t core = current_core();
  Memory memory;
  ChannelShape shape;
  shape.shard_floats = 16;
  shape.push_format = shape.pull_format = make_format({});
  ShmServerChannel channel(shape, {}, memory);
  const Region region = Region::map(dup(channel.descriptors().front()), kShmControlBytes, true);
  auto* const control = region.as<ShmControl>();
  control->server_core.store(core + 1);
  control->core_to_leave.store(core + 1);
  control->requests[0] = RequestHeader{};
  control->request_count.store(1);
  CHECK(channel.next().has_value());
  CHECK_EQUAL(control->server_core.load(), core);
  CHECK_EQUAL(sched_setaffinity(0, sizeof(before), &before), 0);
}
