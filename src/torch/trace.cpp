// Tracing: a closure over the live model becomes a graph that reads the variables from the module by their names.

#include "program.hpp"

#include <c10/core/GradMode.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/shape_analysis.h>

#include <optional>

namespace {

using torch::jit::Graph;
using torch::jit::IValue;
using torch::jit::Node;

// What is given to an operation as a constant, under the name that its schema has for it.
std::optional<IValue> given(const Node *node, const char *argument) {
  const auto *schema = node->maybeSchema();
  if (!schema)
    return {};
  auto index = schema->argumentIndexWithName(argument);
  return index ? torch::jit::toIValue(node->input(*index)) : std::nullopt;
}

bool is_true(const std::optional<IValue> &value) { return value && value->isBool() && value->toBool(); }

bool is_false(const std::optional<IValue> &value) { return value && value->isBool() && !value->toBool(); }

bool is_zero(const std::optional<IValue> &value) { return value && value->isDouble() && value->toDouble() == 0; }

// Whether an operation draws random numbers with the arguments that it has.
bool draws(const Node *node) {
  // A recurrent layer may drop between its layers, attention may drop weights.
  return node->isNondeterministic() && !is_false(given(node, "train")) && !is_zero(given(node, "dropout")) &&
         !is_zero(given(node, "dropout_p")) && !is_zero(given(node, "p"));
}

// Refuses what belongs into training: it would go on in the exported program.
void check_evaluates(const Graph &graph) {
  for (const Node *node : graph.nodes()) {
    const std::string name = node->kind().toQualString();
    require(!draws(node),
            "the closure draws random numbers (" + name +
                "): an exported program evaluates. Give `train = false` to dropout and to layers that have it, and take "
                "random numbers as an input");
    require(!is_true(given(node, "training")) && !is_true(given(node, "use_input_stats")),
            "the closure normalizes by the statistics of the batch, as in training (" + name +
                "): an exported program evaluates. Give `train = false` to `forward_t`");
  }
}

std::shared_ptr<Graph> trace_one(torch::jit::Module &module, const Tensors &example, const Closure &closure,
                                 const std::vector<std::string> &names) {
  torch::jit::Stack stack(example.begin(), example.end());
  const auto traced = [&closure](torch::jit::Stack inputs) {
    Tensors tensors;
    for (const auto &input : inputs)
      tensors.push_back(input.toTensor());
    Tensors outputs = closure(tensors);
    if (outputs.size() == 1)
      return torch::jit::Stack{outputs[0]};
    return torch::jit::Stack{c10::ivalue::Tuple::create(std::vector<IValue>(outputs.begin(), outputs.end()))};
  };
  const auto no_name = [](const at::Tensor &) { return std::string(); };
  auto state = torch::jit::tracer::trace(std::move(stack), traced, no_name, true, false, &module, names).first;
  torch::jit::EliminateDeadCode(state->graph);
  return state->graph;
}

} // namespace

std::shared_ptr<Graph> trace_examples(torch::jit::Module &module, const std::vector<Tensors> &examples,
                                      const Closure &closure, const std::vector<std::string> &names) {
  c10::NoGradGuard no_grad;
  std::vector<std::shared_ptr<Graph>> graphs;
  for (const auto &example : examples)
    graphs.push_back(trace_one(module, example, closure, names));
  check_evaluates(*graphs[0]);
  auto graph = follow_sizes(graphs, examples, names);
  torch::jit::EliminateDeadCode(graph);
  // A trace knows the sizes of its example, and the interpreter would believe that they are always so.
  torch::jit::EraseShapeInformation(graph);
  graph->lint();
  return graph;
}

void check_constants(const Graph &graph, const Tensors &forbidden) {
  for (const Node *node : graph.nodes()) {
    auto value = node->kind() == torch::jit::prim::Constant ? torch::jit::toIValue(node->output()) : std::nullopt;
    if (!value || !value->isTensor() || !value->toTensor().has_storage())
      continue;
    for (const auto &tensor : forbidden)
      require(!tensor.has_storage() || tensor.storage().data() != value->toTensor().storage().data() ||
                  tensor.nbytes() == 0,
              "the closure uses a variable of the store that is not exported; export it too (`Export::under`)");
  }
}
