// The control connection: whose turn it is to send, and how often a client may ask. All of it in virtual time.
#include <array>

#include <sys/socket.h>

#include "base/simulation.h"
#include "base/threads.h"
#include "check.h"
#include "served_case.h"

namespace {

using namespace served;
using namespace std::chrono_literals;

// Two ends of a control connection; what one of them sends is read by nobody unless a test does.
struct Ends {
  Ends() : Ends(connected()) {}
  explicit Ends(std::array<int, 2> ends)
      : writer(Stream(FileDescriptor(ends[0]))), reader(Stream(FileDescriptor(ends[1]))) {}
  static std::array<int, 2> connected() {
    std::array<int, 2> ends{};
    CHECK_EQUAL(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()), 0);
    return ends;
  }
  ControlConnection writer;
  ControlConnection reader;
};

const std::vector<std::byte> kMore(1U << 20U);  // than a socket holds

double seconds_of(const std::function<void()>& call) {
  const Clock::time_point begun = now();
  call();
  return std::chrono::duration<double>(now() - begun).count();
}

ErrorCode send_until(ControlConnection& control, double seconds, std::span<const std::byte> payload = {}) {
  return code_of([&] { control.send(ControlKind::kNotice, payload, {}, Deadline::after(seconds)); });
}

// A worker that gathers, and then asks on and on and reads no answer.
class Deaf {
 public:
  Deaf(const std::string& address, std::uint32_t rank)
      : control_(Stream::connect(parse_addresses(address).front(), Deadline::after(10), {})) {
    Hello hello;
    hello.id = {1, 2};
    hello.role = Role::kWorker;
    hello.transport = TransportKind::kShm;
    hello.rank = rank;
    control_.send(ControlKind::kHello, hello.encode());
    CHECK(control_.receive(Deadline::after(10)).kind == ControlKind::kWelcome);
    control_.send(ControlKind::kGather, GatherAsk{1, GatherKind::kBarrier}.encode());
    for (int i = 0; i < 300; ++i) {  // their answers are more than a socket holds
      control_.send(ControlKind::kStats);
    }
  }

 private:
  ControlConnection control_;
};

}  // namespace

TEST(a_message_waits_for_its_turn_until_its_deadline_and_then_nothing_of_it_has_left) {
  Simulation(1).run([] {
    Ends ends;
    Thread piece("sends a piece", [&] { CHECK(send_until(ends.writer, 30.0, kMore) == ErrorCode::kNone); });
    sleep_for(1s);
    const double took_s = seconds_of([&] { CHECK(send_until(ends.writer, 0.5) == ErrorCode::kDeadlineExceeded); });
    CHECK(0.5 <= took_s && took_s < 0.6);
    Thread own("sends for the session", [&] { ends.writer.send(ControlKind::kProgress); });
    sleep_for(15s);  // longer than a message may take that has its turn
    const ControlMessage first = ends.reader.receive(Deadline::after(10), {}, kMaxManifestBytes);
    CHECK(first.kind == ControlKind::kNotice && first.payload.size() == kMore.size());
    CHECK(ends.reader.receive(Deadline::after(10)).kind == ControlKind::kProgress);
    piece.join();
    own.join();
  });
}

TEST(nothing_follows_half_a_message) {
  Simulation(1).run([] {
    Ends ends;
    CHECK(send_until(ends.writer, 0.5, kMore) == ErrorCode::kDeadlineExceeded);
    CHECK(send_until(ends.writer, 0.5) == ErrorCode::kPeerClosed);
    CHECK(code_of([&] { ends.reader.receive(Deadline::after(10), {}, kMaxManifestBytes); }) == ErrorCode::kPeerClosed);
  });
}

TEST(a_rank_that_reads_no_verdict_keeps_no_other_session_waiting) {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    Simulation(seed).run([] {
      Served server({.workers = 2});
      Worker worker(server.address(), 0, shm());
      const Deaf deaf(server.address(), 1);
      sleep_for(4s);  // the server has an answer under way that nobody reads
      worker.client().arrive(GatherKind::kBarrier, 30.0, {});
      CHECK(worker.client().wait_for_others(30.0, {}));
      CHECK(seconds_of([&] { worker.client().stats({}); }) < 0.6);
      worker.client().close({});
      server.stop();
    });
  }
}

TEST(learning_rates_that_no_push_parts_are_questions) {
  Simulation(1).run([] {
    Served server({});
    Worker worker(server.address(), 0, shm());
    const auto set_often = [&](bool pushes) {
      return seconds_of([&] {
        for (int i = 0; i < 256 + 2 * 64; ++i) {
          worker.client().set_learning_rate(0.5, {});
          if (pushes) {
            worker.call(Client::Call::kPush, 1.0F);
          }
        }
      });
    };
    CHECK(set_often(true) < 1.0);
    CHECK(set_often(false) > 1.5);
    worker.client().close({});
    server.stop();
  });
}
