#include "bindings/module.h"
#include "bindings/spec.h"
#include "store/lockfree_store.h"
#include "store/mutex_store.h"

namespace py = pybind11;

namespace distnet::bindings {
namespace {

template <typename StoreType>
void bind_store(py::module_& module, const char* name, const char* documentation) {
  py::class_<StoreType>(module, name, documentation)
      .def(py::init([](const py::array& parameters, const py::dict& optimizer) {
             const auto size = static_cast<std::uint64_t>(parameters.size());
             const float* const data = checked_data(parameters, {size}, "parameters");
             UpdateRuleSpec rule;
             rule.optimizer = optimizer_spec(optimizer);
             rule.schedule = schedule_spec(optimizer);
             rule.clip_value = py::cast<double>(optimizer["clip_value"]);
             const py::gil_scoped_release released;
             return std::make_unique<StoreType>(rule, std::span<const float>(data, size));
           }),
           py::arg("parameters"), py::arg("optimizer"))
      .def(
          "read",
          [](StoreType& store, const py::array& out) {
            float* const data = checked_target(out, {store.size()}, "out");
            const py::gil_scoped_release released;
            return store.read({data, store.size()});
          },
          py::arg("out"))
      .def(
          "apply",
          [](StoreType& store, const py::array& gradient) {
            const float* const data = checked_data(gradient, {store.size()}, "gradient");
            const py::gil_scoped_release released;
            store.apply({data, store.size()});
          },
          py::arg("gradient"))
      .def_property_readonly("version", [](const StoreType& store) { return store.version(); })
      .def_property_readonly("size", [](const StoreType& store) { return store.size(); });
}

}  // namespace

void bind_stores(py::module_& module) {
  bind_store<MutexStore>(module, "MutexStore", "Parameters behind a mutex: versions that never change.");
  bind_store<LockFreeStore>(module, "LockFreeStore", "Parameters in place, one writer a chunk, no locks.");
}

}  // namespace distnet::bindings
