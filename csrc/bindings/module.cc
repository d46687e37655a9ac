#include "bindings/module.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/threads.h"
#include "wire/protocol.h"

namespace py = pybind11;

namespace distnet::bindings {
namespace {

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "(";
  for (const std::uint64_t extent : shape) {
    text += std::to_string(extent) + ",";
  }
  if (shape.size() > 1) {
    text.pop_back();
  }
  return text + ")";
}

// `what()` names the array: a model may have a million, and few of them are wrong.
template <typename What>
py::array checked_array(const py::handle& object, const std::vector<std::uint64_t>& shape, const What& what) {
  if (!py::isinstance<py::array>(object)) {
    throw Error(ErrorCode::kManifestMismatch, what() + " is a " +
                                                  std::string(py::str(py::type::of(object).attr("__name__"))) +
                                                  "; expected a NumPy array of float32");
  }
  auto array = py::reinterpret_borrow<py::array>(object);
  const std::span<const py::ssize_t> seen(array.shape(), static_cast<std::size_t>(array.ndim()));
  const auto is_extent = [](py::ssize_t one, std::uint64_t other) { return static_cast<std::uint64_t>(one) == other; };
  if (!array.dtype().is(py::dtype::of<float>()) || !std::ranges::equal(seen, shape, is_extent)) {
    throw Error(ErrorCode::kManifestMismatch, what() + " is " + std::string(py::str(array.dtype())) + " " +
                                                  shape_text({seen.begin(), seen.end()}) + "; the model's is float32 " +
                                                  shape_text(shape));
  }
  if ((array.flags() & py::array::c_style) == 0) {
    throw Error(ErrorCode::kManifestMismatch, what() + " is not C-contiguous; pass numpy.ascontiguousarray(...) of it");
  }
  if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(float) != 0) {
    throw Error(ErrorCode::kManifestMismatch,
                what() + " is not aligned: it does not start on a multiple of 4 bytes; pass a copy of it");
  }
  return array;
}

// Whether an array can be used as it is. This is on the way of every gradient, so it asks for nothing but that: of a
// subclass, such as a masked array, float32_array() knows more.
bool is_plain(const py::handle& object, const std::vector<std::uint64_t>& shape) {
  if (Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_) {
    return false;
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  const std::span<const py::ssize_t> seen(array.shape(), static_cast<std::size_t>(array.ndim()));
  const auto is_extent = [](py::ssize_t one, std::uint64_t other) { return static_cast<std::uint64_t>(one) == other; };
  return array.dtype().is(py::dtype::of<float>()) && std::ranges::equal(seen, shape, is_extent) &&
         (array.flags() & py::array::c_style) != 0 &&
         reinterpret_cast<std::uintptr_t>(array.data()) % alignof(float) == 0;
}

py::object float32_array(const py::handle& object, const Tensor& tensor) {
  const py::tuple shape(py::cast(tensor.shape));
  return py::module_::import("distnet._private.arrays")
      .attr("float32_array")(object, "tensor '" + tensor.name + "'", shape);
}

template <typename What>
float* target_in(const py::handle& object, const std::vector<std::uint64_t>& shape, const What& what) {
  py::array array = checked_array(object, shape, what);
  if (!array.writeable()) {
    throw Error(ErrorCode::kManifestMismatch, what() + " is read-only");
  }
  return static_cast<float*>(array.mutable_data());
}

std::atomic<bool> interpreter_ends{false};
unsigned long main_thread = 0;

bool is_main_thread() { return PyThread_get_thread_ident() == main_thread; }

}  // namespace

// NOLINTNEXTLINE(bugprone-unsafe-to-allow-exceptions): the unwinding of a thread that Python ends must pass
GilReleased::~GilReleased() noexcept(false) {
  while (interpreter_ends.load(std::memory_order_acquire) && !is_main_thread()) {
    sleep_for(std::chrono::hours{1});
  }
  PyEval_RestoreThread(state_);
}

namespace {

pybind11::gil_scoped_acquire take_gil() {
  while (interpreter_ends.load(std::memory_order_acquire)) {
    sleep_for(std::chrono::hours{1});
  }
  return {};
}

}  // namespace

bool interpreter_is_ending() { return interpreter_ends.load(std::memory_order_acquire); }

GilTaken::GilTaken() : gil_(take_gil()) {}

Interrupt check_signals() {
  if (!is_main_thread()) {
    return {};
  }
  return [] {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) {
      throw py::error_already_set();
    }
  };
}

Interrupt check_signals_and(const Interrupt& stopped) {
  const Interrupt signals = check_signals();
  if (!stopped || !signals) {
    return stopped ? stopped : signals;
  }
  return [signals, stopped] {
    signals();
    stopped();
  };
}

Interrupt ends_with(const py::object& flag) {
  if (flag.is_none()) {
    return {};
  }
  const std::shared_ptr<py::object> held(new py::object(flag), [](py::object* object) {
    if (!interpreter_is_ending()) {
      const py::gil_scoped_acquire gil;
      delete object;
    }
  });
  return [held] {
    const GilTaken gil;
    if (py::cast<bool>(held->attr("is_set")())) {
      const py::object type = py::module_::import("distnet.errors").attr("Interrupted");
      py::set_error(type, "the stop flag was set, and the wait has ended");
      throw py::error_already_set();
    }
  };
}

py::str text_of(const std::string& text) {
  PyObject* const decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace");
  if (decoded == nullptr) {
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::str>(decoded);
}

const float* checked_data(const py::handle& object, const std::vector<std::uint64_t>& shape, const std::string& what) {
  return static_cast<const float*>(checked_array(object, shape, [&] { return what; }).data());
}

float* checked_target(const py::handle& object, const std::vector<std::uint64_t>& shape, const std::string& what) {
  return target_in(object, shape, [&] { return what; });
}

Manifest manifest_of(bool named, const py::list& tensors) {
  std::vector<NamedShape> shapes;
  for (const py::handle& item : tensors) {
    const auto pair = py::cast<py::tuple>(item);
    const auto array = py::cast<py::array>(pair[1]);
    shapes.push_back({py::cast<std::string>(pair[0]), {array.shape(), array.shape() + array.ndim()}});
  }
  return make_manifest(named, shapes);
}

std::vector<const float*> tensor_data(const Manifest& manifest, py::list& arrays) {
  if (arrays.size() != manifest.tensors.size()) {
    throw Error(ErrorCode::kManifestMismatch, std::to_string(arrays.size()) + " arrays; the model has " +
                                                  std::to_string(manifest.tensors.size()) + " tensors");
  }
  std::vector<const float*> pointers;
  pointers.reserve(manifest.tensors.size());
  for (std::size_t i = 0; i < manifest.tensors.size(); ++i) {
    const Tensor& tensor = manifest.tensors[i];
    auto array = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(arrays.ptr(), static_cast<py::ssize_t>(i)));
    if (!is_plain(array, tensor.shape)) {
      array = float32_array(array, tensor);
      arrays[i] = array;
    }
    pointers.push_back(static_cast<const float*>(py::reinterpret_borrow<py::array>(array).data()));
  }
  return pointers;
}

std::vector<float*> target_data(const Manifest& manifest, const py::list& arrays) {
  if (arrays.size() != manifest.tensors.size()) {
    throw Error(ErrorCode::kManifestMismatch, "out has " + std::to_string(arrays.size()) + " arrays; the model has " +
                                                  std::to_string(manifest.tensors.size()) + " tensors");
  }
  std::vector<float*> targets;
  targets.reserve(manifest.tensors.size());
  for (std::size_t i = 0; i < manifest.tensors.size(); ++i) {
    const Tensor& tensor = manifest.tensors[i];
    targets.push_back(target_in(arrays[i], tensor.shape, [&] { return "out '" + tensor.name + "'"; }));
  }
  return targets;
}

py::dict describe(const Manifest& manifest) {
  py::list tensors;
  for (const Tensor& tensor : manifest.tensors) {
    tensors.append(py::make_tuple(tensor.name, py::tuple(py::cast(tensor.shape)), tensor.offset, tensor.count));
  }
  py::dict description;
  description["named"] = manifest.named;
  description["tensors"] = tensors;
  description["size"] = manifest.size;
  return description;
}

void bind_exit() {
  main_thread = py::cast<unsigned long>(py::module_::import("threading").attr("main_thread")().attr("ident"));
  const py::cpp_function ends([] { interpreter_ends.store(true, std::memory_order_release); });
  py::module_::import("atexit").attr("register")(ends);
}

void bind_errors(py::module_& module) {
  module.attr("PROTOCOL_VERSION") = kProtocolVersion;
  py::register_exception_translator([](std::exception_ptr pointer) {
    static constexpr const char* kNames[] = {
        "DistNetError", "ConfigError",      "ManifestMismatch",  "TransportError", "ConnectError",
        "PeerClosed",   "DeadlineExceeded", "ProtocolError",     "RoundAborted",   "NonFiniteGradient",
        "Unauthorized", "Fenced",           "CollectiveMismatch"};
    try {
      if (pointer) {
        std::rethrow_exception(std::move(pointer));
      }
    } catch (const Error& error) {
      const py::object type =
          py::module_::import("distnet.errors").attr(kNames[static_cast<std::size_t>(error.code())]);
      py::set_error(type, text_of(error.what()));
    }
  });
}

}  // namespace distnet::bindings

PYBIND11_MODULE(_native, module) {
  module.doc() = "The engine of DistNet. Use the names in distnet instead.";
  distnet::bindings::bind_exit();
  distnet::bindings::bind_errors(module);
  distnet::bindings::bind_stores(module);
  distnet::bindings::bind_server(module);
  distnet::bindings::bind_client(module);
  distnet::bindings::bind_group(module);
}
