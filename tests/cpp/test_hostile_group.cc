// Coordinators and members that break the rules, and strangers: the others hear why, and go on where they can.
#include <array>
#include <functional>
#include <limits>

#include "group_case.h"

namespace {

using namespace group_case;

// A member that says what it likes.
struct RawMember {
  ControlConnection control;
  GroupFormed formed;

  RawMember(const std::string& address, std::uint32_t rank, std::uint32_t size)
      : control(Stream::connect(parse_address(address), Deadline::after(5.0), {})) {
    JoinGroup join;
    join.name = "world";
    join.rank = rank;
    join.size = size;
    join.timeout_s = 5.0;
    join.local_name = "distnet-raw";
    join.port = 1;
    control.send(ControlKind::kJoinGroup, join.encode());
  }
  // Waits until all are there.
  void form() {
    const ControlMessage message = control.receive(Deadline::after(10.0));
    CHECK(message.kind == ControlKind::kGroupFormed);
    formed = GroupFormed::decode(message.payload);
  }
  ErrorCode hears() {
    return fault_of([this] {
             while (true) {
               static_cast<void>(control.receive(Deadline::after(10.0)));
             }
           })
        .code;
  }
};

// A coordinator that answers a join with what `answer` sends. Returns what the member made of it.
Fault with_coordinator(
    const std::function<void(ControlConnection&)>& answer,
    const std::function<void(ProcessGroup&)>& run = [](ProcessGroup&) {}) {
  Listener listener({Address::Kind::kUnix, random_local_name(), 0});
  Fault fault;
  on_threads(2, [&](std::uint32_t which) {
    if (which == 0) {
      fault = fault_of([&] {
        ProcessGroup group(options_of(listener.address().text(), 0, 1, GroupTransport::kAuto, 5.0), {});
        run(group);
      });
      return;
    }
    Stream stream;
    bool exhausted = false;
    while (!stream) {
      pollfd polled{listener.poll_fd(), POLLIN, 0};
      poll_until(std::span(&polled, 1), Deadline::after(5.0));
      stream = listener.accept(exhausted);
    }
    ControlConnection control(std::move(stream));
    CHECK(control.receive(Deadline::after(5.0)).kind == ControlKind::kJoinGroup);
    answer(control);
    fault_of([&] {  // until the member has had enough
      while (true) {
        static_cast<void>(control.receive(Deadline::after(10.0)));
      }
    });
  });
  return fault;
}

// What a coordinator says of a group of one over shared memory.
GroupFormed group_of_one() {
  GroupFormed formed;
  formed.generation = 1;
  formed.timeout_s = 5.0;
  formed.transport = GroupTransport::kShm;
  formed.memory_bytes = 2 * shm_lane_bytes(1);
  formed.members = {{"", 0, ""}};
  return formed;
}

void send_formed(ControlConnection& control, const GroupFormed& formed, std::size_t bytes) {
  const Region memory = Region::shared_memory(bytes, true);
  const int fd = memory.fd();
  control.send(ControlKind::kGroupFormed, formed.encode(), std::span(&fd, 1));
}

}  // namespace

TEST(a_coordinator_that_forms_another_group_than_was_asked_for_is_refused) {
  const std::size_t bytes = 2 * shm_lane_bytes(1);
  const std::vector<std::function<void(ControlConnection&)>> answers = {
      [](ControlConnection& control) { control.send(ControlKind::kGroupFormed); },
      [](ControlConnection& control) { control.send(ControlKind::kWelcome); },
      [](ControlConnection& control) { control.send(ControlKind::kGroupFormed, group_of_one().encode()); },
      [&](ControlConnection& control) { send_formed(control, group_of_one(), bytes - kPageBytes); },
      [&](ControlConnection& control) {
        GroupFormed formed = group_of_one();
        formed.memory_bytes += kPageBytes;
        send_formed(control, formed, formed.memory_bytes);
      },
      [&](ControlConnection& control) {
        GroupFormed formed = group_of_one();
        formed.members.emplace_back();
        send_formed(control, formed, bytes);
      },
      [&](ControlConnection& control) {
        GroupFormed formed = group_of_one();
        formed.transport = GroupTransport::kTcp;
        send_formed(control, formed, bytes);
      },
      [&](ControlConnection& control) {
        GroupFormed formed = group_of_one();
        formed.timeout_s = std::numeric_limits<double>::quiet_NaN();
        send_formed(control, formed, bytes);
      },
  };
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const Fault fault = with_coordinator(answers[i]);
    CHECK_EQUAL(std::to_string(i) + ": " + std::to_string(static_cast<int>(fault.code)),
                std::to_string(i) + ": " + std::to_string(static_cast<int>(ErrorCode::kProtocol)));
  }
}

TEST(a_coordinator_that_orders_what_nobody_announced_ends_the_group) {
  const std::vector<std::function<void(ControlConnection&)>> orders = {
      [](ControlConnection& control) { control.send(ControlKind::kRunNamed, NamedTurn{1, "a"}.encode()); },
      [](ControlConnection& control) { control.send(ControlKind::kRunNamed, NamedTurn{0, "a"}.encode()); },
      [](ControlConnection& control) { control.send(ControlKind::kRunNamed, std::vector<std::byte>(3)); },
      [](ControlConnection& control) { control.send(ControlKind::kWelcome); },
      [](ControlConnection& control) { control.send(ControlKind::kGroupAwaited, std::vector<std::byte>(7)); },
  };
  for (const auto& order : orders) {
    const Fault fault = with_coordinator(
        [&](ControlConnection& control) {
          send_formed(control, group_of_one(), 2 * shm_lane_bytes(1));
          // Until the group is there: it could hear the order before it has lanes.
          CHECK(control.receive(Deadline::after(10.0)).kind == ControlKind::kAnnounce);
          order(control);
        },
        [](ProcessGroup& group) { sum_of(group, 1.0F, "b"); });
    CHECK_EQUAL(std::string(fault.code == ErrorCode::kProtocol ? "" : fault.text), "");
    CHECK(contains(fault.text, "the coordinator of group 'world' at shm://"));
  }
}

TEST(a_member_that_gives_its_coordinator_up_says_so_at_once) {
  ErrorCode heard = ErrorCode::kNone;
  std::atomic<bool> hung_up{false};
  with_coordinator(
      [&](ControlConnection& control) {
        send_formed(control, group_of_one(), 2 * shm_lane_bytes(1));
        CHECK(control.receive(Deadline::after(10.0)).kind == ControlKind::kAnnounce);
        control.send(ControlKind::kWelcome);
        heard = fault_of([&] {
                  while (true) {
                    static_cast<void>(control.receive(Deadline::after(3.0)));
                  }
                }).code;
        hung_up = true;
      },
      [&](ProcessGroup& group) {  // which nobody has closed meanwhile
        CHECK(fault_of([&] { sum_of(group, 1.0F, "b"); }).code == ErrorCode::kProtocol);
        const Deadline deadline = Deadline::after(10.0);
        while (!hung_up && !deadline.expired()) {
          sleep_for(milliseconds{1});
        }
      });
  CHECK(heard == ErrorCode::kPeerClosed);
}

TEST(a_member_that_breaks_the_rules_is_refused_and_the_others_hear_of_its_end) {
  const std::vector<std::function<void(ControlConnection&)>> says = {
      [](ControlConnection& control) { control.send(ControlKind::kAnnounce, encode_name("")); },
      [](ControlConnection& control) {
        control.send(ControlKind::kAnnounce, encode_name(std::string(kMaxGroupNameBytes + 1, 'x')));
      },
      [](ControlConnection& control) { control.send(ControlKind::kAnnounce, encode_name("\xC3(")); },
      [](ControlConnection& control) { control.send(ControlKind::kHello); },
      [](ControlConnection& control) { control.send(ControlKind::kAnnounce, std::vector<std::byte>(1U << 20U)); },
      [](ControlConnection& control) { control.send(ControlKind::kLeaveGroup, std::vector<std::byte>(5)); },
      [](ControlConnection& control) {
        control.send(ControlKind::kJoinOperations);
        control.send(ControlKind::kJoinOperations);
      },
  };
  for (const auto& say : says) {
    CoordinatorServer coordinator(parse_address("shm://"));
    on_threads(2, [&](std::uint32_t which) {
      if (which == 1) {
        RawMember raw(coordinator.address(), 1, 2);
        raw.form();
        fault_of([&] { say(raw.control); });  // it may be refused before it has said all
        CHECK(raw.hears() == ErrorCode::kProtocol);
        return;
      }
      ProcessGroup group(options_of(coordinator.address(), 0, 2), {});
      const Fault fault = fault_of([&] { sum_of(group, 1.0F); });
      CHECK(fault.code == ErrorCode::kPeerClosed);
      CHECK(contains(fault.text, "rank 1 of group 'world' is gone: "));
    });
    coordinator.stop(0.0);
  }
}

TEST(names_are_utf_8_and_no_longer_than_they_may_be) {
  for (const std::string good :
       {"a", "\xC3\xA4", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF", "\xED\x9F\xBF"}) {
    CHECK(is_utf8(good));
    CHECK_EQUAL(decode_name(encode_name(good)), good);
    CHECK(!is_utf8(good + good.substr(0, 1)) || good == "a");
    CHECK_EQUAL(shortened("x" + good, good.size()), "x");
    CHECK_EQUAL(shortened("x" + good, 1 + good.size()), "x" + good);
  }
  const std::vector<std::string> bad = {"\xFF",
                                        "\x80",
                                        "\xC0\x80",
                                        "\xC1\xBF",
                                        "\xE0\x80\x80",
                                        "\xED\xA0\x80",
                                        "\xF0\x80\x80\x80",
                                        "\xF4\x90\x80\x80",
                                        "\xF5\x80\x80\x80",
                                        "\xE2\x82",
                                        std::string(kMaxGroupNameBytes + 1, 'x'),
                                        ""};
  for (const std::string& name : bad) {
    CHECK(fault_of([&] { decode_name(encode_name(name)); }).code == ErrorCode::kProtocol);
    JoinGroup join;
    join.name = name;
    CHECK(fault_of([&] { JoinGroup::decode(join.encode()); }).code == ErrorCode::kProtocol);
  }
}

TEST(strangers_who_say_nothing_keep_no_member_out) {
  CoordinatorServer coordinator(parse_address("tcp://127.0.0.1:0"));
  on_threads(2, [&](std::uint32_t which) {
    if (which == 1) {
      ProcessGroup group(options_of(coordinator.address(), 0, 2, GroupTransport::kTcp), {});
      ProcessGroup::Call call = call_of(OperationKind::kBarrier);
      call.operation.name = "ready";
      CHECK(fault_of([&] { settle(group.begin(std::move(call), {})); }).code == ErrorCode::kPeerClosed);
      return;
    }
    RawMember raw(coordinator.address(), 1, 2);
    raw.form();
    const Joined joined{parse_address(coordinator.address()), nullptr, raw.formed, {}, nullptr};
    const Deadline deadline = Deadline::after(10.0);
    std::vector<Stream> silent;
    for (int i = 0; i < 200; ++i) {
      silent.push_back(Stream::connect(address_of(joined, 0), deadline, {}));
    }
    const Clock::time_point began = now();
    const Stream ordered = connect_to_member(joined, 1, 0, MemberStream::kOrdered, deadline, {});
    const Stream named = connect_to_member(joined, 1, 0, MemberStream::kNamed, deadline, {});
    raw.control.send(ControlKind::kAnnounce, encode_name("ready"));
    CHECK(raw.control.receive(Deadline::after(10.0)).kind == ControlKind::kRunNamed);
    CHECK(now() - began < std::chrono::seconds(5));  // before the silent ones would have been closed
  });
}

TEST(a_silent_member_is_given_up_after_its_timeout_and_named) {
  CoordinatorServer coordinator(parse_address("shm://"));
  on_threads(2, [&](std::uint32_t which) {
    if (which == 1) {
      RawMember raw(coordinator.address(), 1, 2);
      raw.form();
      CHECK(raw.hears() == ErrorCode::kDeadlineExceeded);  // it says nothing more
      return;
    }
    ProcessGroup group(options_of(coordinator.address(), 0, 2), {});
    const Fault fault = fault_of([&] { sum_of(group, 1.0F); });
    CHECK(fault.code == ErrorCode::kPeerClosed);
    CHECK(contains(fault.text, "rank 1 of group 'world' is gone: it was silent for 5 s"));
  });
}

TEST(strangers_at_a_members_port_are_closed_and_the_mesh_is_made) {
  CoordinatorServer coordinator(parse_address("tcp://127.0.0.1:0"));
  on_threads(2, [&](std::uint32_t which) {
    if (which == 0) {
      RawMember raw(coordinator.address(), 1, 2);
      raw.form();
      const Joined joined{parse_address(coordinator.address()), nullptr, raw.formed, {}, nullptr};
      const auto connect = [&](const GroupFormed& as, std::uint32_t from, std::uint32_t to, MemberStream stream) {
        Joined other{joined.coordinator, nullptr, as, {}, nullptr};
        other.formed.members.resize(8, as.members[0]);
        other.formed.members[to].port = raw.formed.members[0].port;
        return connect_to_member(other, from, to, stream, Deadline::after(5.0), {});
      };
      GroupFormed wrong_secret = raw.formed;
      wrong_secret.secret[0] ^= 1U;
      GroupFormed old = raw.formed;
      --old.generation;
      std::vector<Stream> strangers;
      strangers.push_back(connect(wrong_secret, 1, 0, MemberStream::kOrdered));
      strangers.push_back(connect(old, 1, 0, MemberStream::kOrdered));
      strangers.push_back(connect(raw.formed, 7, 0, MemberStream::kOrdered));
      strangers.push_back(connect(raw.formed, 0, 0, MemberStream::kOrdered));
      strangers.push_back(connect(raw.formed, 1, 2, MemberStream::kOrdered));
      strangers.push_back(connect(raw.formed, 1, 0, static_cast<MemberStream>(9)));
      const Deadline deadline = Deadline::after(5.0);
      for (Stream& stranger : strangers) {
        std::array<std::byte, 1> byte{};
        CHECK(fault_of([&] { stranger.receive_all(byte, &deadline); }).code == ErrorCode::kPeerClosed);
      }
      const Stream ordered = connect(raw.formed, 1, 0, MemberStream::kOrdered);
      const Stream named = connect(raw.formed, 1, 0, MemberStream::kNamed);
      raw.control.send(ControlKind::kAnnounce, encode_name("ready"));
      CHECK(raw.control.receive(Deadline::after(10.0)).kind == ControlKind::kRunNamed);
      return;
    }
    ProcessGroup group(options_of(coordinator.address(), 0, 2, GroupTransport::kTcp), {});
    ProcessGroup::Call call = call_of(OperationKind::kBarrier);
    call.operation.name = "ready";
    CHECK(fault_of([&] { settle(group.begin(std::move(call), {})); }).code == ErrorCode::kPeerClosed);
  });
}

TEST(a_peer_that_sends_what_was_not_asked_for_ends_the_group) {
  const std::vector<MessageFrame> frames = [] {
    std::vector<MessageFrame> all(5);
    all[0].kind = static_cast<MessageFrame::Kind>(9);
    all[1].kind = MessageFrame::Kind::kData;  // of nothing that was accepted
    all[1].bytes = 8;
    all[2].kind = MessageFrame::Kind::kAccept;  // of nothing that was offered
    all[2].id = 3;
    all[3].kind = MessageFrame::Kind::kOffer;  // of an unknown dtype
    all[3].id = 1;
    all[3].dtype = 99;
    all[4].kind = MessageFrame::Kind::kRefuse;
    all[4].bytes = std::uint64_t{1} << 40U;
    return all;
  }();
  for (const MessageFrame& frame : frames) {
    CoordinatorServer coordinator(parse_address("shm://"));
    on_threads(2, [&](std::uint32_t which) {
      if (which == 1) {
        RawMember raw(coordinator.address(), 1, 2);
        raw.form();
        const Joined joined{parse_address(coordinator.address()), nullptr, raw.formed, {}, nullptr};
        Stream stream = connect_to_member(joined, 1, 0, MemberStream::kMessages, Deadline::after(5.0), {});
        const Deadline deadline = Deadline::after(5.0);
        stream.send_all({reinterpret_cast<const std::byte*>(&frame), sizeof frame}, &deadline);
        static_cast<void>(raw.hears());
        return;
      }
      ProcessGroup group(options_of(coordinator.address(), 0, 2), {});
      ProcessGroup::Call call = call_of(OperationKind::kReceive);
      call.operation.root = 1;
      const Fault fault = fault_of([&] { settle(group.begin(std::move(call), {})); });
      CHECK(fault.code == ErrorCode::kProtocol);
      CHECK(contains(fault.text, "rank 1 of the group: "));
    });
  }
}
