// TorchScript programs: a module whose parameters and buffers have the variables' names and whose methods are traced
// closures; written, read, and run. As in tensors.cpp, every function returns null or a message, and tensors cross
// the boundary as pointers to `at::Tensor`. The declarations for Rust are in program.rs.

#include "program.hpp"

#include <caffe2/serialize/read_adapter_interface.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <map>
#include <optional>

namespace {

using torch::jit::IValue;
using torch::jit::Module;

constexpr char TRAINING[] = "training";

// Creates a module of a new type.
Module new_module(const std::shared_ptr<torch::jit::CompilationUnit> &unit, const char *name) {
  Module module(c10::QualifiedName(name), unit, /*shouldMangle=*/true);
  // An attribute that `eval()` and `train()` of Python set.
  module.register_attribute(TRAINING, c10::BoolType::get(), false);
  return module;
}

// Registers `encoder.gru.weight` as `weight` of `gru` of `encoder`.
void register_variable(Module module, const std::string &name, const at::Tensor &tensor, bool is_parameter) {
  std::string rest = name;
  for (size_t dot; (dot = rest.find('.')) != std::string::npos; rest = rest.substr(dot + 1)) {
    const std::string part = rest.substr(0, dot);
    require(!part.empty(), "a part of its name is empty, which TorchScript does not allow; give it a name");
    if (!module.hasattr(part))
      module.register_module(part, new_module(module._ivalue()->compilation_unit(), "__torch__.Component"));
    IValue child = module.attr(part);
    require(child.isModule(), "`" + part + "` is a variable and has variables below it, which TorchScript does not "
                                           "allow; rename one of them");
    module = child.toModule();
  }
  require(!rest.empty(), "a part of its name is empty, which TorchScript does not allow; give it a name");
  require(!module.hasattr(rest), "TorchScript has something else under this name; rename it");
  module.register_parameter(rest, tensor, /*is_buffer=*/!is_parameter);
}

// Returns the methods that are signatures.
torch::jit::Method method(const Module &module, const char *name) {
  auto found = module.find_method(name);
  require(found.has_value(), std::string("the program has no method `") + name + "`");
  return *found;
}

Tensors tensors_of(const IValue &result) {
  Tensors tensors;
  if (result.isTensor()) {
    tensors.push_back(result.toTensor());
    return tensors;
  }
  require(result.isTuple(), "the program gave neither a tensor nor a tuple of tensors");
  for (const auto &element : result.toTupleRef().elements()) {
    require(element.isTensor(), "the program gave a tuple with something that is no tensor");
    tensors.push_back(element.toTensor());
  }
  return tensors;
}

// Reads bytes through a function of Rust.
class Reader : public caffe2::serialize::ReadAdapterInterface {
public:
  using Read = int32_t (*)(void *data, uint64_t offset, void *buffer, size_t n);
  Reader(Read read, void *data, size_t size) : read_(read), data_(data), size_(size) {}
  size_t size() const override { return size_; }
  size_t read(uint64_t offset, void *buffer, size_t n, const char *) const override {
    if (offset >= size_)
      return 0;
    n = std::min<uint64_t>(n, size_ - offset);
    require(read_(data_, offset, buffer, n) == 0, "the file could not be read");
    return n;
  }

private:
  Read read_;
  void *data_;
  size_t size_;
};

// Removes the variables of a module while it lives.
class Emptied {
public:
  explicit Emptied(const Module &module) {
    each_variable(module, "", [this](const std::string &, const at::Tensor &tensor, bool,
                                     const c10::intrusive_ptr<c10::ivalue::Object> &object, size_t slot) {
      slots_.push_back({object, slot, tensor});
    });
    for (auto &slot : slots_)
      slot.object->setSlot(slot.place, at::Tensor(at::detail::empty_cpu({0}, at::kFloat)));
  }
  ~Emptied() {
    for (auto &slot : slots_)
      slot.object->setSlot(slot.place, slot.tensor);
  }

private:
  struct Slot {
    c10::intrusive_ptr<c10::ivalue::Object> object;
    size_t place;
    at::Tensor tensor;
  };
  std::vector<Slot> slots_;
};

// Returns the module as it will be read from a file, over the same tensors, without copying them.
Module reread(const Module &module) {
  std::string bytes;
  {
    Emptied emptied(module);
    torch::jit::ExportModule(module, [&bytes](const void *data, size_t n) {
      bytes.append(static_cast<const char *>(data), n);
      return n;
    });
  }
  Reader::Read read = [](void *data, uint64_t offset, void *buffer, size_t n) -> int32_t {
    memcpy(buffer, static_cast<std::string *>(data)->data() + offset, n);
    return 0;
  };
  Module again = torch::jit::load(std::make_shared<Reader>(read, &bytes, bytes.size()));
  std::map<std::string, at::Tensor> tensors;
  each_variable(module, "", [&](const std::string &name, const at::Tensor &tensor, bool, const auto &, size_t) {
    tensors[name] = tensor;
  });
  each_variable(again, "", [&](const std::string &name, const at::Tensor &, bool, const auto &object, size_t slot) {
    auto found = tensors.find(name);
    require(found != tensors.end(), "TorchScript reads the variable `" + name + "` back under another name");
    object->setSlot(slot, found->second);
    tensors.erase(found);
  });
  require(tensors.empty(), "TorchScript does not read all variables back");
  return again;
}

} // namespace

extern "C" {

// A closure of Rust. Returns 0 once it has pushed its outputs. Takes ownership of the inputs.
using tcp_closure = int32_t (*)(void *data, at::Tensor **inputs, size_t n, Tensors *outputs);
using tcp_read = Reader::Read;
using tcp_write = int32_t (*)(void *data, const void *bytes, size_t n);
using tcp_visit_variable = void (*)(void *data, const char *name, size_t length, at::Tensor *tensor, uint8_t is_parameter);

void tcp_push(Tensors *tensors, const at::Tensor *tensor) { tensors->push_back(*tensor); }

// Creates a module of these variables, without methods. Sets `culprit` to the variable that it cannot have.
char *tcp_program_new(const char *const *names, const size_t *lengths, const at::Tensor *const *tensors,
                      const uint8_t *are_parameters, size_t n, size_t *culprit, tcp_program **out) {
  return guarded([&] {
    auto unit = std::make_shared<torch::jit::CompilationUnit>();
    auto program = std::make_unique<tcp_program>(tcp_program{new_module(unit, "__torch__.SavedModel")});
    for (size_t i = 0; i < n; i++) {
      *culprit = i;
      register_variable(program->module, std::string(names[i], lengths[i]), *tensors[i], are_parameters[i]);
    }
    *culprit = n;
    *out = program.release();
  });
}

void tcp_program_free(tcp_program *program) { delete program; }

// Adds a method: the closure, traced with `n_examples` times `n_inputs` tensors. The first `n_given` examples are the
// caller's. The closure must not use `others`.
char *tcp_program_trace(tcp_program *program, const char *name, const char *const *input_names,
                        const at::Tensor *const *inputs, size_t n_inputs, size_t n_examples, size_t n_given,
                        const at::Tensor *const *others, size_t n_others, tcp_closure closure, void *data) {
  return guarded([&] {
    auto &module = program->module;
    require(!module.hasattr(name) && !module.find_method(name), "the program has something of this name already");
    Inputs traced{{input_names, input_names + n_inputs}, std::vector<Tensors>(n_examples), n_given};
    for (size_t i = 0; i < n_examples * n_inputs; i++)
      traced.all[i / n_inputs].push_back(*inputs[i]);
    const auto call = [&](const Tensors &tensors) {
      std::vector<at::Tensor *> owned;
      for (const auto &tensor : tensors)
        owned.push_back(new at::Tensor(tensor));
      Tensors outputs;
      require(closure(data, owned.data(), owned.size(), &outputs) == 0, "the closure failed");
      return outputs;
    };
    Tensors not_exported;
    for (size_t i = 0; i < n_others; i++)
      not_exported.push_back(*others[i]);
    const auto check = [&](const torch::jit::Graph &graph) { check_constants(graph, not_exported, module); };
    auto graph = trace_inputs(module, traced, call, check);
    auto unit = module._ivalue()->compilation_unit();
    module.type()->addMethod(unit->create_function(c10::QualifiedName(*module.type()->name(), name), graph));
  });
}

// Returns the program as it will be read from a file, over the same variables.
char *tcp_program_reread(const tcp_program *program, tcp_program **out) {
  return guarded([&] { *out = new tcp_program{reread(program->module)}; });
}

char *tcp_program_write(const tcp_program *program, tcp_write write, void *data) {
  return guarded([&] {
    bool failed = false;
    ShrunkVariables shrunk(program->module);
    torch::jit::ExportModule(program->module, [&](const void *bytes, size_t n) {
      failed = failed || write(data, bytes, n) != 0;
      return n;
    });
    require(!failed, "the file could not be written");
  });
}

// Returns approximately how many bytes `tcp_program_write` will write.
char *tcp_program_bytes(const tcp_program *program, uint64_t *bytes) {
  return guarded([&] {
    *bytes = variable_bytes(program->module);
    Emptied emptied(program->module);
    torch::jit::ExportModule(program->module, [bytes](const void *, size_t n) {
      *bytes += n;
      return n;
    });
  });
}

// Reads a program. Replaces the device `from` by `to` if they differ.
char *tcp_program_read(tcp_read read, void *data, size_t size, const char *from, const char *to, tcp_program **out) {
  return guarded([&] {
    auto program = std::make_unique<tcp_program>();
    program->module = torch::jit::load(std::make_shared<Reader>(read, data, size), at::Device(to));
    program->module.eval();
    if (std::string(from) != to)
      for (auto &method : program->module.get_methods())
        for (auto *node : torch::jit::toGraphFunction(method.function()).graph()->nodes())
          if (node->kind() == torch::jit::prim::Constant &&
              node->output()->type()->kind() == c10::TypeKind::DeviceObjType && node->s(at::attr::value) == from)
            node->s_(at::attr::value, to);
    *out = program.release();
  });
}

char *tcp_program_variables(const tcp_program *program, tcp_visit_variable visit, void *data) {
  return guarded([&] {
    each_variable(program->module, "", [&](const std::string &name, const at::Tensor &tensor, bool is_parameter,
                                           const c10::intrusive_ptr<c10::ivalue::Object> &, size_t) {
      visit(data, name.data(), name.size(), new at::Tensor(tensor), is_parameter);
    });
  });
}

// Returns the number of inputs of a method. Fails if there is no such method.
char *tcp_program_inputs(const tcp_program *program, const char *name, size_t *inputs) {
  return guarded([&] { *inputs = method(program->module, name).num_inputs() - 1; });
}

// Runs a method without optimizations, which would round differently from the live model.
char *tcp_program_run(const tcp_program *program, const char *name, const at::Tensor *const *inputs, size_t n,
                      Tensors **out) {
  return guarded([&] {
    torch::jit::GraphOptimizerEnabledGuard as_written(false);
    std::vector<IValue> stack;
    for (size_t i = 0; i < n; i++)
      stack.emplace_back(*inputs[i]);
    *out = new Tensors(tensors_of(method(program->module, name)(std::move(stack))));
  });
}

size_t tcp_tensors_len(const Tensors *tensors) { return tensors->size(); }

// Hands over a tensor, which the caller frees as tch does.
at::Tensor *tcp_tensors_take(Tensors *tensors, size_t i) { return new at::Tensor(std::move((*tensors)[i])); }

void tcp_tensors_free(Tensors *tensors) { delete tensors; }

} // extern "C"
