// What trace.cpp, sizes.cpp, storages.cpp and program.cpp share: a TorchScript module under construction, and the
// closure that it is traced from.

#pragma once

#include "guard.hpp"

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

// A TorchScript module, behind the pointer that Rust holds.
struct tcp_program {
  torch::jit::Module module;
};

using Tensors = std::vector<at::Tensor>;

// The live model's closure: tensors in, tensors out.
using Closure = std::function<Tensors(const Tensors &)>;

// The inputs that a closure is traced with.
struct Inputs {
  std::vector<std::string> names;
  // The first `given` are the caller's examples. The others vary the free sizes. They confirm or refute what the examples
  // suggest, and do not decide anything.
  std::vector<Tensors> all;
  size_t given;
};

// Traces `closure` with all inputs into one graph that is valid for other sizes too. `check` receives its constants as the
// closure has them.
std::shared_ptr<torch::jit::Graph> trace_inputs(torch::jit::Module &module, const Inputs &inputs, const Closure &closure,
                                                const std::function<void(const torch::jit::Graph &)> &check);

// Throws if a constant of the graph has memory of one of these tensors, exported or not.
void check_constants(const torch::jit::Graph &graph, const Tensors &not_exported, const torch::jit::Module &exported);

// Merges the graphs of one closure for several inputs: numbers that follow the sizes of the inputs are computed from
// them, in the first graph, which is returned. Throws if the graphs differ in anything else.
std::shared_ptr<torch::jit::Graph> follow_sizes(const std::vector<std::shared_ptr<torch::jit::Graph>> &graphs,
                                                const Inputs &inputs);

// Calls `visit` with every variable's name and tensor, whether it is a parameter, and the object and slot that has it.
using VisitVariable = std::function<void(const std::string &name, const at::Tensor &tensor, bool is_parameter,
                                         const c10::intrusive_ptr<c10::ivalue::Object> &object, size_t slot)>;
void each_variable(const torch::jit::Module &module, const std::string &prefix, const VisitVariable &visit);

// Constants that are a small part of their storage become copies: a file has whole storages.
void shrink_constants(torch::jit::Graph &graph);

// While it lives, the module's variables that are a small part of their storage are copies.
class ShrunkVariables {
public:
  explicit ShrunkVariables(const torch::jit::Module &module);
  ~ShrunkVariables();
  ShrunkVariables(const ShrunkVariables &) = delete;
  ShrunkVariables &operator=(const ShrunkVariables &) = delete;

private:
  struct Slot {
    c10::intrusive_ptr<c10::ivalue::Object> object;
    size_t place;
    at::Tensor tensor;
  };
  std::vector<Slot> slots_;
};

// Returns the bytes of the variables in a file.
uint64_t variable_bytes(const torch::jit::Module &module);
