#include <array>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include <cxxabi.h>

#include "base/error.h"
#include "base/threads.h"
#include "bindings/module.h"
#include "group/coordinator_server.h"
#include "group/process_group.h"

namespace py = pybind11;

namespace distnet::bindings {
namespace {

// ---- names ----

template <typename Value>
Value value_of(const std::map<std::string, Value, std::less<>>& values, std::string_view name, const char* what) {
  const auto found = values.find(name);
  if (found == values.end()) {
    throw Error(ErrorCode::kConfig, std::string(what) + " '" + std::string(name) + "' is unknown");
  }
  return found->second;
}

OperationKind kind_of(std::string_view name) {
  static const auto kinds = [] {
    std::map<std::string, OperationKind, std::less<>> all;
    for (auto kind = OperationKind::kAllreduce; kind <= kLastOperationKind;
         kind = static_cast<OperationKind>(static_cast<int>(kind) + 1)) {
      all.emplace(kind_name(kind), kind);
    }
    return all;
  }();
  return value_of(kinds, name, "operation");
}

DType dtype_of(std::string_view name) {
  static const auto dtypes = [] {
    std::map<std::string, DType, std::less<>> all;
    for (auto dtype = DType::kUint8; dtype <= kLastDType; dtype = static_cast<DType>(static_cast<int>(dtype) + 1)) {
      all.emplace(dtype_name(dtype), dtype);
    }
    return all;
  }();
  return value_of(dtypes, name, "dtype");
}

Reduction reduction_of(std::string_view name) {
  static const auto reductions = [] {
    std::map<std::string, Reduction, std::less<>> all;
    for (auto each = Reduction::kSum; each <= kLastReduction;
         each = static_cast<Reduction>(static_cast<int>(each) + 1)) {
      all.emplace(reduction_name(each), each);
    }
    return all;
  }();
  return value_of(reductions, name, "reduction");
}

GroupTransport transport_of(std::string_view name) {
  static const std::map<std::string, GroupTransport, std::less<>> transports = {
      {"auto", GroupTransport::kAuto}, {"shm", GroupTransport::kShm}, {"tcp", GroupTransport::kTcp}};
  return value_of(transports, name, "transport");
}

// ---- memory of Python's objects ----

// What an operation reads or writes. It is held until the operation is done.
class Buffers {
 public:
  Buffers() = default;
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  ~Buffers() {  // with the GIL
    for (Py_buffer& view : views_) {
      PyBuffer_Release(&view);
    }
  }

  void reserve(std::size_t count) { views_.reserve(count); }
  // Throws ConfigError for an object without memory of that kind.
  std::span<std::byte> add(const py::handle& object, bool writable, const char* what) {
    Py_buffer& view = views_.emplace_back();
    const int flags = PyBUF_ND | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object.ptr(), &view, flags) != 0) {
      views_.pop_back();
      PyErr_Clear();
      throw Error(ErrorCode::kConfig, std::string(what) + " " + std::to_string(views_.size()) + " of type " +
                                          std::string(py::str(py::type::of(object).attr("__name__"))) +
                                          " is no C-contiguous" + (writable ? ", writable" : "") + " memory");
    }
    return {static_cast<std::byte*>(view.buf), static_cast<std::size_t>(view.len)};
  }

 private:
  std::vector<Py_buffer> views_;
};

// ---- the group and its operations ----

// Marks a thread while it calls back, or lets go of a callback. It may be one of the group's own, which cannot wait for
// itself to end.
class CallingBack {
 public:
  CallingBack() : before_(std::exchange(here, true)) {}
  CallingBack(const CallingBack&) = delete;
  CallingBack& operator=(const CallingBack&) = delete;
  ~CallingBack() { here = before_; }

  static thread_local bool here;

 private:
  const bool before_;
};
thread_local bool CallingBack::here = false;

// Operations whose handles Python has let go, with the memory that they use.
using Orphans = std::vector<std::pair<std::shared_ptr<Work>, std::unique_ptr<Buffers>>>;

// Ends a group on a thread that is none of its own. To be called with the GIL.
void end_elsewhere(Owned<ProcessGroup> group, Orphans orphans) {
  run_detached("ends a group", [ended = group.release(), memory = new Orphans(std::move(orphans))] {
    delete ended;  // without the GIL, which its threads may wait for
    if (!interpreter_is_ending()) {
      const GilTaken gil;
      delete memory;
    }
  });
}

// A group as Python holds it.
struct Group {
  Owned<ProcessGroup> group;
  py::object waiting;
  Interrupt stopped;
  Orphans orphans;

  Group(Owned<ProcessGroup> formed, py::object hears, Interrupt stops)
      : group(std::move(formed)), waiting(std::move(hears)), stopped(std::move(stops)) {}
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() {
    const bool own = group && group.get_deleter().process == getpid();
    bool ended = !own;
    try {
      ended = ended || (!CallingBack::here && stop_in_time());
    } catch (const std::exception&) {
      ended = false;  // a destructor throws nothing: another thread ends the group
    }
    if (!ended) {
      end_elsewhere(std::move(group), std::move(orphans));
    }
    group.reset();  // before the memory that its operations use
  }

  // Returns whether all of it has come to its end soon. Says after a while what it waits for.
  bool stop_in_time() {
    for (const double seconds : {kQuietSeconds, ProcessGroup::kStopSeconds - kQuietSeconds}) {
      std::optional<std::string> waits_for;
      {
        const GilReleased released;
        waits_for = group->stop(Deadline::after(seconds));
      }
      if (!waits_for) {
        return true;
      }
      say_stuck(*waits_for);
    }
    return false;
  }
  void say_stuck(const std::string& waits_for) {
    if (waiting.is_none()) {
      return;
    }
    try {
      waiting.attr("heard")(text_of("rank " + std::to_string(group->rank()) + " of group '" + group->name() +
                                    "' has ended, but " + waits_for + " has not; let callbacks return"));
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("the end of a group");
    }
  }

  void forget_orphans() {
    std::erase_if(orphans, [](const auto& orphan) { return orphan.first->done(); });
  }
  // What a wait looks at about once an interval. To be called with the GIL; what it returns, without.
  Interrupt look() {
    return [this, signals = check_signals_and(stopped)] {
      if (signals) {
        signals();
      }
      if (const std::optional<std::string> notice = group->take_notice()) {
        const GilTaken gil;
        if (!waiting.is_none()) {
          waiting.attr("heard")(text_of(*notice));
        }
      }
    };
  }
};

struct Handle {
  std::shared_ptr<Group> group;
  std::shared_ptr<Work> work;
  std::unique_ptr<Buffers> buffers;

  Handle(std::shared_ptr<Group> of, std::shared_ptr<Work> begun, std::unique_ptr<Buffers> used)
      : group(std::move(of)), work(std::move(begun)), buffers(std::move(used)) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (buffers && !work->done()) {
      group->orphans.emplace_back(work, std::move(buffers));
    }
  }
};

std::shared_ptr<Group> form(const std::string& address, const std::string& name, std::uint32_t rank, std::uint32_t size,
                            double timeout, const std::string& transport, const py::object& waiting,
                            const py::object& stop) {
  GroupOptions options{address, name, rank, size, timeout, transport_of(transport), {}};
  if (!waiting.is_none()) {
    options.heard = [&waiting](const std::string& text) {
      const py::gil_scoped_acquire gil;
      waiting.attr("heard")(text_of(text));
    };
  }
  const Interrupt stopped = ends_with(stop);
  const Interrupt interrupt = check_signals_and(stopped);
  Owned<ProcessGroup> group;
  {
    const GilReleased released;
    group = Owned<ProcessGroup>(new ProcessGroup(options, interrupt));
  }
  return std::make_shared<Group>(std::move(group), waiting, stopped);
}

std::unique_ptr<Handle> begin(const std::shared_ptr<Group>& self, const std::string& kind, const py::list& inputs,
                              const std::optional<py::list>& outputs, const std::string& dtype,
                              std::vector<std::int64_t> shape, const std::string& reduction, std::uint32_t root,
                              double prescale, double postscale, std::vector<std::uint64_t> splits, std::string name,
                              std::uint64_t tag, double timeout, bool at_once, bool takes_any) {
  ProcessGroup::Call call;
  Operation& operation = call.operation;
  operation.kind = kind_of(kind);
  operation.dtype = dtype_of(dtype);
  operation.reduction = reduction_of(reduction);
  operation.root = root;
  operation.prescale = prescale;
  operation.postscale = postscale;
  operation.shape = std::move(shape);
  operation.splits = std::move(splits);
  operation.takes_any = takes_any;
  operation.name = std::move(name);
  call.tag = tag;
  call.timeout_s = timeout;
  call.at_once = at_once;
  auto buffers = std::make_unique<Buffers>();
  buffers->reserve(inputs.size() + (outputs ? outputs->size() : 0));
  for (const py::handle& input : inputs) {
    call.operands.inputs.emplace_back(buffers->add(input, false, "input"));
  }
  for (const py::handle& output : outputs.value_or(py::list())) {
    call.operands.outputs.push_back(buffers->add(output, true, "output"));
  }
  self->forget_orphans();
  std::shared_ptr<Work> work;
  {
    const Interrupt interrupt = self->look();
    const GilReleased released;
    work = self->group->begin(std::move(call), interrupt);
  }
  return std::make_unique<Handle>(self, std::move(work), std::move(buffers));
}

void wait(Handle& handle, double timeout) {
  bool done = handle.work->done();
  if (!done) {
    const Interrupt interrupt = handle.group->look();
    const GilReleased released;
    done = handle.work->wait(Deadline::after(timeout), interrupt);
  }
  if (!done) {
    throw Error(ErrorCode::kDeadlineExceeded,
                "the operation has not ended within the time that this wait was given; "
                "it goes on");
  }
  static_cast<void>(handle.work->result());  // throws what it ended with
  handle.buffers.reset();
}

// The memory of a result, as bytes; the work keeps it.
py::object output_of(const Handle& handle) {
  const Result& result = handle.work->result();
  if (!result.has_output || result.output.data() == nullptr) {
    return py::none();
  }
  const auto* const owner = new std::shared_ptr<Work>(handle.work);
  const py::capsule keeps(owner, [](void* pointer) { delete static_cast<std::shared_ptr<Work>*>(pointer); });
  // The result is this operation's alone, so Python may write to it.
  return py::array(py::dtype::of<std::uint8_t>(), {static_cast<py::ssize_t>(result.output.size())},
                   result.output.data(), keeps);
}

// Calls a function of Python. Where the interpreter ends meanwhile, older Pythons end the thread by unwinding its stack, and
// what is let go of on the way needs the GIL: it stops here for good instead. See GilReleased.
PyObject* call_or_stop_for_good(PyObject* function) {
  try {
    return PyObject_CallNoArgs(function);
  } catch (abi::__forced_unwind&) {
    while (true) {
      sleep_for(std::chrono::hours{1});
    }
  }
}

// It is called on a thread of the engine's own, which has nothing to say to an interpreter that is ending.
void add_done_callback(Handle& handle, py::function callback) {
  auto held = std::shared_ptr<py::function>(new py::function(std::move(callback)), [](py::function* function) {
    if (!interpreter_is_ending()) {
      const py::gil_scoped_acquire gil;
      const CallingBack calling;  // it may hold the last reference to the group
      delete function;
    }
  });
  const GilReleased released;
  handle.work->when_done([held = std::move(held)] {
    if (interpreter_is_ending()) {
      return;
    }
    const py::gil_scoped_acquire gil;
    const CallingBack calling;
    if (PyObject* const result = call_or_stop_for_good(held->ptr()); result != nullptr) {
      Py_DECREF(result);
    } else {
      py::error_already_set().discard_as_unraisable("a callback of an operation of a group");
    }
  });
}

template <typename Call>
auto released(Group& group, const Call& call) {
  const Interrupt interrupt = group.look();
  const GilReleased gil;
  return call(interrupt);
}

}  // namespace

void bind_group(py::module_& module) {
  py::class_<CoordinatorServer, Owned<CoordinatorServer>>(module, "GroupCoordinator",
                                                          "Brings the members of groups of ranks together.")
      .def(py::init([](const std::string& address) {
             const Address listen = parse_address(address);
             const GilReleased released;
             return Owned<CoordinatorServer>(new CoordinatorServer(listen));
           }),
           py::arg("address"))
      .def_property_readonly("address", &CoordinatorServer::address)
      .def("stop", &CoordinatorServer::stop, py::arg("patience"), py::call_guard<py::gil_scoped_release>());

  py::class_<Handle>(module, "Work", "An operation of a group of ranks that was begun.")
      .def("done", [](const Handle& handle) { return handle.work->done(); })
      .def("wait", &wait, py::arg("timeout"))
      .def("add_done_callback", &add_done_callback, py::arg("callback"))
      .def_property_readonly("output", &output_of)
      .def_property_readonly("dtype", [](const Handle& handle) { return dtype_name(handle.work->result().dtype); })
      .def_property_readonly("shape",
                             [](const Handle& handle) { return py::tuple(py::cast(handle.work->result().shape)); })
      .def_property_readonly("rows", [](const Handle& handle) { return handle.work->result().rows; })
      .def_property_readonly("last_rank", [](const Handle& handle) { return handle.work->result().last_rank; });

  py::class_<Group, std::shared_ptr<Group>>(module, "ProcessGroup", "A member of a group of ranks.")
      .def(py::init(&form), py::arg("address"), py::arg("name"), py::arg("rank"), py::arg("size"), py::arg("timeout"),
           py::arg("transport"), py::arg("waiting") = py::none(), py::arg("stop") = py::none())
      .def_property_readonly("rank", [](const Group& self) { return self.group->rank(); })
      .def_property_readonly("size", [](const Group& self) { return self.group->size(); })
      .def_property_readonly("name", [](const Group& self) { return self.group->name(); })
      .def_property_readonly("generation", [](const Group& self) { return self.group->generation(); })
      .def_property_readonly("transport", [](const Group& self) { return self.group->transport(); })
      .def_property_readonly("closed", [](const Group& self) { return self.group->closed(); })
      .def("begin", &begin, py::arg("kind"), py::arg("inputs"), py::arg("outputs"), py::kw_only(),
           py::arg("dtype") = "uint8", py::arg("shape") = std::vector<std::int64_t>(), py::arg("reduction") = "sum",
           py::arg("root") = 0, py::arg("prescale") = 1.0, py::arg("postscale") = 1.0,
           py::arg("splits") = std::vector<std::uint64_t>(), py::arg("name") = "", py::arg("tag") = 0,
           py::arg("timeout") = 30.0, py::arg("inline") = false, py::arg("takes_any") = false)
      .def("close",
           [](Group& self) {
             if (CallingBack::here) {
               throw Error(ErrorCode::kConfig,
                           "close() in a callback of an operation would wait for the thread that it runs on; close the "
                           "group elsewhere, or abandon() it");
             }
             released(self, [&](const Interrupt& interrupt) { self.group->close(interrupt); });
           })
      .def("abandon", [](Group& self) {
        const GilReleased gil;
        self.group->abandon();
      });
}

}  // namespace distnet::bindings
