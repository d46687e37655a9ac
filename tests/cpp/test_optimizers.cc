// Every optimizer against a plain scalar reference, bit for bit: the vectorised kernels may not round differently.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>

#include "base/error.h"
#include "base/units.h"
#include "check.h"
#include "kernels/kernels.h"
#include "optim/nadam_product.h"
#include "optim/optimizer.h"
#include "optim/update_rule.h"
#include "random_floats.h"

namespace {

using namespace distnet;

// One element, one step. Written from the papers' formulas in PyTorch's order, without the kernels' code.
struct Element {
  float parameter;
  float state[kMaxStateVectors] = {};
};
using Reference = std::function<void(Element&, float gradient, float rate, std::uint64_t update)>;

struct Case {
  const char* label;
  OptimizerSpec spec;
  Reference reference;
};

void adam_reference(Element& e, float g, float rate_over_correction, float root_correction2) {
  e.state[0] = e.state[0] + static_cast<float>(1.0 - 0.9) * (g - e.state[0]);
  e.state[1] = 0.999F * e.state[1] + static_cast<float>(1.0 - 0.999) * g * g;
  e.parameter = e.parameter - rate_over_correction * e.state[0] / (std::sqrt(e.state[1]) / root_correction2 + 1e-8F);
}

// Adam's moments as the dialects have them.
void dialect_moments(Element& e, float g, float one_less_beta2) {
  e.state[0] = e.state[0] + static_cast<float>(1.0 - 0.9) * (g - e.state[0]);
  e.state[1] = e.state[1] + one_less_beta2 * (g * g - e.state[1]);
}

float first_correction(double rate, std::uint64_t update) {
  return static_cast<float>(rate / (1.0 - std::pow(0.9, static_cast<double>(update) + 1.0)));
}

float second_correction(std::uint64_t update) {
  return static_cast<float>(std::sqrt(1.0 - std::pow(0.999, static_cast<double>(update) + 1.0)));
}

constexpr double kRate = 0.05;

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"sgd", {"sgd", {}}, [](Element& e, float g, float rate, std::uint64_t) { e.parameter -= rate * g; }},
      {"sgd with decay",
       {"sgd", {{"weight_decay", 0.01}}},
       [](Element& e, float g, float rate, std::uint64_t) { e.parameter -= rate * (g + 0.01F * e.parameter); }},
      {"heavy ball",
       {"momentum", {}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = 0.9F * e.state[0] + g;
         e.parameter -= rate * e.state[0];
       }},
      {"nesterov",
       {"momentum", {{"nesterov", 1.0}, {"momentum", 0.8}, {"weight_decay", 0.01}}},
       [](Element& e, float gradient, float rate, std::uint64_t) {
         const float g = gradient + 0.01F * e.parameter;
         e.state[0] = 0.8F * e.state[0] + g;
         e.parameter -= rate * (g + 0.8F * e.state[0]);
       }},
      {"adagrad",
       {"adagrad", {{"initial_accumulator_value", 0.1}, {"learning_rate_decay", 0.5}}},
       [](Element& e, float g, float, std::uint64_t update) {
         const float rate = static_cast<float>(kRate / (1.0 + static_cast<double>(update) * 0.5));
         if (update == 0) {
           e.state[0] = 0.1F;
         }
         e.state[0] = e.state[0] + g * g;
         e.parameter -= rate * g / (std::sqrt(e.state[0]) + 1e-10F);
       }},
      {"rmsprop",
       {"rmsprop", {}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = 0.99F * e.state[0] + static_cast<float>(1.0 - 0.99) * g * g;
         e.parameter -= rate * g / (std::sqrt(e.state[0]) + 1e-8F);
       }},
      {"rmsprop with momentum",
       {"rmsprop", {{"momentum", 0.5}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = 0.99F * e.state[0] + static_cast<float>(1.0 - 0.99) * g * g;
         e.state[1] = 0.5F * e.state[1] + g / (std::sqrt(e.state[0]) + 1e-8F);
         e.parameter -= rate * e.state[1];
       }},
      {"adam",
       {"adam", {}},
       [](Element& e, float g, float, std::uint64_t update) {
         adam_reference(e, g, first_correction(kRate, update), second_correction(update));
       }},
      {"adamw",
       {"adamw", {}},
       [](Element& e, float g, float, std::uint64_t update) {
         e.parameter = static_cast<float>(1.0 - kRate * 0.01) * e.parameter;
         adam_reference(e, g, first_correction(kRate, update), second_correction(update));
       }},
      {"sgd with decoupled decay",
       {"sgd", {{"weight_decay", 0.01}, {"decoupled_weight_decay", 1.0}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.parameter = e.parameter - static_cast<float>(kRate * 0.01) * e.parameter - rate * g;
       }},
      {"momentum with dampening",
       {"momentum", {{"dampening", 0.25}}},
       [](Element& e, float g, float rate, std::uint64_t update) {
         e.state[0] = 0.9F * e.state[0] + (update == 0 ? 1.0F : 0.75F) * g;
         e.parameter -= rate * e.state[0];
       }},
      {"momentum whose velocity holds the rate",
       {"momentum", {{"velocity_holds_rate", 1.0}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = 0.9F * e.state[0] - rate * g;
         e.parameter += e.state[0];
       }},
      {"nesterov whose velocity holds the rate, with decoupled decay",
       {"momentum",
        {{"velocity_holds_rate", 1.0}, {"nesterov", 1.0}, {"weight_decay", 0.01}, {"decoupled_weight_decay", 1.0}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = 0.9F * e.state[0] - rate * g;
         e.parameter = e.parameter - static_cast<float>(kRate * 0.01) * e.parameter + (0.9F * e.state[0] - rate * g);
       }},
      {"adagrad with epsilon inside the root",
       {"adagrad", {{"eps", 0.1}, {"eps_inside_root", 1.0}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = e.state[0] + g * g;
         e.parameter -= rate * g / std::sqrt(e.state[0] + 0.1F);
       }},
      {"rmsprop with epsilon inside the root",
       {"rmsprop", {{"eps", 0.1}, {"eps_inside_root", 1.0}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = e.state[0] + static_cast<float>(1.0 - 0.99) * (g * g - e.state[0]);
         e.parameter -= rate * (g / std::sqrt(e.state[0] + 0.1F));
       }},
      {"rmsprop whose velocity holds the rate",
       {"rmsprop", {{"momentum", 0.5}, {"velocity_holds_rate", 1.0}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = e.state[0] + static_cast<float>(1.0 - 0.99) * (g * g - e.state[0]);
         e.state[1] = 0.5F * e.state[1] + rate * (g / (std::sqrt(e.state[0]) + 1e-8F));
         e.parameter -= e.state[1];
       }},
      {"centered rmsprop",
       {"rmsprop", {{"centered", 1.0}, {"eps", 0.1}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = e.state[0] + static_cast<float>(1.0 - 0.99) * (g * g - e.state[0]);
         e.state[1] = e.state[1] + static_cast<float>(1.0 - 0.99) * (g - e.state[1]);
         e.parameter -= rate * (g / (std::sqrt(e.state[0] - e.state[1] * e.state[1]) + 0.1F));
       }},
      {"centered rmsprop with momentum",
       {"rmsprop", {{"centered", 1.0}, {"momentum", 0.5}, {"eps", 0.1}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = e.state[0] + static_cast<float>(1.0 - 0.99) * (g * g - e.state[0]);
         e.state[2] = e.state[2] + static_cast<float>(1.0 - 0.99) * (g - e.state[2]);
         e.state[1] = 0.5F * e.state[1] + g / (std::sqrt(e.state[0] - e.state[2] * e.state[2]) + 0.1F);
         e.parameter -= rate * e.state[1];
       }},
      {"adam with epsilon before the correction",
       {"adam", {{"eps_before_correction", 1.0}, {"eps", 0.1}}},
       [](Element& e, float g, float, std::uint64_t update) {
         const double t = static_cast<double>(update) + 1.0;
         const double step = kRate * std::sqrt(1.0 - std::pow(0.999, t)) / (1.0 - std::pow(0.9, t));
         dialect_moments(e, g, static_cast<float>(1.0 - 0.999));
         e.parameter -= static_cast<float>(step) * e.state[0] / (std::sqrt(e.state[1]) + 0.1F);
       }},
      {"adamw with amsgrad",
       {"adamw", {{"amsgrad", 1.0}, {"beta2", 0.5}}},
       [](Element& e, float g, float, std::uint64_t update) {
         const double t = static_cast<double>(update) + 1.0;
         dialect_moments(e, g, 0.5F);
         e.state[2] = std::max(e.state[2], e.state[1]);
         const float root = std::sqrt(e.state[2]) * static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(0.5, t)));
         const float step = first_correction(kRate, update) * e.state[0] / (root + 1e-8F);
         e.parameter = e.parameter - static_cast<float>(kRate * 0.01) * e.parameter - step;
       }},
      {"lion",
       {"lion", {{"weight_decay", 0.01}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         const float direction = 0.9F * e.state[0] + static_cast<float>(1.0 - 0.9) * g;
         e.state[0] = e.state[0] + static_cast<float>(1.0 - 0.99) * (g - e.state[0]);
         const float step = direction > 0.0F ? rate : direction < 0.0F ? -rate : 0.0F;
         e.parameter = e.parameter - static_cast<float>(kRate * 0.01) * e.parameter - step;
       }},
      {"outer nesterov",
       {"outer_nesterov", {{"momentum", 0.8}}},
       [](Element& e, float g, float rate, std::uint64_t) {
         e.state[0] = 0.8F * e.state[0] + g;
         e.parameter -= rate * (g + 0.8F * e.state[0]);
       }},
  };
  return all;
}

bool same_bits(const std::vector<float>& left, const std::vector<float>& right) {
  return left.size() == right.size() && std::memcmp(left.data(), right.data(), left.size() * sizeof(float)) == 0;
}

// A vector and its state, stepped in place or from one buffer to another.
class Stepped {
 public:
  Stepped(const UpdateRuleSpec& spec, const std::vector<float>& initial, bool in_place)
      : rule_(std::make_shared<const UpdateRule>(spec, initial.size())),
        in_place_(in_place),
        newest_(initial),
        spare_(initial.size()) {
    for (int index = 0; index < rule_->state_vectors(); ++index) {
      state_.emplace_back(initial.size(), rule_->initial_state_value(index));
    }
    if (rule_->keeps_ema()) {
      ema_ = initial;
    }
  }

  // Cut into ranges of `length` elements. Returns one past the last element that was stepped.
  std::uint64_t step(const std::vector<std::vector<float>>& terms, float divisor, std::size_t length,
                     GradientView::Meaning meaning = GradientView::Meaning::kGradient) {
    std::vector<GradientView> views;
    for (const auto& term : terms) {
      views.push_back(GradientView::dense(term.data(), term.size()));
      views.back().meaning = meaning;
    }
    ParameterVectors vectors;
    vectors.in = newest_.data();
    vectors.out = in_place_ ? newest_.data() : spare_.data();
    for (std::size_t index = 0; index < state_.size(); ++index) {
      vectors.state[index] = state_[index].data();
    }
    if (rule_->keeps_ema()) {
      vectors.ema_in = vectors.ema_out = ema_.data();
    }
    std::uint64_t end = 0;
    for (std::size_t begin = 0; begin < newest_.size() && end == begin; begin += length) {
      const std::uint64_t range_end = std::min(begin + length, newest_.size());
      end = rule_->apply(vectors, {.terms = views, .divisor = divisor}, begin, range_end, updates_).end;
    }
    if (!in_place_) {
      newest_.swap(spare_);
    }
    ++updates_;
    return end;
  }

  // Returns whether all vectors are those of `left` before element `cut`, and those of `right` from there on.
  bool consists_of(const Stepped& left, const Stepped& right, std::size_t cut) const {
    const auto joined = [cut](const std::vector<float>& before, const std::vector<float>& after) {
      std::vector<float> values(before.begin(), before.begin() + static_cast<std::ptrdiff_t>(cut));
      values.insert(values.end(), after.begin() + static_cast<std::ptrdiff_t>(cut), after.end());
      return values;
    };
    bool same = same_bits(newest_, joined(left.newest_, in_place_ ? right.newest_ : right.spare_)) &&
                same_bits(ema_, joined(left.ema_, right.ema_));
    for (std::size_t index = 0; index < state_.size(); ++index) {
      same = same && same_bits(state_[index], joined(left.state_[index], right.state_[index]));
    }
    return same;
  }

  const std::vector<float>& parameters() const { return newest_; }
  const std::vector<float>& ema() const { return ema_; }

 private:
  std::shared_ptr<const UpdateRule> rule_;
  bool in_place_;
  std::vector<float> newest_, spare_, ema_;
  std::vector<std::vector<float>> state_;
  std::uint64_t updates_ = 0;
};

UpdateRuleSpec rule_of(const OptimizerSpec& optimizer) {
  UpdateRuleSpec spec;
  spec.optimizer = optimizer;
  spec.schedule.learning_rate = kRate;
  return spec;
}

constexpr std::size_t kSize = 5003;  // more than a block, and no multiple of any vector's width

TEST(each_optimizer_has_the_bits_of_its_scalar_reference) {
  for (const Case& test : cases()) {
    const auto initial = random_floats(kSize, 1);
    Stepped stepped(rule_of(test.spec), initial, true);
    std::vector<Element> elements;
    for (const float value : initial) {
      elements.push_back({value});
    }
    for (std::uint64_t update = 0; update < 20; ++update) {
      const auto gradient = random_floats(kSize, 100 + update);
      stepped.step({gradient}, 1.0F, kSize);
      for (std::size_t i = 0; i < kSize; ++i) {
        test.reference(elements[i], gradient[i], static_cast<float>(kRate), update);
        if (elements[i].parameter != stepped.parameters()[i]) {
          check::fail(std::string(test.label) + " differs at element " + std::to_string(i), __FILE__, __LINE__);
        }
      }
    }
  }
}

TEST(in_place_out_of_place_and_any_cut_give_the_same_bits) {
  for (const Case& test : cases()) {
    UpdateRuleSpec spec = rule_of(test.spec);
    spec.ema_decay = 0.99;
    spec.clip_value = 0.5;
    const auto initial = random_floats(kSize, 1);
    Stepped in_place(spec, initial, true);
    Stepped out_of_place(spec, initial, false);
    Stepped in_ranges(spec, initial, true);
    for (std::uint64_t update = 0; update < 10; ++update) {
      const std::vector<std::vector<float>> terms = {random_floats(kSize, 2 * update),
                                                     random_floats(kSize, 2 * update + 1)};
      in_place.step(terms, 2.0F, kSize);
      out_of_place.step(terms, 2.0F, kSize);
      in_ranges.step(terms, 2.0F, 777);
    }
    CHECK(same_bits(in_place.parameters(), out_of_place.parameters()));
    CHECK(same_bits(in_place.parameters(), in_ranges.parameters()));
    CHECK(same_bits(in_place.ema(), out_of_place.ema()));
    CHECK(same_bits(in_place.ema(), in_ranges.ema()));
  }
}

// NaN and infinity at every place of a strip, in a whole one and in the short last one.
TEST(an_optimizer_ends_before_the_strip_that_is_not_finite) {
  constexpr std::size_t kFloats = 3 * kStripFloats + 7;
  const auto initial = random_floats(kFloats, 1);
  const auto gradient = random_floats(kFloats, 2);
  for (const Case& test : cases()) {
    UpdateRuleSpec spec = rule_of(test.spec);
    spec.ema_decay = 0.99;
    for (const bool in_place : {false, true}) {
      Stepped whole(spec, initial, in_place);
      CHECK_EQUAL(whole.step({gradient}, 1.0F, kFloats), kFloats);
      for (std::size_t place = kStripFloats; place < kFloats; ++place) {
        const std::size_t end = place / kStripFloats * kStripFloats;
        std::vector<float> bad = gradient;
        bad[place] = place % 3 == 0 ? NAN : place % 3 == 1 ? INFINITY : -INFINITY;
        Stepped stopped(spec, initial, in_place);
        const Stepped fresh = stopped;
        CHECK_EQUAL(stopped.step({bad}, 1.0F, kFloats), end);
        CHECK(stopped.consists_of(whole, fresh, end));
      }
    }
  }
}

TEST(terms_are_summed_in_their_order_and_divided) {
  const auto a = random_floats(kSize, 1), b = random_floats(kSize, 2), c = random_floats(kSize, 3);
  UpdateRuleSpec spec;
  spec.schedule.learning_rate = 1.0;
  Stepped stepped(spec, std::vector<float>(kSize, 0.0F), true);
  stepped.step({a, b, c}, 3.0F, kSize);
  for (std::size_t i = 0; i < kSize; ++i) {
    CHECK_EQUAL(stepped.parameters()[i], 0.0F - ((a[i] + b[i]) + c[i]) / 3.0F);
  }
}

TEST(clipping_clamps_the_joined_gradient) {
  UpdateRuleSpec spec;
  spec.schedule.learning_rate = 1.0;
  spec.clip_value = 0.25;
  Stepped stepped(spec, std::vector<float>(3, 0.0F), true);
  stepped.step({{1.0F, -9.0F, 0.5F}, {-0.8F, 0.0F, -0.5F}}, 1.0F, 3);
  CHECK_EQUAL(stepped.parameters()[0], -(1.0F - 0.8F));
  CHECK_EQUAL(stepped.parameters()[1], 0.25F);
  CHECK_EQUAL(stepped.parameters()[2], 0.0F);
}

TEST(groups_have_their_own_rate_and_decay) {
  UpdateRuleSpec spec;
  spec.optimizer.settings["weight_decay"] = 9.0;  // for parameters without groups
  spec.schedule.learning_rate = 0.5;
  spec.groups = {{0, 16, 1.0, 0.0}, {16, 4500, 0.0, 1.0}, {4500, kSize, 2.0, 0.5}};
  Stepped stepped(spec, std::vector<float>(kSize, 1.0F), true);
  stepped.step({std::vector<float>(kSize, 0.25F)}, 1.0F, 1000);
  for (std::size_t i = 0; i < kSize; ++i) {
    CHECK_EQUAL(stepped.parameters()[i], i < 16 ? 1.0F - 0.125F : i < 4500 ? 1.0F : 1.0F - (0.25F + 0.5F));
  }
}

TEST(groups_have_their_own_settings) {
  UpdateRuleSpec spec;
  spec.optimizer = {"momentum", {{"momentum", 0.5}}};
  spec.schedule.learning_rate = 1.0;
  spec.groups = {{0, 16, 1.0, 0.0, {}},
                 {16, 4500, 1.0, 0.0, {{"momentum", 0.25}}},
                 {4500, kSize, 1.0, 0.0, {{"nesterov", 1.0}, {"velocity_holds_rate", 1.0}}}};
  Stepped stepped(spec, std::vector<float>(kSize, 0.0F), true);
  stepped.step({std::vector<float>(kSize, -1.0F)}, 1.0F, 1000);
  stepped.step({std::vector<float>(kSize, 0.0F)}, 1.0F, 1000);
  for (std::size_t i = 0; i < kSize; ++i) {
    CHECK_EQUAL(stepped.parameters()[i], i < 16 ? 1.5F : i < 4500 ? 1.25F : 1.5F + 0.25F);
  }
}

TEST(a_groups_settings_may_not_change_what_state_is_kept) {
  const auto with = [](const OptimizerSpec& optimizer, const std::map<std::string, double>& settings) {
    UpdateRuleSpec spec;
    spec.optimizer = optimizer;
    spec.groups = {{0, 8, 1.0, 0.0, settings}};
    return spec;
  };
  CHECK_THROWS(UpdateRule(with({"adam", {}}, {{"amsgrad", 1.0}}), 8), Error);
  CHECK_THROWS(UpdateRule(with({"rmsprop", {}}, {{"momentum", 0.5}}), 8), Error);
  CHECK_THROWS(UpdateRule(with({"rmsprop", {{"momentum", 0.5}}}, {{"momentum", 0.0}, {"centered", 1.0}}), 8), Error);
  CHECK_THROWS(UpdateRule(with({"adagrad", {}}, {{"initial_accumulator_value", 0.5}}), 8), Error);
  CHECK_THROWS(UpdateRule(with({"adam", {}}, {{"momentum", 0.5}}), 8), Error);
  CHECK_THROWS(UpdateRule(with({"adam", {}}, {{"beta1", 1.0}}), 8), Error);
  CHECK_THROWS(UpdateRule(with({"sgd", {}}, {{"weight_decay", 0.5}}), 8), Error);
  CHECK_EQUAL(UpdateRule(with({"rmsprop", {{"momentum", 0.5}}}, {{"momentum", 0.7}}), 8).state_vectors(), 2);
}

TEST(a_change_is_added_as_it_is_and_moves_the_average) {
  for (const char* name : {"sgd", "adamw", "momentum"}) {
    UpdateRuleSpec spec = rule_of({name, {{"weight_decay", 0.5}}});
    spec.clip_value = 0.125;
    spec.ema_decay = 0.5;
    const auto initial = random_floats(kSize, 1);
    const auto change = random_floats(kSize, 2);
    Stepped stepped(spec, initial, false);
    stepped.step({change}, 1.0F, 1000, GradientView::Meaning::kChange);
    stepped.step({change, change}, 2.0F, 1000, GradientView::Meaning::kChange);
    for (std::size_t i = 0; i < kSize; ++i) {
      CHECK_EQUAL(stepped.parameters()[i], (initial[i] + change[i]) + change[i]);
    }
    CHECK(!same_bits(stepped.ema(), initial));
  }
}

TEST(outer_nesterov_takes_a_change_for_a_gradient_against_its_direction) {
  const auto initial = random_floats(kSize, 1);
  Stepped outer(rule_of({"outer_nesterov", {}}), initial, true);
  Stepped inner(rule_of({"momentum", {{"nesterov", 1.0}}}), initial, true);
  for (std::uint64_t update = 0; update < 10; ++update) {
    const auto change = random_floats(kSize, 10 + update);
    auto gradient = change;
    for (float& value : gradient) {
      value = -value;
    }
    outer.step({change}, 1.0F, kSize, GradientView::Meaning::kChange);
    inner.step({gradient}, 1.0F, kSize);
  }
  CHECK(same_bits(outer.parameters(), inner.parameters()));
}

// Against the product itself: it has no bits of its own, because PyTorch multiplies in float32.
TEST(the_product_of_nadams_shares_follows_from_the_count_alone) {
  for (const double beta1 : {0.0, 0.5, 0.9, 0.999}) {
    for (const double decay : {0.0, 1e-12, 1e-4, 4e-3, 1.0, 1000.0}) {
      const NAdamProduct product(beta1, decay);
      double expected = 1.0;
      for (int t = 1; t <= 3000; ++t) {
        const double share = beta1 * (1.0 - 0.5 * std::pow(0.96, t * decay));
        expected *= share;
        CHECK(std::abs(product.share(t) - share) <= 1e-14);
        CHECK(std::abs(product.of_first(t) - expected) <= 1e-12 * expected + 1e-300);
      }
    }
  }
}

TEST(nadam_has_the_steps_of_its_formula) {
  constexpr std::size_t kElements = 67;
  const auto initial = random_floats(kElements, 1);
  Stepped stepped(rule_of({"nadam", {{"weight_decay", 0.01}, {"decoupled_weight_decay", 1.0}}}), initial, true);
  std::vector<double> p(initial.begin(), initial.end()), m(kElements), v(kElements);
  double product = 1.0;
  for (int t = 1; t <= 200; ++t) {
    const auto gradient = random_floats(kElements, static_cast<std::uint64_t>(t));
    const double share = 0.9 * (1.0 - 0.5 * std::pow(0.96, t * 4e-3));
    const double next = 0.9 * (1.0 - 0.5 * std::pow(0.96, (t + 1) * 4e-3));
    product *= share;
    stepped.step({gradient}, 1.0F, kElements);
    for (std::size_t i = 0; i < kElements; ++i) {
      const double g = static_cast<double>(gradient[i]);
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.999 * v[i] + 0.001 * g * g;
      const double step = (1.0 - share) / (1.0 - product) * g + next / (1.0 - product * next) * m[i];
      const double root = std::sqrt(v[i] / (1.0 - std::pow(0.999, t))) + 1e-8;
      p[i] = p[i] * (1.0 - kRate * 0.01) - kRate * step / root;
      CHECK(std::abs(static_cast<double>(stepped.parameters()[i]) - p[i]) < 1e-4);
    }
  }
}

// A constant gradient has no variance, and rounding would make a negative one of it.
TEST(centered_rmsprop_stays_finite_where_the_gradient_does_not_change) {
  Stepped stepped(rule_of({"rmsprop", {{"centered", 1.0}, {"alpha", 0.5}}}), random_floats(kSize, 1), true);
  const auto gradient = random_floats(kSize, 2);
  for (int update = 0; update < 100; ++update) {
    stepped.step({gradient}, 1.0F, kSize);
  }
  CHECK(all_finite(stepped.parameters().data(), kSize));
}

TEST(without_groups_the_optimizers_own_decay_holds) {
  for (const OptimizerSpec& optimizer : {OptimizerSpec{"sgd", {{"weight_decay", 0.5}}}, OptimizerSpec{"adamw", {}}}) {
    Stepped stepped(rule_of(optimizer), std::vector<float>(4, 1.0F), true);
    stepped.step({std::vector<float>(4, 0.0F)}, 1.0F, 4);
    CHECK(stepped.parameters()[0] < 1.0F);
  }
}

TEST(the_ema_starts_at_the_parameters_and_ramps) {
  UpdateRuleSpec spec;
  spec.schedule.learning_rate = 1.0;
  spec.ema_decay = 0.5;
  Stepped stepped(spec, {1.0F}, true);
  stepped.step({{-1.0F}}, 1.0F, 1);  // parameter 2, decay min(0.5, 1/10)
  const float first = 1.0F + static_cast<float>(1.0 - 0.1) * (2.0F - 1.0F);
  CHECK_EQUAL(stepped.ema()[0], first);
  stepped.step({{-1.0F}}, 1.0F, 1);  // parameter 3, decay min(0.5, 2/11)
  CHECK_EQUAL(stepped.ema()[0], first + static_cast<float>(1.0 - 2.0 / 11.0) * (3.0F - first));
  for (int i = 0; i < 20; ++i) {
    stepped.step({{0.0F}}, 1.0F, 1);
  }
  const float before = stepped.ema()[0];
  stepped.step({{0.0F}}, 1.0F, 1);
  CHECK_EQUAL(stepped.ema()[0], before + 0.5F * (3.0F - before));
}

TEST(settings_that_make_no_rule_are_refused) {
  CHECK_THROWS(make_optimizer({"sdg", {}}), Error);
  CHECK_THROWS(make_optimizer({"sgd", {{"momentum", 0.9}}}), Error);
  CHECK_THROWS(make_optimizer({"adam", {{"beta1", 1.0}}}), Error);
  CHECK_THROWS(make_optimizer({"adam", {{"eps", std::nan("")}}}), Error);
  CHECK_THROWS(make_optimizer({"momentum", {{"momentum", -0.1}}}), Error);
  CHECK_THROWS(make_optimizer({"sgd", {{"weight_decay", INFINITY}}}), Error);
  CHECK_THROWS(UpdateRule({}, 0), Error);
  UpdateRuleSpec gap;
  gap.groups = {{0, 4, 1.0, 0.0}, {5, 8, 1.0, 0.0}};
  CHECK_THROWS(UpdateRule(gap, 8), Error);
  UpdateRuleSpec too_short;
  too_short.groups = {{0, 4, 1.0, 0.0}};
  CHECK_THROWS(UpdateRule(too_short, 8), Error);
  CHECK_THROWS(UpdateRule({.clip_value = -1.0}, 8), Error);
  CHECK_THROWS(UpdateRule({.ema_decay = 1.0}, 8), Error);
}

}  // namespace
