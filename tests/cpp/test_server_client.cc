// Both ends in one process, over both transports: what they promise each other, and what a peer that breaks the rules
// cannot do.
#include <atomic>
#include <limits>
#include <thread>

#include <poll.h>

#include "base/platform.h"
#include "base/random.h"
#include "base/waiting.h"
#include "check.h"
#include "served_case.h"
#include "transport/listener.h"
#include "transport/shm/shm_channel.h"

namespace {

using namespace served;
using Call = Client::Call;

struct Wire {
  const char* address;
  const Transport& choice;
};
const Wire kWires[] = {{"shm://", shm()}, {"tcp://127.0.0.1:0", tcp()}};

// A control connection that has said hello; the messages of a session that breaks the rules go through it.
struct Stranger {
  explicit Stranger(const std::string& address)
      : control(Stream::connect(parse_addresses(address).front(), Deadline::after(10), {})) {}
  Welcome hello(Role role, TransportKind transport, std::uint32_t rank = 0, ClientId id = {1, random_number()}) {
    Hello message;
    message.id = id;
    message.role = role;
    message.transport = transport;
    message.rank = rank;
    control.send(ControlKind::kHello, message.encode());
    return Welcome::decode(control.receive(Deadline::after(10)).payload);
  }
  // The data connection of a TCP session.
  Stream attach(const std::string& address, const Welcome& welcome) {
    ControlConnection data(Stream::connect(parse_addresses(address).front(), Deadline::after(10), {}));
    data.send(ControlKind::kAttach, Attach{welcome.session, welcome.secret}.encode());
    CHECK(heard() == ControlKind::kAttached);
    return data.give_stream();
  }
  // What the server says next, warnings of a rank's other sessions aside.
  ControlKind heard() {
    ControlKind kind = ControlKind::kNotice;
    while (kind == ControlKind::kNotice) {
      kind = control.receive(Deadline::after(10)).kind;
    }
    return kind;
  }
  // How the server ends the conversation.
  ErrorCode end() {
    return code_of([this] {
      while (true) {
        control.receive(Deadline::after(10));
      }
    });
  }
  ControlConnection control;
};

std::vector<std::byte> index_of(std::uint32_t index) {
  Writer writer;
  writer.number(index);
  return writer.take();
}

}  // namespace

TEST(every_kind_of_call_follows_every_other_on_every_wire) {
  for (const Wire& wire : kWires) {
    for (const char* const semantics : {"async-apply", "async-locked", "async-lockfree", "sync"}) {
      for (const std::uint32_t shards : {1U, 2U}) {
        Served server({.semantics = semantics, .shards = shards, .floats = 40'000, .address = wire.address});
        Worker worker(server.address(), 0, wire.choice);
        const float nan = std::numeric_limits<float>::quiet_NaN();
        worker.call(Call::kPushPull, 1.0F);
        CHECK_EQUAL(worker.call(Call::kPullSettled), -1.0F);
        worker.call(Call::kPush, 1.0F);
        CHECK(code_of([&] { worker.begin(Call::kPushPull, nan); }) == ErrorCode::kNonFiniteGradient);
        CHECK_EQUAL(worker.call(Call::kPullSettled), -2.0F);
        CHECK(code_of([&] { worker.begin(Call::kPush, nan); }) == ErrorCode::kNonFiniteGradient);
        worker.call(Call::kPushPull, 1.0F);
        CHECK_EQUAL(worker.call(Call::kPullSettled), -3.0F);
        CHECK_EQUAL(worker.client().accepted(), 5U);
        CHECK_EQUAL(worker.client().applied(), 5U);
        worker.client().close({});
        server.stop();
      }
    }
  }
}

TEST(many_workers_lose_no_push_while_others_come_and_go) {
  constexpr int kWorkers = 4;
  constexpr int kSteps = 40;
  for (const Wire& wire : kWires) {
    for (const char* const semantics : {"async-apply", "async-locked", "async-lockfree", "sync"}) {
      Served server(
          {.semantics = semantics, .workers = kWorkers, .shards = 2, .floats = 20'000, .address = wire.address});
      std::vector<std::thread> threads;
      std::atomic<int> failed{0};
      for (std::uint32_t rank = 0; rank < kWorkers; ++rank) {
        threads.emplace_back([&, rank] {
          try {
            Worker worker(server.address(), rank, wire.choice);
            for (int step = 0; step < kSteps; ++step) {
              worker.call(step % 3 == 0 ? Call::kPush : Call::kPushPull, 1.0F);
              if (step % 10 == 0) {
                Worker(server.address(), std::nullopt, wire.choice).call(Call::kPull);
              }
            }
            worker.client().close({});
          } catch (const std::exception& error) {
            std::printf("      %s\n", error.what());
            ++failed;
          }
        });
      }
      for (std::thread& thread : threads) {
        thread.join();
      }
      CHECK_EQUAL(failed.load(), 0);
      const bool sync = std::string(semantics) == "sync";
      CHECK_EQUAL(Worker(server.address(), std::nullopt, wire.choice).call(Call::kPullSettled),
                  -static_cast<float>(sync ? kSteps : kSteps * kWorkers));
      server.stop();
    }
  }
}

TEST(a_client_that_asks_for_a_buffer_that_is_none_ends_only_its_own_session) {
  for (const Wire& wire : kWires) {
    for (const char* const semantics : {"async-apply", "async-lockfree"}) {
      Served server({.semantics = semantics, .address = wire.address});
      Stranger stranger(server.address());
      if (!wire.choice.within_host) {
        const Welcome welcome = stranger.hello(Role::kWorker, TransportKind::kTcp);
        const Stream data = stranger.attach(server.address(), welcome);
        stranger.control.send(ControlKind::kBuffer, index_of(0));
        CHECK(stranger.end() == ErrorCode::kProtocol);
      } else {
        stranger.hello(Role::kWorker, TransportKind::kShm);
        stranger.control.send(ControlKind::kBuffer, index_of(99));
        CHECK(stranger.end() == ErrorCode::kProtocol);
      }
      Worker(server.address(), 0, wire.choice).call(Call::kPushPull, 1.0F);
    }
  }
}

TEST(a_stranger_cannot_pass_for_a_shard_and_end_the_rounds) {
  for (const std::uint32_t shards : {1U, 2U}) {
    Served server({.semantics = "sync", .shards = shards, .address = "tcp://127.0.0.1:0"});
    Worker worker(server.address(), 0, shm());
    worker.call(Call::kPushPull, 1.0F);
    {
      Stranger stranger(server.address());
      stranger.control.send(ControlKind::kFollow, Follow{1, {4, 3}}.encode());
      CHECK(stranger.end() == ErrorCode::kUnauthorized);
    }
    CHECK_EQUAL(worker.call(Call::kPushPull, 1.0F), -2.0F);
  }
}

TEST(a_client_that_never_reads_its_replies_holds_little_and_does_not_keep_the_server_from_stopping) {
  for (const std::uint64_t floats : {1'000ULL, 1'000'000ULL}) {
    Served server({.semantics = "async-apply", .floats = floats, .address = "tcp://127.0.0.1:0"});
    Stranger stranger(server.address());
    const Welcome welcome = stranger.hello(Role::kWorker, TransportKind::kTcp);
    Stream data = stranger.attach(server.address(), welcome);
    RequestHeader pull;
    pull.flags = kWantParameters;
    // Until the server takes no more: its buffers and ours are full of what nobody reads.
    const auto stalled = [&data] {
      const Deadline deadline = Deadline::after(0.5);
      return !data.wait(POLLOUT, &deadline, {});
    };
    std::uint64_t requests = 0;
    while (requests < 1'000'000 && !stalled()) {
      std::vector<RequestHeader> several(4096, pull);
      const Deadline deadline = Deadline::after(0.5);
      if (code_of([&] { data.send_all(std::as_bytes(std::span(several)), &deadline); }) != ErrorCode::kNone) {
        break;
      }
      requests += several.size();
    }
    CHECK(requests < 1'000'000);
    // Versions move on: were each pull answered into a queue, each would hold one of them.
    Worker worker(server.address(), 1, tcp());
    for (int i = 0; i < 5; ++i) {
      worker.call(Call::kPushPull, 1.0F);
    }
    CHECK_EQUAL(worker.call(Call::kPull), -5.0F);
    server.stop();
  }
}

TEST(a_client_that_pulls_without_end_does_not_keep_the_server_from_stopping) {
  for (const Wire& wire : kWires) {
    Served server({.address = wire.address});
    std::atomic<bool> pulled{false};
    std::thread pulling([&] {
      code_of([&] {
        Worker worker(server.address(), 0, wire.choice);
        while (true) {
          worker.call(Call::kPull);
          pulled = true;
        }
      });
    });
    while (!pulled) {
      std::this_thread::yield();
    }
    server.stop();
    pulling.join();
  }
}

TEST(a_stop_in_the_middle_of_a_round_hangs_nobody) {
  for (const Wire& wire : kWires) {
    for (const std::uint32_t shards : {1U, 3U}) {
      Served server({.semantics = "sync", .workers = 2, .shards = shards, .address = wire.address});
      Worker absent(server.address(), 1, wire.choice);
      Worker waiting(server.address(), 0, wire.choice);
      const std::uint64_t number = waiting.begin(Call::kPushPull, 1.0F);
      server.stop();
      const ErrorCode code = code_of([&] { waiting.finish(number); });
      CHECK(code == ErrorCode::kRoundAborted || code == ErrorCode::kPeerClosed);
    }
  }
}

TEST(a_lost_worker_aborts_the_rounds_of_all_shards) {
  Served server({.semantics = "sync", .workers = 2, .shards = 3, .on_loss = OnLoss::kAbort});
  Worker waiting(server.address(), 0, shm());
  const std::uint64_t number = waiting.begin(Call::kPushPull, 1.0F);
  {
    Worker lost(server.address(), 1, shm());
    lost.client().abandon();
  }
  CHECK(code_of([&] { waiting.finish(number); }) == ErrorCode::kRoundAborted);
}

TEST(a_shard_that_joins_when_the_rounds_are_over_learns_of_it) {
  for (const std::size_t aborting : {0U, 1U}) {
    Served server({.semantics = "sync", .workers = 2, .shards = 2, .started = false});
    server.shard(aborting).shard().rounds()->end_all("a test");  // before the two know each other
    server.shard(0).start();
    server.shard(1).start();
    Worker worker(server.address(), 0, shm());
    CHECK(code_of([&] { worker.call(Call::kPushPull, 1.0F); }) == ErrorCode::kRoundAborted);
  }
}

TEST(a_worker_that_closes_in_order_aborts_nothing_and_is_counted_when_close_returns) {
  for (int repetition = 0; repetition < 20; ++repetition) {
    Served server({.semantics = "sync", .workers = 2, .shards = 2, .on_loss = OnLoss::kAbort});
    Worker stays(server.address(), 0, shm());
    Worker leaves(server.address(), 1, shm());
    const std::uint64_t first = stays.begin(Call::kPushPull, 1.0F);
    leaves.call(Call::kPushPull, 1.0F);
    stays.finish(first);
    leaves.client().close({});
    CHECK(server.shard(0).stats_json().find("\"workers_done\": 1") != std::string::npos);
    CHECK_EQUAL(stays.call(Call::kPushPull, 1.0F), -2.0F);
  }
}

TEST(a_worker_that_dies_between_two_steps_is_replaced_and_nobody_hangs) {
  Served server({.semantics = "sync", .workers = 2, .shards = 2});
  std::atomic<bool> over{false};
  std::thread steady([&] {
    Worker worker(server.address(), 0, shm());
    while (!over) {
      const ErrorCode code = code_of([&] { worker.call(Call::kPushPull, 1.0F); });
      CHECK(code == ErrorCode::kNone || code == ErrorCode::kRoundAborted);
    }
    worker.client().close({});
  });
  for (int life = 0; life < 10; ++life) {
    // The server may not have noticed the end of the last one, which the newcomer replaces.
    const auto worker = std::make_unique<Worker>(server.address(), 1, shm());
    for (int step = 0; step < 3; ++step) {
      code_of([&] { worker->call(Call::kPushPull, 1.0F); });
    }
    code_of([&] { worker->begin(Call::kPushPull, 1.0F); });
    worker->client().abandon();  // with a push on its way
  }
  over = true;
  steady.join();
}

TEST(strangers_that_say_nothing_or_nonsense_do_not_disturb_a_worker) {
  for (const Wire& wire : kWires) {
    Served server({.address = wire.address});
    std::vector<std::unique_ptr<Stranger>> silent;
    for (int i = 0; i < 50; ++i) {
      silent.push_back(std::make_unique<Stranger>(server.address()));
    }
    Stranger foreign(server.address());
    const std::string http = "GET / HTTP/1.1\r\n\r\n";
    foreign.control.stream().send_all(std::as_bytes(std::span(http)));
    CHECK(foreign.end() == ErrorCode::kProtocol);
    Worker worker(server.address(), 0, wire.choice);
    CHECK_EQUAL(worker.call(Call::kPushPull, 1.0F), -1.0F);
    server.stop();
  }
}

TEST(a_shared_memory_client_that_writes_nonsense_ends_only_its_own_session) {
  Served server({});
  for (const std::uint32_t announced : {1U, 33U, 0xFFFFFFFFU}) {
    Stranger stranger(server.address());
    Hello hello;
    hello.id = {1, random_number()};
    stranger.control.send(ControlKind::kHello, hello.encode());
    ControlMessage message = stranger.control.receive(Deadline::after(10));
    CHECK_EQUAL(message.fds.size(), 3U);
    CHECK(stranger.heard() == ControlKind::kAttached);
    const Region block = Region::map(message.fds[0].release(), (sizeof(ShmControl) + 4095) / 4096 * 4096, true);
    auto* const control = block.as<ShmControl>();
    control->requests[0].kind = static_cast<RequestKind>(77);
    control->requests[0].push = 1ULL << 63U;
    control->requests[0].payload_bytes = announced == 1 ? 4000 : 0;
    control->request_count.store(announced);
    stranger.control.send(ControlKind::kWake);
    CHECK(stranger.end() == ErrorCode::kProtocol);
  }
  CHECK_EQUAL(Worker(server.address(), 0, shm()).call(Call::kPushPull, 1.0F), -1.0F);
}

TEST(a_client_waits_where_many_stand_at_the_door) {
  Listener listener(parse_address("shm://door-" + std::to_string(random_number())));
  std::vector<Stream> inside;
  std::vector<Stream> waiting;
  const auto knock = [&](double seconds) {
    return code_of([&] { waiting.push_back(Stream::connect(listener.address(), Deadline::after(seconds), {})); });
  };
  while (knock(0.0) == ErrorCode::kNone) {
    CHECK(waiting.size() < 100'000);  // nobody opens: the queue fills
  }
  std::thread opening([&] {
    bool exhausted = false;
    inside.push_back(listener.accept(exhausted));
  });
  CHECK(knock(30.0) == ErrorCode::kNone);
  opening.join();
  CHECK(knock(0.0) == ErrorCode::kDeadlineExceeded);
}

TEST(a_client_that_comes_back_goes_on_with_its_numbers) {
  Served server(
      {.semantics = "async-lockfree", .floats = 1024, .address = "tcp://127.0.0.1:0", .reconnect_timeout_s = 10.0});
  const ClientId id{7, random_number()};
  const std::vector<float> gradient(1024, 1.0F);
  std::uint64_t pushes = 0;
  std::uint32_t incarnation = 0;
  for (int life = 0; life < 3; ++life) {
    Stranger client(server.address());
    const Welcome welcome = client.hello(Role::kWorker, TransportKind::kTcp, 0, id);
    CHECK(life == 0 || welcome.grant.incarnation == incarnation);  // the same session, never a newer one
    incarnation = welcome.grant.incarnation;
    Stream data = client.attach(server.address(), welcome);
    for (int push = 0; push < 5; ++push) {
      RequestHeader request;
      request.kind = RequestKind::kGradient;
      request.number = static_cast<std::uint64_t>(push) + 1;
      request.push = ++pushes;
      request.payload_bytes = gradient.size() * sizeof(float);
      request.incarnation = incarnation;
      constexpr std::uint64_t kCounts = 0;
      const Deadline deadline = Deadline::after(10);
      data.send_all(std::as_bytes(std::span(&request, 1)), &deadline);
      data.send_all(std::as_bytes(std::span(gradient)), &deadline);
      data.send_all(std::as_bytes(std::span(&kCounts, 1)), &deadline);
      ReplyHeader reply;
      data.receive_all(std::as_writable_bytes(std::span(&reply, 1)), &deadline);
      CHECK_EQUAL(reply.accepted, pushes);
    }
  }
  CHECK_EQUAL(Worker(server.address(), std::nullopt, tcp()).call(Call::kPullSettled), -15.0F);
}

TEST(a_share_of_the_model_from_a_client_that_was_given_up_does_not_replace_a_newer_one) {
  ShardSettings settings;
  settings.shard = 1;
  settings.shards = 2;
  settings.job_secret = {4, 2};
  ShardServer server(settings, parse_address("shm://"));
  server.start();
  const Manifest manifest = make_manifest(false, {{"0", {4096}}});
  const ShardRange range = shard_range(manifest, 1, 2);
  const std::vector<float> values(range.size(), 1.0F);
  const auto bring = [&](std::uint64_t model) {
    Stranger client(server.address());
    const ClientId id{1, model};
    client.control.send(ControlKind::kBring, Bring{id, {model, prove(settings.job_secret, id, model)}}.encode());
    return code_of([&] {
      CHECK(client.control.receive(Deadline::after(10)).kind == ControlKind::kNeedParameters);
      client.control.send(ControlKind::kInitial, Initial{manifest, range}.encode());
      const Deadline deadline = Deadline::after(10);
      client.control.stream().send_all(std::as_bytes(std::span(values)), &deadline);
      CHECK(client.control.receive(Deadline::after(10)).kind == ControlKind::kReceived);
    });
  };
  CHECK(bring(1) == ErrorCode::kNone);
  CHECK(bring(3) == ErrorCode::kNone);
  CHECK(bring(1) == ErrorCode::kConfig);
}
