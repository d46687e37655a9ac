// Sessions whose client asks for nothing: they have no thread that waits, and go on at the first sign.
#include <atomic>

#include <sys/socket.h>
#include <unistd.h>

#include "base/memory.h"
#include "check.h"
#include "server/allowance.h"
#include "server/dormant_streams.h"
#include "transport/shm/shm_channel.h"

namespace {

using namespace distnet;
using std::chrono::seconds;

struct Counted final : DormantStreams::Sleeper {
  void wake() override {
    ++times;
    wake_all(times);
  }
  std::atomic<std::uint32_t> times{0};
};

struct SocketPair {
  SocketPair() { CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0); }
  ~SocketPair() {
    close(ends[0]);
    close(ends[1]);
  }
  int ends[2] = {-1, -1};
};

ChannelShape shape_of_a_worker() {
  ChannelShape shape;
  shape.shard_floats = 1024;
  shape.max_inflight = 2;
  shape.push_format = shape.pull_format = make_format({});
  return shape;
}

struct CountedPins final : PinOwner {
  void unpin(std::uint32_t) noexcept override { --pinned; }
  int pinned = 0;
};

// A client that writes into the control region what it likes.
class HostileClient {
 public:
  explicit HostileClient(const ShmServerChannel& channel)
      : region_(Region::map(dup(channel.descriptors().front()), kShmControlBytes, true)),
        control_(*region_.as<ShmControl>()) {}

  void post() {
    RequestHeader pull;
    pull.number = ++posted_;
    pull.flags = kWantParameters;
    control_.requests[(posted_ - 1) % kRingEntries] = pull;
    control_.request_count.store(posted_, std::memory_order_release);  // pairs with wait_for_request()
  }
  void release(std::uint32_t reply) { control_.released_count.store(reply, std::memory_order_release); }
  std::uint32_t server_waiting() const { return control_.server_waiting.load(std::memory_order_acquire); }

 private:
  Region region_;
  ShmControl& control_;
  std::uint32_t posted_ = 0;
};

Reply reply_with(CountedPins& pins) {
  ++pins.pinned;
  Reply reply;
  reply.pin = Pin(pins, 0, 0, nullptr, nullptr);
  return reply;
}

}  // namespace

TEST(a_sleeper_is_woken_once_for_each_time_that_it_is_added) {
  SocketPair pair;
  Counted sleeper;
  DormantStreams streams;
  streams.add(sleeper, pair.ends[0]);
  CHECK(write(pair.ends[1], "x", 1) == 1);
  wait_while(sleeper.times, 0U);
  CHECK(sleeper.times == 1);
  streams.add(sleeper, pair.ends[0]);  // the byte is still there
  wait_while(sleeper.times, 1U);
  streams.remove(sleeper);
  CHECK(sleeper.times == 2);
}

TEST(a_sleeper_that_was_removed_is_not_woken) {
  SocketPair pair;
  Counted removed;
  Counted other;
  DormantStreams streams;
  streams.add(removed, pair.ends[0]);
  streams.remove(removed);
  CHECK(write(pair.ends[1], "x", 1) == 1);
  streams.add(other, pair.ends[0]);
  wait_while(other.times, 0U);
  CHECK(removed.times == 0);
}

TEST(a_channel_falls_dormant_when_its_client_is_idle_and_says_so) {
  Memory memory;
  ShmServerChannel channel(shape_of_a_worker(), {}, memory);
  HostileClient client(channel);
  CHECK(channel.is_dormant() && client.server_waiting() == kServerDormant);
  client.post();
  CHECK(channel.next().has_value());
  CHECK(!channel.is_dormant() && client.server_waiting() == kServerAwake);
  CHECK(!channel.next().has_value());
  CHECK(channel.is_dormant() && client.server_waiting() == kServerDormant);
  client.post();
  CHECK(channel.next().has_value());
  channel.stop_taking();
  CHECK(!channel.next().has_value());
  CHECK(!channel.is_dormant());
}

TEST(a_client_that_lets_no_reply_go_holds_no_more_versions_than_stated) {
  Memory memory;
  const ChannelShape shape = shape_of_a_worker();
  ShmServerChannel channel(shape, {}, memory);
  HostileClient client(channel);
  CountedPins pins;
  for (std::uint32_t i = 0; i <= shape.max_inflight; ++i) {
    client.post();
    CHECK(channel.next().has_value());
    channel.reply(reply_with(pins));
  }
  CHECK(pins.pinned == static_cast<int>(shape.max_inflight) + 1);
  client.post();
  CHECK_THROWS(channel.next(), Error);
  channel.close();
  CHECK(pins.pinned == 0);
}

TEST(a_client_may_read_one_reply_in_place_while_all_others_are_on_their_way) {
  Memory memory;
  const ChannelShape shape = shape_of_a_worker();
  ShmServerChannel channel(shape, {}, memory);
  HostileClient client(channel);
  CountedPins pins;
  for (std::uint32_t i = 0; i < 100; ++i) {
    client.release(i < shape.max_inflight ? 0 : i - shape.max_inflight);
    client.post();
    CHECK(channel.next().has_value());
    channel.reply(reply_with(pins));
  }
  channel.close();
}

TEST(an_allowance_is_spent_at_once_and_comes_back_with_time) {
  const Clock::time_point start{};
  Allowance allowance(3.0, 10.0, start);
  for (int i = 0; i < 3; ++i) {
    CHECK(allowance.spend(start) == Clock::duration{});
  }
  CHECK(allowance.spend(start) == milliseconds{100});
  CHECK(allowance.spend(start + milliseconds{100}) == milliseconds{100});
  for (int i = 0; i < 3; ++i) {
    CHECK(allowance.spend(start + seconds{60}) == Clock::duration{});
  }
  CHECK(allowance.spend(start + seconds{60}) > Clock::duration{});
}
