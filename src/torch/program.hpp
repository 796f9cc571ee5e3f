// What trace.cpp and program.cpp share: a TorchScript module in the making, and the closure that it is traced from.

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

// Traces `closure` once for every example into a graph that holds for other sizes too:.
std::shared_ptr<torch::jit::Graph> trace_examples(torch::jit::Module &module, const std::vector<Tensors> &examples,
                                                  const Closure &closure, const std::vector<std::string> &names);

// Throws where the graph has one of these tensors as a constant.
void check_constants(const torch::jit::Graph &graph, const Tensors &forbidden);

// Merges the graphs of one closure for several examples: numbers that follow the sizes of the inputs are computed from
// them, in the first graph, which is returned. Throws where the graphs differ in anything else.
std::shared_ptr<torch::jit::Graph> follow_sizes(const std::vector<std::shared_ptr<torch::jit::Graph>> &graphs,
                                                const std::vector<Tensors> &examples,
                                                const std::vector<std::string> &names);
