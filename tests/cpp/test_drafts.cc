// A client that sleeps before its reply reads the version meanwhile: the first piece of a draft wakes it.
#include <atomic>

#include <unistd.h>

#include "base/memory.h"
#include "check.h"
#include "transport/shm/shm_channel.h"

namespace {

using namespace distnet;

ChannelShape shape_of(std::uint64_t floats) {
  ChannelShape shape;
  shape.shard_floats = floats;
  shape.max_inflight = 2;
  shape.push_format = shape.pull_format = make_format({});
  return shape;
}

}  // namespace

TEST(the_first_piece_of_a_draft_is_an_event_and_later_ones_are_not) {
  Memory memory;
  ShmServerChannel channel(shape_of(4 * kPieceFloats), {}, memory);
  const Region region = Region::map(dup(channel.descriptors().front()), kShmControlBytes, true);
  const std::atomic<std::uint32_t>& events = region.as<ShmControl>()->server_events;
  for (std::uint32_t push = 1; push <= 3; ++push) {
    const std::uint32_t before = events.load();
    channel.drafted(push, 0, kPieceFloats);
    CHECK_EQUAL(events.load(), before + 1);
    channel.drafted(push, 0, 2 * kPieceFloats);
    channel.drafted(push, 0, 4 * kPieceFloats);
    CHECK_EQUAL(events.load(), before + 1);
  }
}

TEST(a_draft_of_one_piece_wakes_nobody_because_the_reply_comes_at_once) {
  Memory memory;
  ShmServerChannel channel(shape_of(kPieceFloats), {}, memory);
  const Region region = Region::map(dup(channel.descriptors().front()), kShmControlBytes, true);
  const std::uint32_t before = region.as<ShmControl>()->server_events.load();
  channel.drafted(1, 0, kPieceFloats);
  CHECK_EQUAL(region.as<ShmControl>()->server_events.load(), before);
}
