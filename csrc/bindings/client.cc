#include "client/client.h"

#include <string_view>

#include "base/error.h"
#include "bindings/module.h"
#include "bindings/spec.h"

namespace py = pybind11;

namespace distnet::bindings {
namespace {

Client::Call call_of(const std::string& name) {
  static const std::map<std::string, Client::Call> calls = {
      {"pull", Client::Call::kPull},
      {"pull_ema", Client::Call::kPullEma},
      {"pull_settled", Client::Call::kPullSettled},
      {"pull_ema_settled", Client::Call::kPullEmaSettled},
      {"push", Client::Call::kPush},
      {"push_pull", Client::Call::kPushPull},
      {"abstain", Client::Call::kAbstain},
      {"abstain_pull", Client::Call::kAbstainPull},
      {"add", Client::Call::kAdd},
      {"add_pull", Client::Call::kAddPull},
  };
  return calls.at(name);
}

// Calls `waiting` of Python, where there is one. It must outlive the result.
WhileConnecting while_connecting(const py::object& waiting) {
  if (waiting.is_none()) {
    return {};
  }
  return {[&waiting](const std::string& why, bool model_comes) {
            const py::gil_scoped_acquire gil;
            waiting.attr("heard")(why, model_comes);
          },
          [&waiting] {
            const py::gil_scoped_acquire gil;
            waiting.attr("look")();
          }};
}

Owned<Client> connect(const std::string& address, std::optional<std::uint32_t> rank, double timeout,
                      const std::string& transport, bool named, const py::list& initial, const py::dict& tuning,
                      std::uint32_t start, std::uint64_t owner, const py::object& waiting, const py::object& optimizer,
                      const py::object& stop) {
  const Transport* const chosen = transport == "auto" ? nullptr : &transport_named(transport);
  const ClientOptions options{address,
                              rank,
                              timeout,
                              chosen,
                              tuning_of(tuning),
                              start,
                              owner,
                              while_connecting(waiting),
                              brought_optimizer(optimizer),
                              ends_with(stop)};
  const Manifest manifest = manifest_of(named, initial);
  py::list arrays;
  for (const py::handle& item : initial) {
    arrays.append(py::cast<py::tuple>(item)[1]);
  }
  const std::vector<const float*> pointers = tensor_data(manifest, arrays);
  const Interrupt interrupt = check_signals_and(options.stopped);
  const GilReleased released;
  return Owned<Client>(new Client(options, manifest, pointers, interrupt));
}

// None, or (learning rate, weight, learning rates by groups). `groups` gets the last, which the settings point to.
PushSettings settings_of(const py::object& given, std::vector<double>& groups) {
  if (given.is_none()) {
    return {};
  }
  using Given = std::tuple<std::optional<double>, std::optional<double>, std::vector<double>>;
  auto [learning_rate, weight, group_rates] = py::cast<Given>(given);
  groups = std::move(group_rates);
  PushSettings settings;
  settings.learning_rate = learning_rate;
  if (weight) {
    settings.weight = static_cast<float>(*weight);
  }
  settings.group_rates = groups;
  return settings;
}

std::uint64_t begin(Client& client, const std::string& call, const py::object& gradient, bool into_own, bool waits,
                    const py::object& settings) {
  std::vector<const float*> pointers;
  py::list arrays;  // of our own: a sequence may make its items anew each time
  if (!gradient.is_none()) {
    arrays = py::list(gradient);
    pointers = tensor_data(client.manifest(), arrays);
  }
  const Client::Then then = !waits     ? Client::Then::kLater
                            : into_own ? Client::Then::kAtOnceInFlat
                                       : Client::Then::kAtOnce;
  std::vector<double> groups;
  const PushSettings own = settings_of(settings, groups);
  const Interrupt interrupt = check_signals_and(client.stopped());
  const GilReleased released;
  return client.begin(call_of(call), pointers, then, interrupt, own);
}

py::dict begin_snapshot(Client& client, std::optional<std::uint64_t> at_round, double timeout_s) {
  SnapshotShape shape;
  {
    const Interrupt interrupt = check_signals_and(client.stopped());
    const GilReleased released;
    shape = client.begin_snapshot(at_round, timeout_s, interrupt);
  }
  py::dict description;
  description["versions"] = shape.versions;
  description["round"] = shape.round;
  description["ema"] = shape.ema;
  description["state_vectors"] = shape.state_vectors;
  description["learning_rate"] = shape.set_rate;
  return description;
}

py::bytes bytes_of(const std::vector<std::byte>& data) {
  return {reinterpret_cast<const char*>(data.data()), data.size()};
}

// Returns what ranks had saved: {rank: bytes}.
py::dict read_snapshot(Client& client, const py::list& vectors) {
  std::vector<std::vector<float*>> targets;
  for (const py::handle& arrays : vectors) {
    targets.push_back(target_data(client.manifest(), py::cast<py::list>(arrays)));
  }
  SavedByRank saved;
  {
    const Interrupt interrupt = check_signals_and(client.stopped());
    const GilReleased released;
    saved = client.read_snapshot(targets, interrupt);
  }
  py::dict by_rank;
  for (const auto& [rank, data] : saved) {
    by_rank[py::int_(rank)] = bytes_of(data);
  }
  return by_rank;
}

void set_learning_rate(Client& client, double learning_rate) {
  const Interrupt interrupt = check_signals_and(client.stopped());
  const GilReleased released;
  client.set_learning_rate(learning_rate, interrupt);
}

void save_with(Client& client, const py::bytes& data) {
  const std::string_view view(data);
  const Interrupt interrupt = check_signals_and(client.stopped());
  const GilReleased released;
  client.save_with(std::as_bytes(std::span(view)), interrupt);
}

std::optional<py::bytes> saved(const Client& client) {
  return client.saved() ? std::optional(bytes_of(*client.saved())) : std::nullopt;
}

bool unsent(Client& client, const py::list& out) { return client.unsent(target_data(client.manifest(), out)); }

void restore_unsent(Client& client, py::list arrays) { client.restore_unsent(tensor_data(client.manifest(), arrays)); }

// Returns whether there are notices to take.
bool finish(Client& client, std::uint64_t number, const py::object& out) {
  std::vector<float*> targets;
  py::list arrays;
  if (!out.is_none()) {
    arrays = py::list(out);
    targets = target_data(client.manifest(), arrays);
  }
  const Interrupt interrupt = check_signals_and(client.stopped());
  const GilReleased released;
  client.finish(number, targets, interrupt);
  return client.has_warnings();
}

py::array view(const py::object& owner, const Tensor& tensor, const float* data) {
  const std::vector<py::ssize_t> shape(tensor.shape.begin(), tensor.shape.end());
  return py::array(py::dtype::of<float>(), shape, data, owner);  // with an owner: no copy
}

// The tensors in the client's own buffer; they keep the client's memory alive.
py::list own_arrays(const py::object& self) {
  const auto& client = py::cast<const Client&>(self);
  py::list arrays;
  for (const Tensor& tensor : client.manifest().tensors) {
    arrays.append(view(self, tensor, client.flat() + tensor.offset));
  }
  return arrays;
}

py::list finish_in_place(const py::object& self, std::uint64_t number) {
  auto& client = py::cast<Client&>(self);
  std::vector<const float*> pointers;
  {
    const Interrupt interrupt = check_signals_and(client.stopped());
    const GilReleased released;
    pointers = client.finish_in_place(number, interrupt);
  }
  py::list arrays;
  for (std::size_t i = 0; i < pointers.size(); ++i) {
    py::array array = view(self, client.manifest().tensors[i], pointers[i]);
    py::setattr(array.attr("flags"), "writeable", py::bool_(false));
    arrays.append(array);
  }
  return arrays;
}

}  // namespace

void bind_client(py::module_& module) {
  py::class_<Client, Owned<Client>>(module, "Client", "A worker's connection to all shards.")
      .def(py::init(&connect), py::arg("address"), py::arg("rank"), py::arg("timeout"), py::arg("transport"),
           py::arg("named"), py::arg("initial"), py::arg("tuning"), py::arg("start"), py::arg("owner"),
           py::arg("waiting") = py::none(), py::arg("optimizer") = py::none(), py::arg("stop") = py::none())
      .def_property_readonly("about", &Client::about)
      .def_property_readonly("about_optimizer", &Client::about_optimizer)
      .def("manifest", [](const Client& client) { return describe(client.manifest()); })
      // By position only: pybind11 takes a microsecond for a call with names.
      .def("begin", &begin, py::arg("call"), py::arg("gradient"), py::arg("into_own"), py::arg("waits"),
           py::arg("settings") = py::none(), py::pos_only())
      .def("drop", &Client::drop, py::arg("number"))
      .def("notices", &Client::take_warnings)
      .def_property_readonly("closed", &Client::closed)
      .def_property_readonly("next_number", &Client::next_number)
      .def_property_readonly("timeout", &Client::timeout_s)
      .def_property_readonly("incarnation", &Client::incarnation)
      .def("finish", &finish, py::arg("number"), py::arg("out"), py::pos_only())
      .def("finish_in_place", &finish_in_place, py::arg("number"))
      .def("unsent", &unsent, py::arg("out"))
      .def("restore_unsent", &restore_unsent, py::arg("arrays"))
      .def("own_arrays", &own_arrays)
      .def("begin_snapshot", &begin_snapshot, py::arg("at_round"), py::arg("timeout"))
      .def("read_snapshot", &read_snapshot, py::arg("vectors"))
      .def("set_learning_rate", &set_learning_rate, py::arg("learning_rate"))
      .def("save_with", &save_with, py::arg("data"))
      .def_property_readonly("saved", &saved)
      .def("close",
           [](Client& client) {
             const Interrupt interrupt = check_signals_and(client.stopped());
             const GilReleased released;
             client.close(interrupt);
           })
      .def("abandon", &Client::abandon, py::call_guard<py::gil_scoped_release>())
      .def("stats_json",
           [](Client& client) {
             const Interrupt interrupt = check_signals_and(client.stopped());
             const GilReleased released;
             return client.stats(interrupt);
           })
      .def(
          "arrive",
          [](Client& client, const std::string& kind, double timeout_s) {
            const Interrupt interrupt = check_signals_and(client.stopped());
            const GilReleased released;
            client.arrive(kind == "finish" ? GatherKind::kFinish : GatherKind::kBarrier, timeout_s, interrupt);
          },
          py::arg("kind"), py::arg("timeout"))
      .def(
          "wait_for_others",
          [](Client& client, double at_most_s) {
            const Interrupt interrupt = check_signals_and(client.stopped());
            const GilReleased released;
            return client.wait_for_others(at_most_s, interrupt);
          },
          py::arg("at_most"))
      .def("stop_waiting",
           [](Client& client) {
             const Interrupt interrupt = check_signals_and(client.stopped());
             const GilReleased released;
             client.stop_waiting(interrupt);
           })
      .def("give_up_waiting",
           [](Client& client) {
             const GilReleased released;
             client.give_up_waiting();
           })
      .def("awaited",
           [](Client& client) {
             const Interrupt interrupt = check_signals_and(client.stopped());
             const GilReleased released;
             return client.awaited(interrupt);
           })
      .def_property_readonly("workers", &Client::workers)
      .def_property_readonly("transport", [](const Client& client) { return client.transport().name; })
      .def_property_readonly("has_ema", &Client::has_ema)
      .def_property_readonly("groups", &Client::groups)
      .def_property_readonly("versions", &Client::versions)
      .def_property_readonly("accepted", &Client::accepted)
      .def_property_readonly("applied", &Client::applied)
      .def_property_readonly("staleness", &Client::staleness)
      .def_property_readonly("round", &Client::round);
}

}  // namespace distnet::bindings
