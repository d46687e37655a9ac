// Cuts of a store while others update it, and going on from one.
#include <algorithm>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "random_floats.h"
#include "server/accept_gate.h"
#include "store_case.h"

namespace {

using namespace distnet;

constexpr const char* kGuards[] = {"mutex", "lock-free"};
constexpr std::uint64_t kChunk = kStoreChunkFloats;
constexpr std::size_t kSize = 5 * kChunk + 48;

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kUpdates = 150;
#else
constexpr int kUpdates = 1500;  // three times as many have an exact sum in float32
#endif

// After n updates with a gradient of -1 the velocity is -n, and every parameter is 1 + 2 + ... + n.
UpdateRuleSpec counting_rule() {
  UpdateRuleSpec spec = adding_rule();
  spec.optimizer = {"momentum", {{"momentum", 1.0}}};
  spec.ema_decay = 0.9;
  return spec;
}

// All vectors of a cut, each whole.
std::vector<std::vector<float>> read_whole(Store& store) {
  std::vector<std::vector<float>> vectors(store.cut_vectors());
  std::vector<float> piece(store.cut_vectors() * store.cut_chunk_floats(0));
  for (std::size_t chunk = 0; chunk < store.cut_chunks(); ++chunk) {
    store.read_cut(chunk, piece.data());
    const auto count = static_cast<std::ptrdiff_t>(store.cut_chunk_floats(chunk));
    for (std::size_t vector = 0; vector < vectors.size(); ++vector) {
      const auto from = piece.begin() + static_cast<std::ptrdiff_t>(vector) * count;
      vectors[vector].insert(vectors[vector].end(), from, from + count);
    }
  }
  return vectors;
}

std::uint64_t cut_at(AcceptGate& gate, Store& store) {
  store.reserve_cut();
  AcceptGate::Closed closed(gate);
  CHECK(closed.wait_until_empty(Deadline::after(60.0)));
  return store.begin_cut();
}

void push(AcceptGate& gate, Store& store, std::span<const float> gradient) {
  const GradientView term = GradientView::dense(gradient.data(), gradient.size());
  Update update;
  update.gradient.terms = {&term, 1};
  gate.pass();
  store.submit(update);
  update.wait_finished();
  gate.leave();
}

bool all_are(const std::vector<float>& values, float expected) {
  return std::ranges::all_of(values, [&](float value) { return value == expected; });
}

}  // namespace

TEST(all_chunks_of_a_cut_have_had_the_same_updates) {
  for (const char* guard : kGuards) {
    Memory memory;
    const auto store = make_store(guard, counting_rule(), std::vector<float>(kSize, 0.0F), memory);
    const std::uint64_t held = memory.held_bytes();
    AcceptGate gate;
    std::atomic<int> pushers{3};
    std::atomic<int> cuts{0};
    run_together(4, [&](int index) {
      if (index != 0) {
        const std::vector<float> gradient(kSize, -1.0F);
        for (int update = 0; update < kUpdates; ++update) {
          push(gate, *store, gradient);
        }
        pushers.fetch_sub(1);
        return;
      }
      do {
        const auto version = static_cast<float>(cut_at(gate, *store));
        if (cuts.fetch_add(1) % 4 != 3) {  // some are given up unread
          const std::vector<std::vector<float>> vectors = read_whole(*store);
          CHECK(all_are(vectors[0], version * (version + 1) / 2));
          CHECK(all_are(vectors[1], vectors[1].front()));
          CHECK(all_are(vectors[2], -version));
        }
        store->end_cut();
      } while (pushers.load() > 0);
    });
    CHECK(cuts.load() > 3);
    CHECK_EQUAL(store->version(), 3U * kUpdates);
    CHECK(memory.held_bytes() <= held + 4 * kSize * sizeof(float));  // but for versions that a cut pinned once
  }
}

TEST(a_cut_stays_as_it_was_while_updates_go_on) {
  for (const char* guard : kGuards) {
    const auto store = make_test_store(guard, counting_rule(), std::vector<float>(kSize, 0.0F));
    const std::vector<float> gradient(kSize, -1.0F);
    AcceptGate gate;
    for (int update = 0; update < 3; ++update) {
      push(gate, *store, gradient);
    }
    CHECK_EQUAL(cut_at(gate, *store), 3U);
    std::vector<float> first(store->cut_vectors() * kChunk);
    store->read_cut(0, first.data());  // itself; the others are copied by the updates
    for (int update = 0; update < 5; ++update) {
      push(gate, *store, gradient);
    }
    std::vector<float> second(store->cut_vectors() * kChunk);
    store->read_cut(1, second.data());
    CHECK(first == second);
    CHECK_EQUAL(first.front(), 6.0F);
    store->end_cut();
    std::vector<float> now(kSize);
    CHECK_EQUAL(store->read(now), 8U);
    CHECK(all_are(now, 36.0F));
  }
}

TEST(a_cut_takes_no_more_memory_than_what_is_updated_in_place) {
  for (const char* guard : kGuards) {
    for (const bool stateless : {true, false}) {
      Memory memory;
      const auto store =
          make_store(guard, stateless ? adding_rule() : counting_rule(), std::vector<float>(kSize, 0.0F), memory);
      const std::uint64_t before = memory.held_bytes();
      store->reserve_cut();
      const bool in_place = std::string_view(guard) == "lock-free";
      const std::uint64_t copied = (stateless ? 0U : 1U) + (in_place ? (stateless ? 1U : 2U) : 0U);
      CHECK_EQUAL(memory.held_bytes() - before, copied * kSize * sizeof(float));
      store->end_cut();
      CHECK_EQUAL(memory.held_bytes(), before);
    }
  }
}

TEST(the_next_update_after_a_cut_is_put_back_is_the_one_that_would_have_come) {
  const OptimizerSpec optimizers[] = {{"sgd", {}},     {"momentum", {{"nesterov", 1.0}}},
                                      {"adagrad", {}}, {"rmsprop", {{"momentum", 0.5}}},
                                      {"adam", {}},    {"adamw", {}}};
  for (const char* guard : kGuards) {
    for (const OptimizerSpec& optimizer : optimizers) {
      UpdateRuleSpec spec;
      spec.optimizer = optimizer;
      spec.schedule = {.kind = ScheduleSpec::Kind::kCosine,
                       .learning_rate = 0.1,
                       .period_updates = 9.0,
                       .final_learning_rate = 0.01};
      spec.ema_decay = 0.9;
      const auto whole = make_test_store(guard, spec, random_floats(kSize, 1));
      AcceptGate gate;
      for (unsigned update = 0; update < 4; ++update) {
        whole->apply(random_floats(kSize, 2 + update));
      }
      const std::uint64_t version = cut_at(gate, *whole);
      std::vector<std::vector<float>> vectors = read_whole(*whole);
      whole->end_cut();
      const auto again = make_test_store(guard, spec, vectors[0]);
      again->start_from({vectors[1], std::span(vectors).subspan(2), version});
      for (unsigned update = 4; update < 8; ++update) {
        whole->apply(random_floats(kSize, 2 + update));
        again->apply(random_floats(kSize, 2 + update));
      }
      CHECK_EQUAL(again->version(), whole->version());
      CHECK_EQUAL(cut_at(gate, *whole), 8U);
      CHECK_EQUAL(cut_at(gate, *again), 8U);
      CHECK(read_whole(*whole) == read_whole(*again));
      whole->end_cut();
      again->end_cut();
    }
  }
}

TEST(what_is_put_back_has_the_shape_of_the_store) {
  const auto store = make_test_store("mutex", counting_rule(), std::vector<float>(kSize, 0.0F));
  const std::vector<std::vector<float>> none, one{std::vector<float>(kSize)}, small{std::vector<float>(kSize - 1)};
  CHECK_THROWS(store->start_from({{}, none, 1}), Error);
  CHECK_THROWS(store->start_from({{}, small, 1}), Error);
  CHECK_THROWS(store->start_from({small.front(), one, 1}), Error);
  store->start_from({{}, one, 1});
  CHECK_EQUAL(store->version(), 1U);
}

TEST(who_comes_to_a_closed_gate_waits_and_who_is_inside_is_waited_for) {
  AcceptGate gate;
  gate.pass();
  std::atomic<bool> passed{false};
  std::thread late;
  {
    AcceptGate::Closed closed(gate);
    CHECK(!gate.try_pass());
    late = std::thread([&] {
      gate.pass();
      passed.store(true);
      gate.leave();
    });
    CHECK(!closed.wait_until_empty(Deadline::after(0.01)));
    gate.leave();
    CHECK(closed.wait_until_empty(Deadline::after(60.0)));
    CHECK(!passed.load());
  }
  late.join();
  CHECK(passed.load());
  CHECK(gate.try_pass());
  gate.leave();
}
