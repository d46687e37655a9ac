// Gradients that are applied while they arrive, and what becomes of those that never do in full.
#include <condition_variable>
#include <mutex>

#include "check.h"
#include "kernels/kernels.h"
#include "store_case.h"

namespace {

using namespace distnet;
using State = Arrival::State;

constexpr std::size_t kSize = 50'000;  // a few pieces, the last one short

// Lets the first elements through, then says `then` of the others until told that they are here.
class Gate final : public Arrival {
 public:
  Gate(std::uint64_t open, State then) : open_(open), then_(then) {}

  State wait(std::uint64_t floats, std::chrono::microseconds patience) override {
    std::unique_lock lock(mutex_);
    ++looks;
    if (floats <= open_) {
      return State::kHere;
    }
    if (then_ != State::kLate) {
      return then_;
    }
    if (patience < kAnyPatience) {
      return State::kLate;
    }
    changed_.wait(lock, [&] { return floats <= open_; });
    return State::kHere;
  }
  void open_all() {
    const std::lock_guard lock(mutex_);
    open_ = kSize;
    changed_.notify_all();
  }

  int looks = 0;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t open_;
  const State then_;
};

class ArrivingUpdate final : public Update {
 public:
  explicit ArrivingUpdate(const std::vector<float>& term) : term_(GradientView::dense(term.data(), term.size())) {
    gradient.terms = {&term_, 1};
  }
  void on_arrived() override { ++arrivals; }
  void on_applied(std::uint64_t) override { CHECK_EQUAL(arrivals, 1); }
  int arrivals = 0;

 private:
  const GradientView term_;
};

std::vector<float> read(Store& store) {
  std::vector<float> out(store.size());
  store.read(out);
  return out;
}

std::vector<float> some_gradient() {
  std::vector<float> gradient(kSize);
  for (std::size_t i = 0; i < kSize; ++i) {
    gradient[i] = static_cast<float>(i % 97) - 48.0F;
  }
  return gradient;
}

std::unique_ptr<Store> versions() { return make_test_store("mutex", adding_rule(), std::vector<float>(kSize, 1.0F)); }

TEST(an_update_that_arrives_makes_the_version_that_it_makes_when_it_is_there) {
  const auto whole = versions();
  const auto arriving = versions();
  const std::vector<float> gradient = some_gradient();
  whole->apply(gradient);
  Gate gate(kSize, State::kLate);
  ArrivingUpdate update(gradient);
  CHECK(arriving->applies_arriving());
  CHECK(arriving->submit_arriving(update, gate) == State::kHere);
  CHECK(update.finished());
  CHECK(gate.looks > 3);  // piece by piece
  CHECK_EQUAL(arriving->version(), 1U);
  CHECK(read(*arriving) == read(*whole));
}

TEST(an_update_that_is_not_accepted_at_once_waits_without_holding_the_store) {
  class HeldUpdate final : public Update {
   public:
    HeldUpdate(Store& store, const std::vector<float>& term)
        : store_(store), gradient_(term), term_(GradientView::dense(term.data(), term.size())) {
      gradient.terms = {&term_, 1};
    }
    bool try_arrived() override { return false; }
    // An update that was accepted before is made while this one waits. It would hang if the draft were kept.
    void on_arrived() override { store_.apply(gradient_); }

   private:
    Store& store_;
    const std::vector<float>& gradient_;
    const GradientView term_;
  };
  const auto store = versions();
  const auto twice = versions();
  const std::vector<float> gradient = some_gradient();
  Gate gate(kSize, State::kLate);
  HeldUpdate update(*store, gradient);
  CHECK(store->submit_arriving(update, gate) == State::kHere);
  CHECK(update.finished() && update.redrafted);
  twice->apply(gradient);
  twice->apply(gradient);
  CHECK_EQUAL(store->version(), 2U);
  CHECK(read(*store) == read(*twice));
}

TEST(a_gradient_that_is_withdrawn_or_cut_off_half_way_changes_nothing) {
  for (const State end : {State::kWithdrawn, State::kCutOff}) {
    for (const std::uint64_t open : {std::uint64_t{0}, std::uint64_t{kSize / 2}, std::uint64_t{kSize - 1}}) {
      const auto store = versions();
      Gate gate(open, end);
      const std::vector<float> gradient = some_gradient();
      ArrivingUpdate update(gradient);
      CHECK(store->submit_arriving(update, gate) == end);
      CHECK(!update.finished());
      CHECK_EQUAL(update.arrivals, 0);
      CHECK_EQUAL(store->version(), 0U);
      CHECK(read(*store) == std::vector<float>(kSize, 1.0F));
      store->apply(gradient);  // the buffer of the draft is used again
      CHECK_EQUAL(store->version(), 1U);
    }
  }
}

TEST(a_gradient_that_is_late_keeps_no_other_update_waiting_and_is_applied_to_what_they_made) {
  const auto store = versions();
  Gate gate(kSize / 2, State::kLate);
  const std::vector<float> gradient = some_gradient();
  ArrivingUpdate update(gradient);
  std::thread late([&] { CHECK(store->submit_arriving(update, gate) == State::kHere); });
  const std::vector<float> minus_one(kSize, -1.0F);
  for (int i = 0; i < 5; ++i) {
    store->apply(minus_one);  // would never return if the draft kept the store
  }
  CHECK_EQUAL(store->version(), 5U);
  gate.open_all();
  late.join();
  CHECK_EQUAL(store->version(), 6U);
  std::vector<float> expected(kSize);
  for (std::size_t i = 0; i < kSize; ++i) {
    expected[i] = 6.0F - gradient[i];
  }
  CHECK(read(*store) == expected);
}

TEST(an_optimizer_with_state_of_its_own_waits_for_all_of_a_gradient) {
  UpdateRuleSpec rule = adding_rule();
  rule.optimizer.name = "momentum";
  const auto store = make_test_store("mutex", rule, std::vector<float>(kSize, 1.0F));
  CHECK(!store->applies_arriving());
  CHECK(!make_test_store("lock-free", adding_rule(), std::vector<float>(kSize, 1.0F))->applies_arriving());
}

TEST(copies_past_the_cache_are_copies_and_nothing_else) {
  std::vector<float> from(3000);
  for (std::size_t i = 0; i < from.size(); ++i) {
    from[i] = static_cast<float>(i) + 0.5F;
  }
  for (const std::size_t count : {0U, 1U, 15U, 16U, 17U, 63U, 64U, 1000U, 2047U}) {
    for (std::size_t shift = 0; shift < 17; ++shift) {
      std::vector<float> to(from.size(), -1.0F);
      copy_past_cache(to.data() + shift, from.data() + 3, count);
      end_past_cache();
      for (std::size_t i = 0; i < to.size(); ++i) {
        const bool inside = i >= shift && i < shift + count;
        CHECK_EQUAL(to[i], inside ? from[i - shift + 3] : -1.0F);
      }
    }
  }
}

}  // namespace
