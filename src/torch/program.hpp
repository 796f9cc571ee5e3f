// What trace.cpp, sizes.cpp, storages.cpp and program.cpp share: a TorchScript module in the making, and the closure that
// it is traced from.

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
  // The first `given` are the caller's examples. The others have the same free lengths in other sizes: they confirm or
  // refute what the examples say, and decide nothing.
  std::vector<Tensors> all;
  size_t given;
};

// Traces `closure` once for all inputs into a graph that holds for other sizes too. `check` sees its constants as the
// closure has them.
std::shared_ptr<torch::jit::Graph> trace_inputs(torch::jit::Module &module, const Inputs &inputs, const Closure &closure,
                                                const std::function<void(const torch::jit::Graph &)> &check);

// Throws where the graph has memory of one of these tensors as a constant: of one that is not exported, or of one that is.
void check_constants(const torch::jit::Graph &graph, const Tensors &not_exported, const torch::jit::Module &exported);

// Merges the graphs of one closure for several inputs: numbers that follow the sizes of the inputs are computed from
// them, in the first graph, which is returned. Throws where the graphs differ in anything else.
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

// How many bytes the variables take in a file.
uint64_t variable_bytes(const torch::jit::Module &module);
