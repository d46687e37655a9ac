#include <map>
#include <optional>
#include <string_view>

#include "bindings/module.h"
#include "bindings/spec.h"
#include "group/coordinator.h"
#include "server/shard_server.h"

namespace py = pybind11;

namespace distnet::bindings {
namespace {

void initialise(ShardServer& server, bool named, const py::list& tensors, std::uint32_t shard, std::uint32_t shards) {
  const Manifest manifest = manifest_of(named, tensors);
  py::list arrays;
  for (const py::handle& item : tensors) {
    arrays.append(py::cast<py::tuple>(item)[1]);
  }
  const std::vector<const float*> pointers = tensor_data(manifest, arrays);
  const py::gil_scoped_release released;
  const ShardRange range = shard_range(manifest, shard, shards);
  server.initialise(manifest, range, gather(manifest, range, pointers), nullptr);
}

SavedBytes::Data data_of(const py::bytes& bytes) {
  const std::string_view view(bytes);
  const std::span<const std::byte> data = std::as_bytes(std::span(view));
  return std::make_shared<const std::vector<std::byte>>(data.begin(), data.end());
}

// A model with a snapshot's state, each vector as one array a tensor. No average: it starts from the parameters.
void restore(ShardServer& server, bool named, const py::list& tensors, std::uint32_t shard, std::uint32_t shards,
             std::optional<py::list> ema, std::vector<py::list> state, std::uint64_t version, std::uint64_t first_round,
             std::optional<double> learning_rate, const std::map<std::uint32_t, py::bytes>& saved) {
  const Manifest manifest = manifest_of(named, tensors);
  py::list arrays;
  for (const py::handle& item : tensors) {
    arrays.append(py::cast<py::tuple>(item)[1]);
  }
  const std::vector<const float*> parameters = tensor_data(manifest, arrays);
  std::vector<const float*> ema_data;
  if (ema) {
    ema_data = tensor_data(manifest, *ema);
  }
  std::vector<std::vector<const float*>> vectors;
  vectors.reserve(state.size());
  for (py::list& vector : state) {
    vectors.push_back(tensor_data(manifest, vector));
  }
  RestoredState restored;
  restored.version = version;
  restored.round = first_round;
  restored.set_rate = learning_rate;
  for (const auto& [rank, bytes] : saved) {
    restored.saved[rank] = data_of(bytes);
  }
  const py::gil_scoped_release released;
  const ShardRange range = shard_range(manifest, shard, shards);
  if (ema) {
    restored.ema = gather(manifest, range, ema_data);
  }
  for (const std::vector<const float*>& vector : vectors) {
    restored.state_vectors.push_back(gather(manifest, range, vector));
  }
  server.initialise(manifest, range, gather(manifest, range, parameters), &restored);
}

py::tuple read(ShardServer& server, bool ema) {
  const ShardRange range = server.shard().range();
  py::array_t<float> out(static_cast<py::ssize_t>(range.size()));
  float* const data = out.mutable_data();
  std::uint64_t version = 0;
  {
    const py::gil_scoped_release released;
    version = server.read({data, range.size()}, ema);
  }
  return py::make_tuple(version, range.begin, out);
}

}  // namespace

void bind_server(py::module_& module) {
  // Throws ConfigError unless a server can hold the model.
  module.def(
      "check_model", [](bool named, const py::list& tensors) { static_cast<void>(manifest_of(named, tensors)); },
      py::arg("named"), py::arg("tensors"));
  py::class_<ShardServer, Owned<ShardServer>>(module, "ShardServer",
                                              "One shard of the parameters, served at one endpoint.")
      .def(py::init([](const py::dict& settings, const std::string& address) {
             ShardSettings shard = shard_settings(settings);
             const bool first = shard.shard == 0;
             Owned<ShardServer> server(new ShardServer(std::move(shard), parse_address(address)));
             if (first) {
               server->host_groups(std::make_unique<Coordinator>());
             }
             return server;
           }),
           py::arg("settings"), py::arg("endpoint"))
      .def_property_readonly("endpoint", &ShardServer::address)
      .def_property_readonly("initialised", &ShardServer::initialised)
      .def("initialise", &initialise, py::arg("named"), py::arg("tensors"), py::arg("shard"), py::arg("shards"))
      .def("restore", &restore, py::arg("named"), py::arg("tensors"), py::arg("shard"), py::arg("shards"),
           py::arg("ema"), py::arg("state"), py::arg("version"), py::arg("first_round"), py::arg("learning_rate"),
           py::arg("saved"))
      .def(
          "set_directory",
          [](ShardServer& server, const std::string& directory, const std::string& leader) {
            server.set_directory(directory, parse_address(leader));
          },
          py::arg("directory"), py::arg("leader"))
      .def("manifest", [](ShardServer& server) { return describe(server.shard().manifest()); })
      .def("start", &ShardServer::start, py::call_guard<py::gil_scoped_release>())
      .def("stop", &ShardServer::stop, py::call_guard<py::gil_scoped_release>())
      .def("excuse", &ShardServer::excuse, py::arg("rank"), py::call_guard<py::gil_scoped_release>())
      .def("stats_json", &ShardServer::stats_json, py::call_guard<py::gil_scoped_release>())
      .def("memory_json", &ShardServer::memory_json, py::call_guard<py::gil_scoped_release>())
      .def("read", &read, py::arg("ema"));
}

}  // namespace distnet::bindings
