// A trace has the sizes of its inputs as plain numbers. This file compares the traces of one closure for inputs of different
// sizes. A number that differs between them is replaced by the only expression of the inputs' sizes that gives it in all
// traces. If several expressions do, or if anything else differs, the export fails: a program is right or refused.

#include "expressions.hpp"
#include "program.hpp"

#include <ATen/ops/equal.h>
#include <torch/csrc/jit/ir/constants.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <sstream>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace {

using torch::jit::Graph;
using torch::jit::IValue;
using torch::jit::Node;
using torch::jit::Value;

// The sizes that differ between the examples. Sizes that are equal in all examples count as one, and a program refuses
// inputs in which they are not equal (`same_lengths` in saved_model.json).
std::vector<Size> varying_sizes(const Inputs &inputs) {
  std::vector<Size> found;
  const auto &first = inputs.all[0];
  for (size_t input = 0; input < first.size(); input++) {
    for (int64_t dim = 0; dim < first[input].dim(); dim++) {
      Numbers values;
      for (const auto &tensors : inputs.all)
        values.push_back(tensors[input].size(dim));
      bool varies = false, known = false;
      for (size_t k = 0; k < inputs.given; k++)
        varies |= values[k] != values[0];
      for (const auto &size : found)
        known |= size.values == values;
      if (varies && !known)
        found.push_back({input, dim, values});
    }
  }
  return found;
}

template <class Number> std::string list(const std::vector<Number> &numbers) {
  std::ostringstream text;
  for (size_t k = 0; k < numbers.size(); k++)
    text << (k == 0 ? "" : k + 1 == numbers.size() ? " and " : ", ") << numbers[k];
  return text.str();
}

std::string text(const IValue &value) {
  std::ostringstream text;
  if (value.isTensor())
    text << "a tensor " << value.toTensor().sizes();
  else
    text << value;
  return text.str();
}

bool same_tensor(const at::Tensor &a, const at::Tensor &b) {
  if (!a.defined() || !b.defined())
    return a.defined() == b.defined();
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes())
    return false;
  at::Tensor left = a.detach().cpu().contiguous(), right = b.detach().cpu().contiguous();
  return left.nbytes() == 0 || memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

bool same(const IValue &a, const IValue &b) {
  if (a.isTensor() && b.isTensor())
    return same_tensor(a.toTensor(), b.toTensor());
  if (a.isDouble() && b.isDouble()) {
    double left = a.toDouble(), right = b.toDouble();
    return memcmp(&left, &right, sizeof left) == 0;
  }
  if (a.tagKind() != b.tagKind())
    return false;
  return text(a) == text(b);
}

// Describes where in the program a value is used, as far as a trace tells.
std::string used_by(const Value *value) {
  for (const auto &use : value->uses()) {
    if (use.user->kind() == torch::jit::prim::ListConstruct)
      return used_by(use.user->output());
    return std::string("in ") + use.user->kind().toQualString();
  }
  return "nowhere";
}

// Returns a whole number, also if it is written as a float.
std::optional<int64_t> whole(const IValue &value) {
  if (value.isInt())
    return value.toInt();
  if (value.isDouble() && std::floor(value.toDouble()) == value.toDouble() && std::abs(value.toDouble()) < 1e15)
    return int64_t(value.toDouble());
  return {};
}

// Returns the shapes of one of the inputs, for an error.
std::string shapes(const Inputs &inputs, size_t k) {
  std::ostringstream text;
  for (size_t i = 0; i < inputs.names.size(); i++)
    text << (i == 0 ? "" : ", ") << "`" << inputs.names[i] << "` " << inputs.all[k][i].sizes();
  return text.str();
}

// Returns the dimension of an operation's first output that is how many elements or rows were selected by the data, if there is
// one.
std::optional<size_t> dim_by_data(const Node *node) {
  const std::string_view name = node->kind().toQualString();
  for (const std::string_view selects : {"aten::masked_select", "aten::nonzero", "aten::argwhere", "aten::_unique", "aten::_unique2",
                                         "aten::unique_consecutive", "aten::bincount"})
    if (name == selects)
      return 0;
  if (node->kind() != at::aten::index)
    return {};
  // Of its indices, masks select by data.
  const auto indices = node->input(1)->node()->inputs();
  for (size_t dim = 0; dim < indices.size(); dim++) {
    const auto type = indices[dim]->type()->cast<c10::TensorType>();
    const auto scalar = type ? type->scalarType() : std::nullopt;
    if (scalar == at::kBool || scalar == at::kByte)
      return dim;
  }
  return {};
}

// Returns a size of a value in a trace.
std::optional<int64_t> size_of(const Value *value, size_t dim) {
  const auto type = value->type()->cast<c10::TensorType>();
  const auto sizes = type ? type->sizes().concrete_sizes() : std::nullopt;
  return sizes && dim < sizes->size() ? std::optional<int64_t>((*sizes)[dim]) : std::nullopt;
}

class Merger {
public:
  Merger(std::shared_ptr<Graph> graph, const Inputs &inputs)
      : graph_(std::move(graph)), inputs_(inputs), sizes_(varying_sizes(inputs)) {}

  // An operation selects so many elements or rows in each of the traces, by their data.
  void selects(const Node *node, Numbers counts) { selected_.emplace_back(node->kind().toQualString(), std::move(counts)); }

  // `values` are the values of a constant in each of the traces.
  void constant(Node *node, const std::vector<IValue> &values) {
    const std::string where = used_by(node->output());
    bool equal = true;
    Numbers numbers;
    for (size_t k = 0; k < inputs_.given; k++) {
      equal &= same(values[k], values[0]);
      if (auto number = whole(values[k]))
        numbers.push_back(*number);
    }
    if (equal) {
      stays(values, where);
      return;
    }
    require(numbers.size() == inputs_.given,
            "the closure computes with a value that differs between the examples, outside of tensors: " +
                text(values[0]) + " for the first, " + text(values[inputs_.given - 1]) + " for the last, " + where +
                ". A trace would keep the first for good; compute it with operations on the input tensors");
    must_not_be_selected(numbers, values, where);
    const Expression chosen = choose(numbers, where);
    confirm(chosen, values, where);
    torch::jit::WithInsertPoint at(*graph_->nodes().begin());
    Value *computed = compute(chosen);
    if (values[0].isDouble())
      computed = graph_->insert(at::aten::Float, {computed});
    node->output()->replaceAllUsesWith(computed);
  }

private:
  // A value that is the same in all examples is a constant, unless other inputs or sizes refute that.
  void stays(const std::vector<IValue> &values, const std::string &where) {
    for (size_t k = inputs_.given; k < values.size(); k++)
      if (!same(values[k], values[0]))
        throw std::runtime_error(
            "the closure computes with a value that is the same in all examples, " + text(values[0]) + " " + where +
            ", and is " + text(values[k]) + " for inputs made from them, " + shapes(inputs_, k) +
            ": it depends on sizes or data in a way that the examples do not show. Give one more example, of these sizes "
            "say; where it depends on data, compute it with operations on the input tensors");
    const auto number = whole(values[0]);
    if (!number)
      return;
    // 6 may be a size of 2 and then 3, times one of 3 and then 2.
    const int n = int(sizes_.size());
    for (int i = 0; i < n; i++)
      for (int j = i; j < n; j++) {
        if (j > i) {
          must_differ(*number, Expression{{i, j}}, values, where);
          must_differ(*number, Expression{{i}, 1, 1, false, j}, values, where);
        }
        for (int k = j; k < n; k++)
          if (k > i)
            must_differ(*number, Expression{{i, j, k}}, values, where);
      }
  }

  // Throws if the number is that of what an operation selects in every trace. Where everything is selected, it is a function
  // of sizes as well.
  void must_not_be_selected(const Numbers &numbers, const std::vector<IValue> &values, const std::string &where) const {
    for (const auto &[operation, counts] : selected_) {
      bool differs = false;
      for (size_t k = 0; k < values.size(); k++)
        differs |= whole(values[k]) != counts[k];
      require(differs, "the number " + list(numbers) + " " + where + " is how many elements or rows " + operation +
                           " has selected by the data, which a program would take for a function of the inputs' sizes. Compute "
                           "it with operations on tensors, such as the sum of a mask; if it is a size of an input, give one "
                           "more example, in which fewer are selected");
    }
  }

  // Throws if the number in the values, a constant, could also be that expression of sizes.
  void must_differ(int64_t number, const Expression &other, const std::vector<IValue> &values,
                   const std::string &where) const {
    for (size_t k = 0; k < values.size(); k++)
      if (other.value(sizes_of(sizes_, k)) != number)
        return;
    throw std::runtime_error("the number " + text(values[0]) + " " + where + " could be a constant as well as " +
                             describe(other) + "; give one more example, in which that is another number");
  }

  // Returns the only expression that gives the examples' numbers.
  Expression choose(const Numbers &numbers, const std::string &where) {
    auto found = fitting(numbers, sizes_, inputs_.given);
    for (int kind = 0; kind < KINDS; kind++) {
      if (found[kind].empty())
        continue;
      const Expression chosen = found[kind][0];
      if (found[kind].size() > 1)
        ambiguous(numbers, where, chosen, found[kind][1]);
      require(kind != AFFINE || inputs_.given > 2,
              "the number " + list(numbers) + " " + where + " could be " + describe(chosen) +
                  ", but any two numbers could be; give one more example, with sizes that vary in another way");
      // All kinds compete: the inputs of other sizes refute most that fit by chance. Where there are none
      // (`panic = "abort"`), nothing is refuted.
      for (int other = kind + 1; other < KINDS; other++)
        for (const auto &rival : found[other])
          if (!refuted(rival, chosen))
            ambiguous(numbers, where, chosen, rival);
      return chosen;
    }
    throw std::runtime_error("the number " + list(numbers) + " " + where +
                             " differs between the examples, and is no simple function of the inputs' sizes: it "
                             "depends on their data, or on a size in a way that a trace cannot hold. Compute it "
                             "with operations on the input tensors");
  }

  // Returns whether other sizes distinguish the two.
  bool refuted(const Expression &rival, const Expression &chosen) const {
    for (size_t k = inputs_.given; k < inputs_.all.size(); k++)
      if (rival.value(sizes_of(sizes_, k)) != chosen.value(sizes_of(sizes_, k)))
        return true;
    return false;
  }

  // Throws if other inputs refute the expression.
  void confirm(const Expression &chosen, const std::vector<IValue> &values, const std::string &where) const {
    for (size_t k = inputs_.given; k < values.size(); k++) {
      const int64_t expected = chosen.value(sizes_of(sizes_, k));
      const auto is = whole(values[k]);
      require(is && *is == expected, "the number " + text(values[0]) + " " + where + " is " + describe(chosen) +
                                         " in all examples, but " + text(values[k]) + " and not " +
                                         std::to_string(expected) + " for inputs made from them, " + shapes(inputs_, k) +
                                         ". Give one more example, of these sizes say; where the number depends on "
                                         "data, compute it with operations on the input tensors");
    }
  }

  [[noreturn]] void ambiguous(const Numbers &numbers, const std::string &where, const Expression &one,
                              const Expression &other) const {
    throw std::runtime_error("the number " + list(numbers) + " " + where + " could be " + describe(one) +
                             " as well as " + describe(other) + "; give one more example, with sizes that vary in another way" +
                             decider(one, other));
  }

  // Returns an example that would distinguish the two: the last one, with one size changed.
  std::string decider(const Expression &one, const Expression &other) const {
    auto sizes = sizes_of(sizes_, inputs_.given - 1);
    for (int i = 0; i < int(sizes.size()); i++)
      for (int more : {1, 2, 3}) {
        auto changed = sizes;
        changed[i] += more;
        if (one.value(changed) != other.value(changed))
          return ": the last one with " + std::to_string(changed[i]) + " for " + describe(i) + " would decide";
      }
    return "";
  }

  Value *size(int place) {
    const Size &size = sizes_[place];
    // The first input of the graph is the module.
    return graph_->insert(at::aten::size, {graph_->inputs().at(size.input + 1), size.dim});
  }

  // Returns whether a traced input leaves a remainder, which shows how the division is rounded.
  bool rounding_is_known(const Expression &e) const {
    for (size_t k = 0; k < inputs_.all.size(); k++) {
      auto whole = e;
      whole.divisor = 1;
      if (whole.value(sizes_of(sizes_, k)) % e.divisor != 0)
        return true;
    }
    return false;
  }

  // Makes the program fail if a division leaves a remainder, which it does in no example.
  void require_no_remainder(const Expression &e, Value *dividend) {
    Value *remainder = graph_->insert(at::aten::remainder, {dividend, e.divisor});
    Node *branch = graph_->insertNode(graph_->create(torch::jit::prim::If, {graph_->insert(at::aten::eq, {remainder, 0})}, 0));
    branch->addBlock();
    torch::jit::WithInsertPoint at(branch->addBlock());
    graph_->insert(torch::jit::prim::RaiseException,
                   {describe(e) + " leaves a remainder, which it does in no example of the export; export with one that does"});
  }

  Value *compute(const Expression &e) {
    Value *result = size(e.factors[0]);
    for (size_t i = 1; i < e.factors.size(); i++)
      result = graph_->insert(at::aten::mul, {result, size(e.factors[i])});
    if (e.scale != 1)
      result = graph_->insert(at::aten::mul, {result, e.scale});
    if (e.divisor != 1) {
      if (!rounding_is_known(e))
        require_no_remainder(e, result);
      if (e.up)
        result = graph_->insert(at::aten::add, {result, e.divisor - 1});
      result = graph_->insert(at::aten::floordiv, {result, e.divisor});
    }
    if (e.summand)
      result = graph_->insert(at::aten::add, {result, size(*e.summand)});
    if (e.offset != 0)
      result = graph_->insert(at::aten::add, {result, e.offset});
    return result;
  }

  std::string describe(int place) const {
    const Size &size = sizes_[place];
    return "size " + std::to_string(size.dim) + " of `" + inputs_.names[size.input] + "`";
  }

  std::string describe(const Expression &e) const {
    std::string text = e.scale == 1 ? "" : std::to_string(e.scale) + " times ";
    for (size_t i = 0; i < e.factors.size(); i++)
      text += (i == 0 ? "" : " times ") + describe(e.factors[i]);
    if (e.divisor != 1)
      text += " divided by " + std::to_string(e.divisor) + (e.up ? ", rounded up" : "");
    if (e.summand)
      text += " plus " + describe(*e.summand);
    if (e.offset != 0)
      text += (e.offset < 0 ? " minus " : " plus ") + std::to_string(std::abs(e.offset));
    return text;
  }

  std::shared_ptr<Graph> graph_;
  const Inputs &inputs_;
  std::vector<Size> sizes_;
  // The operations that select by data, with how many elements or rows in each of the traces.
  std::vector<std::pair<std::string, Numbers>> selected_;
};

[[noreturn]] void different(const Inputs &inputs, size_t k, const Node *first, const Node *other) {
  auto name = [](const Node *node) { return node ? std::string(node->kind().toQualString()) : "nothing more"; };
  const bool given = k < inputs.given;
  const std::string which = given ? "another" : "inputs made from them, " + shapes(inputs, k) + ",";
  const std::string advice = given ? "" : ". Where those sizes shall not be possible, keep them fixed: the same in all examples";
  if (first && other && first->kind() == other->kind() && first->kind() == torch::jit::prim::ListUnpack &&
      first->outputs().size() != other->outputs().size())
    throw std::runtime_error("the closure takes a tensor apart into " + std::to_string(first->outputs().size()) +
                             " pieces for the first example and " + std::to_string(other->outputs().size()) + " for " + which +
                             " (`split`, `chunk`, `unbind`): a program has a fixed number of pieces. Split over a length that "
                             "is fixed, or into a fixed number of pieces with `narrow`" +
                             advice);
  throw std::runtime_error(
      "the closure does different things for different examples: " + name(first) + " for the first, " + name(other) +
      " for " + which + " at the same place. It has an `if`, or a loop, that depends on the inputs' data or sizes, which a "
      "trace cannot hold: it would always do what it did for the first. Export the part before and the part after as "
      "signatures of their own and leave the decision to the caller, or write it with tensor operations such as `where`" +
      advice);
}

std::vector<Node *> nodes(Graph &graph) {
  std::vector<Node *> all;
  for (Node *node : graph.nodes())
    all.push_back(node);
  return all;
}

} // namespace

std::shared_ptr<Graph> follow_sizes(const std::vector<std::shared_ptr<Graph>> &graphs, const Inputs &inputs) {
  Merger merger(graphs[0], inputs);
  std::vector<std::vector<Node *>> all;
  for (const auto &graph : graphs)
    all.push_back(nodes(*graph));
  // For every value of the first graph, the values at the same place in the others.
  std::vector<std::unordered_map<const Value *, const Value *>> twins(graphs.size());
  const auto pair = [&](size_t k, at::ArrayRef<Value *> mine, at::ArrayRef<Value *> other, Node *a, Node *b) {
    if (mine.size() != other.size())
      different(inputs, k, a, b);
    for (size_t i = 0; i < mine.size(); i++)
      twins[k][mine[i]] = other[i];
  };
  const auto inputs_agree = [&](size_t k, const Node *a, const Node *b) {
    if (a->inputs().size() != b->inputs().size())
      different(inputs, k, a, b);
    for (size_t i = 0; i < a->inputs().size(); i++)
      if (twins[k].at(a->inputs()[i]) != b->inputs()[i])
        different(inputs, k, a, b);
  };
  for (size_t k = 1; k < graphs.size(); k++)
    pair(k, graphs[0]->inputs(), graphs[k]->inputs(), nullptr, nullptr);
  std::vector<std::pair<Node *, std::vector<IValue>>> constants;
  for (size_t i = 0; i < all[0].size(); i++) {
    Node *node = all[0][i];
    std::vector<IValue> values;
    if (node->kind() == torch::jit::prim::Constant)
      values.push_back(torch::jit::toIValue(node->output()).value_or(IValue()));
    for (size_t k = 1; k < graphs.size(); k++) {
      Node *other = i < all[k].size() ? all[k][i] : nullptr;
      if (!other || other->kind() != node->kind())
        different(inputs, k, node, other);
      inputs_agree(k, node, other);
      if (node->kind() == torch::jit::prim::GetAttr && node->s(at::attr::name) != other->s(at::attr::name))
        different(inputs, k, node, other);
      if (!values.empty())
        values.push_back(torch::jit::toIValue(other->output()).value_or(IValue()));
      pair(k, node->outputs(), other->outputs(), node, other);
    }
    if (!values.empty())
      constants.emplace_back(node, std::move(values));
  }
  for (size_t k = 1; k < graphs.size(); k++) {
    if (all[k].size() > all[0].size())
      different(inputs, k, nullptr, all[k][all[0].size()]);
    inputs_agree(k, graphs[0]->return_node(), graphs[k]->return_node());
  }
  for (const Node *node : all[0]) {
    const auto dim = dim_by_data(node);
    Numbers counts;
    for (size_t k = 0; dim && k < graphs.size(); k++)
      if (const auto count = size_of(k == 0 ? node->outputs()[0] : twins[k].at(node->outputs()[0]), *dim))
        counts.push_back(*count);
    if (dim && counts.size() == graphs.size())
      merger.selects(node, std::move(counts));
  }
  for (auto &[node, values] : constants)
    merger.constant(node, values);
  return graphs[0];
}
