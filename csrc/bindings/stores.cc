#include "bindings/module.h"
#include "bindings/spec.h"
#include "store/lockfree_store.h"
#include "store/mutex_store.h"

namespace py = pybind11;

namespace distnet::bindings {
namespace {

// A store and the memory it takes all from.
template <typename StoreType>
struct Standalone {
  Standalone(const UpdateRuleSpec& rule, std::span<const float> initial) : store(rule, initial, memory) {}
  Memory memory;
  StoreType store;
};

template <typename StoreType>
void bind_store(py::module_& module, const char* name, const char* documentation) {
  using Bound = Standalone<StoreType>;
  py::class_<Bound>(module, name, documentation)
      .def(py::init([](const py::array& parameters, const py::dict& optimizer) {
             const auto size = static_cast<std::uint64_t>(parameters.size());
             const float* const data = checked_data(parameters, {size}, "parameters");
             UpdateRuleSpec rule;
             rule.optimizer = optimizer_spec(optimizer);
             rule.schedule = schedule_spec(optimizer);
             rule.clip_value = py::cast<double>(optimizer["clip_value"]);
             const py::gil_scoped_release released;
             return std::make_unique<Bound>(rule, std::span<const float>(data, size));
           }),
           py::arg("parameters"), py::arg("optimizer"))
      .def(
          "read",
          [](Bound& bound, const py::array& out) {
            float* const data = checked_target(out, {bound.store.size()}, "out");
            const py::gil_scoped_release released;
            return bound.store.read({data, bound.store.size()});
          },
          py::arg("out"))
      .def(
          "apply",
          [](Bound& bound, const py::array& gradient) {
            const float* const data = checked_data(gradient, {bound.store.size()}, "gradient");
            const py::gil_scoped_release released;
            bound.store.apply({data, bound.store.size()});
          },
          py::arg("gradient"))
      .def(
          "add",
          [](Bound& bound, const py::array& change) {
            const float* const data = checked_data(change, {bound.store.size()}, "change");
            const py::gil_scoped_release released;
            bound.store.add({data, bound.store.size()});
          },
          py::arg("change"))
      .def_property_readonly("version", [](const Bound& bound) { return bound.store.version(); })
      .def_property_readonly("size", [](const Bound& bound) { return bound.store.size(); });
}

}  // namespace

void bind_stores(py::module_& module) {
  bind_store<MutexStore>(module, "MutexStore", "Parameters behind a mutex: versions that never change.");
  bind_store<LockFreeStore>(module, "LockFreeStore", "Parameters in place, one writer a chunk, no locks.");
}

}  // namespace distnet::bindings
