// Tracing: a closure over the live model becomes a graph that reads the variables from the module by their names.

// libtorch is built with it. Without it, `at::RecordFunction` has another member and refuses to return its inputs.
#ifndef NDEBUG
#define NDEBUG
#endif

#include "program.hpp"
#include "tensors.hpp"

#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>
#include <torch/csrc/jit/passes/shape_analysis.h>

#include <array>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

namespace {

using torch::jit::Graph;
using torch::jit::IValue;
using torch::jit::Node;

// Returns the constant argument of an operation, by its name in the schema.
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

// Returns whether an operation has an optional tensor argument.
bool has_tensor(const Node *node, const char *argument) {
  const auto *schema = node->maybeSchema();
  auto index = schema ? schema->argumentIndexWithName(argument) : std::nullopt;
  return index && !node->input(*index)->mustBeNone();
}

// Returns whether an operation draws random numbers with these arguments.
bool draws(const Node *node) {
  // Recurrent layers and attention have dropout of their own.
  return node->isNondeterministic() && !is_false(given(node, "train")) && !is_zero(given(node, "dropout")) &&
         !is_zero(given(node, "dropout_p")) && !is_zero(given(node, "p"));
}

// Refuses operations of training mode, which the exported program would go on with.
void check_evaluates(const Graph &graph) {
  for (const Node *node : graph.nodes()) {
    const std::string name = node->kind().toQualString();
    require(!draws(node),
            "the closure draws random numbers (" + name +
                "): an exported program evaluates. Give `train = false` to dropout and to layers that have it, and take "
                "random numbers as an input");
    // Without running statistics, evaluation uses those of the inputs too.
    require(!has_tensor(node, "running_mean") ||
                (!is_true(given(node, "training")) && !is_true(given(node, "use_input_stats"))),
            "the closure normalizes by the statistics of the batch, as in training (" + name +
                "): an exported program evaluates. Give `train = false` to `forward_t`");
  }
}

// While it lives, observes which operations of this thread hand numbers of a tensor to the closure, and whether the closure
// requests the memory of an input, or of what is computed (`copy_data`, `data_ptr`). What an operation reads internally does
// not count.
class Reads {
public:
  Reads() {
    first_ = nullptr;
    depth_ = 0;
    current_ = this;
    on_request = [] {
      if (depth_ == 0 && !first_)
        first_ = "`copy_data`, `data_ptr`, or another access to its memory";
    };
    auto callback =
        at::RecordFunctionCallback(&begin, &end).needsInputs(true).needsOutputs(true).scopes({at::RecordScope::FUNCTION});
    handle_ = at::addThreadLocalCallback(callback);
  }
  ~Reads() {
    at::removeCallback(handle_);
    on_request = nullptr;
    current_ = nullptr;
  }
  Reads(const Reads &) = delete;
  Reads &operator=(const Reads &) = delete;

  // Observes the memory of a tensor that nothing else uses.
  void add(const at::Tensor &tensor) {
    if (auto *storage = memory(tensor)) {
      storages_.emplace(storage, tensor.storage().getWeakStorageImpl());
      watch(*storage);
    }
  }

  // The first such operation, if any.
  static const char *first() { return first_; }

  // `Vec::try_from` and the like convert a tensor, and then read its memory. The trace has only the unused conversion.
  static void see(const Graph &graph, const std::unordered_set<const torch::jit::Value *> &outputs) {
    for (const Node *node : graph.nodes())
      if (!first_ && node->kind() == torch::jit::aten::to && !node->hasUses() && !outputs.count(node->output()))
        first_ = "`Vec::try_from`, or another conversion whose result no operation uses";
  }

private:
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction &function) {
    constexpr std::array<std::string_view, 5> READS{"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero",
                                                    "aten::equal", "aten::allclose"};
    if (depth_++ > 0)
      return nullptr;
    for (const auto &name : READS)
      if (!first_ && name == function.name())
        first_ = name.data();
    if (current_)
      current_->note_inputs(function);
    return nullptr;
  }
  static void end(const at::RecordFunction &function, at::ObserverContext *) {
    if (--depth_ == 0 && current_)
      current_->observe(function);
  }

  // Returns the storage of a tensor in CPU memory.
  static c10::StorageImpl *memory(const at::Tensor &tensor) {
    return tensor.defined() && tensor.is_cpu() && tensor.has_storage() ? tensor.storage().unsafeGetStorageImpl() : nullptr;
  }

  template <class Values, class Visit> static void each_tensor(const Values &values, const Visit &visit) {
    for (const IValue &value : values) {
      if (value.isTensor())
        visit(value.toTensor());
      else if (value.isTensorList())
        for (const at::Tensor &tensor : value.toTensorVector())
          visit(tensor);
    }
  }

  // The inputs are there before an operation only, the outputs after it.
  void note_inputs(const at::RecordFunction &function) {
    from_.clear();
    each_tensor(function.inputs(), [&](const at::Tensor &tensor) {
      if (tensor.defined())
        from_.emplace(memory(tensor), tensor.has_storage() ? tensor.storage() : c10::Storage());
    });
  }

  // Observes new memory that an operation has computed from tensors. A storage is observed until its memory is requested
  // once, which operations do as well. Memory that the closure has from outside, such as that of variables, is left alone.
  void observe(const at::RecordFunction &function) {
    for (const auto &[storage, held] : from_)
      if (storage && storages_.count(storage))
        watch(*storage);
    each_tensor(function.outputs(), [&](const at::Tensor &tensor) {
      auto *storage = memory(tensor);
      if (storage && (storages_.count(storage) || (!from_.empty() && !from_.count(storage))))
        add(tensor);
    });
    from_.clear();
  }

  static thread_local int depth_;
  static thread_local const char *first_;
  static thread_local Reads *current_;
  at::CallbackHandle handle_;
  // The storages of the inputs of the present operation.
  std::unordered_map<c10::StorageImpl *, c10::Storage> from_;
  // The observed storages. While a weak pointer exists, no other storage has this address.
  std::unordered_map<const c10::StorageImpl *, c10::weak_intrusive_ptr<c10::StorageImpl>> storages_;
};

thread_local int Reads::depth_ = 0;
thread_local const char *Reads::first_ = nullptr;
thread_local Reads *Reads::current_ = nullptr;

std::shared_ptr<Graph> trace_one(torch::jit::Module &module, const Inputs &inputs, const Tensors &example,
                                 const Closure &closure, Reads &reads) {
  std::unordered_set<const c10::TensorImpl *> variables;
  each_variable(module, "", [&](const std::string &, const at::Tensor &tensor, bool, const auto &, size_t) {
    variables.insert(tensor.unsafeGetTensorImpl());
  });
  torch::jit::Stack stack(example.begin(), example.end());
  const auto traced = [&](torch::jit::Stack given) {
    Tensors tensors;
    for (const auto &input : given) {
      tensors.push_back(input.toTensor());
      reads.add(tensors.back());
    }
    Tensors outputs = closure(tensors);
    // The output of a graph cannot be a variable of the module itself, nor a tensor that no operation created.
    const auto &tracing = torch::jit::tracer::getTracingState();
    std::unordered_set<const torch::jit::Value *> values;
    for (auto &output : outputs) {
      if (variables.count(output.unsafeGetTensorImpl()) || !tracing->hasValue(output))
        output = output.clone();
      values.insert(tracing->getValue(output));
    }
    Reads::see(*tracing->graph, values);
    if (outputs.size() == 1)
      return torch::jit::Stack{outputs[0]};
    return torch::jit::Stack{c10::ivalue::Tuple::create(std::vector<IValue>(outputs.begin(), outputs.end()))};
  };
  const auto no_name = [](const at::Tensor &) { return std::string(); };
  auto state = torch::jit::tracer::trace(std::move(stack), traced, no_name, true, false, &module, inputs.names).first;
  torch::jit::EliminateDeadCode(state->graph);
  return state->graph;
}

// A closure may change its inputs in place. The program changes copies of them instead of the caller's tensors.
void copy_changed_inputs(std::shared_ptr<Graph> &graph) {
  bool changes = false;
  for (const Node *node : graph->nodes())
    changes |= node->maybeSchema() && node->maybeSchema()->is_mutable();
  if (!changes)
    return;
  std::vector<torch::jit::Value *> changed;
  {
    torch::jit::AliasDb aliases(graph);
    for (size_t i = 1; i < graph->inputs().size(); i++)
      if (aliases.hasWriters(graph->inputs()[i]))
        changed.push_back(graph->inputs()[i]);
  }
  for (auto *input : changed) {
    torch::jit::WithInsertPoint at(*graph->nodes().begin());
    auto *copy = graph->insert(torch::jit::aten::clone, {input});
    input->replaceAllUsesWith(copy);
    copy->node()->replaceInput(0, input);
  }
}

// Returns the first and the last byte of a tensor's elements.
std::pair<const char *, const char *> range(const at::Tensor &tensor) {
  const auto *first = static_cast<const char *>(tensor.const_data_ptr());
  int64_t span = 1;
  for (int64_t dim = 0; dim < tensor.dim(); dim++)
    span += (tensor.size(dim) - 1) * tensor.stride(dim);
  return {first, first + span * tensor.element_size()};
}

bool share_memory(const at::Tensor &a, const at::Tensor &b) {
  if (!a.defined() || !b.defined() || !a.has_storage() || !b.has_storage() || a.numel() == 0 || b.numel() == 0)
    return false;
  const auto [a_first, a_last] = range(a);
  const auto [b_first, b_last] = range(b);
  return a_first < b_last && b_first < a_last;
}

} // namespace

std::shared_ptr<Graph> trace_inputs(torch::jit::Module &module, const Inputs &inputs, const Closure &closure,
                                    const std::function<void(const Graph &)> &check) {
  c10::NoGradGuard no_grad;
  std::vector<std::shared_ptr<Graph>> graphs;
  std::string reads;
  {
    Reads watch;
    for (const auto &example : inputs.all)
      graphs.push_back(trace_one(module, inputs, example, closure, watch));
    if (watch.first())
      reads = std::string("the closure reads a number out of a tensor (") + watch.first() +
              "), which the program would keep as it was for the first example. Compute with operations on tensors instead "
              "(`where`, masks); a number that depends on no input is read before the closure";
  }
  check_evaluates(*graphs[0]);
  std::shared_ptr<Graph> graph;
  try {
    graph = follow_sizes(graphs, inputs);
  } catch (const std::runtime_error &e) {
    if (reads.empty())
      throw;
    throw std::runtime_error(std::string(e.what()) + ". Also, " + reads);
  }
  require(reads.empty(), reads);
  check(*graph);
  copy_changed_inputs(graph);
  torch::jit::EliminateDeadCode(graph);
  // A trace records the sizes of its example, which the interpreter would take for fixed.
  torch::jit::EraseShapeInformation(graph);
  shrink_constants(*graph);
  graph->lint();
  return graph;
}

void check_constants(const Graph &graph, const Tensors &not_exported, const torch::jit::Module &exported) {
  for (const Node *node : graph.nodes()) {
    auto value = node->kind() == torch::jit::prim::Constant ? torch::jit::toIValue(node->output()) : std::nullopt;
    if (!value || !value->isTensor())
      continue;
    const at::Tensor constant = value->toTensor();
    for (const auto &tensor : not_exported)
      require(!share_memory(tensor, constant),
              "the closure uses a variable of the store that is not exported; export it too (`Export::under`)");
    each_variable(exported, "", [&](const std::string &name, const at::Tensor &tensor, bool, const auto &, size_t) {
      require(!share_memory(tensor, constant),
              "the closure uses a view of the variable `" + name +
                  "` that was made before (`tr`, `detach`, a slice …): the program would keep its present values as a "
                  "constant. Make the view inside of the closure");
    });
  }
}
