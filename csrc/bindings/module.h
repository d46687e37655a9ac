// The Python module: one bind_* function a file. No logic: arguments are checked and converted, the GIL is released
// around everything that waits or moves bytes. Arrays that lie in memory as the engine needs them are used where they
// are, without a copy; distnet._private.arrays sees to all others.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <unistd.h>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/time.h"
#include "wire/manifest.h"

namespace distnet::bindings {

// Deletes only in the process that made it: after a fork, threads and connections are the parent's, and a child that
// collects its garbage must neither wait for those nor end these.
template <typename T>
struct InOwnProcess {
  int process = getpid();
  void operator()(T* object) const {
    if (getpid() == process) {
      const pybind11::gil_scoped_release released;  // ends threads, some of which may wait for it
      delete object;
    }
  }
};
template <typename T>
using Owned = std::unique_ptr<T, InOwnProcess<T>>;

// The GIL given up for as long as this lives. A thread that would take it back when the interpreter is ending stops
// here for good instead (as newer Pythons do by themselves): older ones end it by unwinding its stack, which C++
// answers by an abort.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;
  ~GilReleased() noexcept(false);  // the unwinding must pass, where it was on its way to the GIL already

 private:
  PyThreadState* const state_;
};

// The GIL taken back for a moment, in the middle of a wait. Where the interpreter is ending, the thread stops here for
// good, as above.
class GilTaken {
 public:
  GilTaken();

 private:
  pybind11::gil_scoped_acquire gil_;
};

// Whether the interpreter is ending: a thread of the engine's own must not take the GIL any more.
bool interpreter_is_ending();

void bind_exit();
void bind_errors(pybind11::module_& module);
void bind_stores(pybind11::module_& module);
void bind_server(pybind11::module_& module);
void bind_client(pybind11::module_& module);
void bind_group(pybind11::module_& module);

// Lets Ctrl-C end a wait. To be called with the GIL; what it returns, without. Empty in other threads than the main
// one, which get no signals.
Interrupt check_signals();
// What ends a wait: Ctrl-C, and `stopped`, where there is one. The same holds for it.
Interrupt check_signals_and(const Interrupt& stopped);
// Throws Interrupted of Python once `flag`, an object with is_set(), says that it is set. Empty for None. To be made with
// the GIL, and called and let go of without.
Interrupt ends_with(const pybind11::object& flag);
// A text of the engine's, in which a peer may have put bytes that are no UTF-8.
pybind11::str text_of(const std::string& text);

// The data of a C-contiguous float32 array of `shape`. Throws ManifestMismatch naming `what` otherwise.
const float* checked_data(const pybind11::handle& object, const std::vector<std::uint64_t>& shape,
                          const std::string& what);
float* checked_target(const pybind11::handle& object, const std::vector<std::uint64_t>& shape, const std::string& what);

// A model given as [(name, array)].
Manifest manifest_of(bool named, const pybind11::list& tensors);
std::vector<float*> target_data(const Manifest& manifest, const pybind11::list& arrays);
// The data of each tensor. What is no C-contiguous, aligned array of float32 is replaced in the list by one of the same
// values, where NumPy can see them without a guess. Throws ManifestMismatch naming the tensor otherwise.
std::vector<const float*> tensor_data(const Manifest& manifest, pybind11::list& arrays);
// {"named": bool, "tensors": [(name, shape, offset, count)], "size": floats}
pybind11::dict describe(const Manifest& manifest);

}  // namespace distnet::bindings
