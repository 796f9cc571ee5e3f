// A trace holds the sizes of its example as plain numbers. Here the traces of one closure for examples of different
// sizes are laid side by side: where a number differs from trace to trace, the simplest expression of the inputs' sizes
// that gives it in all of them takes its place. Where anything else differs, the closure has done different things for
// different inputs, which no trace can hold, and that is said.

#include "program.hpp"

#include <ATen/ops/equal.h>
#include <torch/csrc/jit/ir/constants.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <sstream>
#include <unordered_map>
#include <utility>

namespace {

using torch::jit::Graph;
using torch::jit::IValue;
using torch::jit::Node;
using torch::jit::Value;
using Numbers = std::vector<int64_t>; // one for every example

// The size of an input, which differs between the examples.
struct Size {
  size_t input;
  int64_t dim;
  Numbers values;
};

// scale * a * b / divisor + c + offset, of sizes by their place; -1 for a factor or summand that is not there.
struct Expression {
  int a = -1, b = -1, c = -1;
  int64_t scale = 1, divisor = 1, offset = 0;
};

std::vector<Size> varying_sizes(const std::vector<Tensors> &examples) {
  std::vector<Size> found;
  for (size_t input = 0; input < examples[0].size(); input++) {
    for (int64_t dim = 0; dim < examples[0][input].dim(); dim++) {
      Numbers values;
      for (const auto &example : examples)
        values.push_back(example[input].size(dim));
      bool varies = false, known = false;
      for (auto value : values)
        varies |= value != values[0];
      // Two sizes that are equal in all examples are one: the batch of all inputs, say.
      for (const auto &size : found)
        known |= size.values == values;
      if (varies && !known)
        found.push_back({input, dim, values});
    }
  }
  return found;
}

// `wanted[k] == scale * base[k] + offset` for all k, in whole numbers.
std::optional<std::pair<int64_t, int64_t>> linear(const Numbers &wanted, const Numbers &base) {
  std::optional<int64_t> scale;
  for (size_t k = 1; k < base.size() && !scale; k++)
    if (base[k] != base[0]) {
      if ((wanted[k] - wanted[0]) % (base[k] - base[0]) != 0)
        return {};
      scale = (wanted[k] - wanted[0]) / (base[k] - base[0]);
    }
  if (!scale || *scale == 0)
    return {};
  int64_t offset = wanted[0] - *scale * base[0];
  for (size_t k = 0; k < base.size(); k++)
    if (wanted[k] != *scale * base[k] + offset)
      return {};
  return std::make_pair(*scale, offset);
}

Numbers zip(const Numbers &a, const Numbers &b, int64_t (*with)(int64_t, int64_t)) {
  Numbers result;
  for (size_t k = 0; k < a.size(); k++)
    result.push_back(with(a[k], b[k]));
  return result;
}

// All expressions of the simplest kind that there are for these numbers.
std::vector<Expression> simplest(const Numbers &wanted, const std::vector<Size> &sizes) {
  std::vector<Expression> equal, multiple, product, divided, shifted, sum, affine;
  for (int i = 0; i < int(sizes.size()); i++) {
    const Numbers &size = sizes[i].values;
    if (auto found = linear(wanted, size)) {
      auto [scale, offset] = *found;
      auto &kind = offset == 0 ? (scale == 1 ? equal : multiple) : scale == 1 ? shifted : affine;
      kind.push_back({i, -1, -1, scale, 1, offset});
    }
    if (auto found = linear(size, wanted); found && found->second == 0 && found->first > 1)
      divided.push_back({i, -1, -1, 1, found->first, 0});
    for (int j = i; j < int(sizes.size()); j++) {
      const Numbers &other = sizes[j].values;
      if (auto found = linear(wanted, zip(size, other, [](int64_t a, int64_t b) { return a * b; }));
          found && found->second == 0)
        product.push_back({i, j, -1, found->first, 1, 0});
      if (zip(size, other, [](int64_t a, int64_t b) { return a + b; }) == wanted && j != i)
        sum.push_back({i, -1, j, 1, 1, 0});
    }
  }
  for (const auto &kind : {equal, multiple, product, divided, shifted, sum, affine})
    if (!kind.empty())
      return kind;
  return {};
}

std::string list(const Numbers &numbers) {
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

// Where in the program something is, as well as a trace knows: what is computed with the value.
std::string used_by(const Value *value) {
  for (const auto &use : value->uses()) {
    if (use.user->kind() == torch::jit::prim::ListConstruct)
      return used_by(use.user->output());
    return std::string("in ") + use.user->kind().toQualString();
  }
  return "nowhere";
}

// A whole number, also one that is written as a float.
std::optional<int64_t> whole(const IValue &value) {
  if (value.isInt())
    return value.toInt();
  if (value.isDouble() && std::floor(value.toDouble()) == value.toDouble() && std::abs(value.toDouble()) < 1e15)
    return int64_t(value.toDouble());
  return {};
}

class Merger {
public:
  Merger(std::shared_ptr<Graph> graph, std::vector<Size> sizes, const std::vector<std::string> &names)
      : graph_(std::move(graph)), sizes_(std::move(sizes)), names_(names) {}

  // `values` are what a constant is in each of the traces.
  void constant(Node *node, const std::vector<IValue> &values) {
    bool equal = true;
    Numbers numbers;
    for (const auto &value : values) {
      equal &= same(value, values[0]);
      if (auto number = whole(value))
        numbers.push_back(*number);
    }
    if (equal)
      return;
    const std::string where = used_by(node->output());
    require(numbers.size() == values.size(),
            "the closure computes with a value that differs between the examples, outside of tensors: " +
                text(values[0]) + " for the first, " + text(values.back()) + " for the last, " + where +
                ". A trace would keep the first for good; compute it with operations on the input tensors");
    auto found = simplest(numbers, sizes_);
    require(!found.empty(), "the number " + list(numbers) + " " + where +
                                " differs between the examples, and is no simple function of the inputs' sizes: it "
                                "depends on their data, or on a size in a way that a trace cannot hold. Compute it "
                                "with operations on the input tensors");
    if (found.size() > 1)
      throw std::runtime_error("the number " + list(numbers) + " " + where + " could be " + describe(found[0]) +
                               " as well as " + describe(found[1]) +
                               "; give one more example, with sizes that vary in another way");
    torch::jit::WithInsertPoint at(*graph_->nodes().begin());
    Value *computed = compute(found[0]);
    if (values[0].isDouble())
      computed = graph_->insert(at::aten::Float, {computed});
    node->output()->replaceAllUsesWith(computed);
  }

private:
  Value *size(int place) {
    const Size &size = sizes_[place];
    // The first input of the graph is the module.
    return graph_->insert(at::aten::size, {graph_->inputs().at(size.input + 1), size.dim});
  }

  Value *compute(const Expression &e) {
    Value *result = size(e.a);
    if (e.b >= 0)
      result = graph_->insert(at::aten::mul, {result, size(e.b)});
    if (e.scale != 1)
      result = graph_->insert(at::aten::mul, {result, e.scale});
    if (e.divisor != 1)
      result = graph_->insert(at::aten::floordiv, {result, e.divisor});
    if (e.c >= 0)
      result = graph_->insert(at::aten::add, {result, size(e.c)});
    if (e.offset != 0)
      result = graph_->insert(at::aten::add, {result, e.offset});
    return result;
  }

  std::string describe(int place) const {
    const Size &size = sizes_[place];
    return "size " + std::to_string(size.dim) + " of `" + names_[size.input] + "`";
  }

  std::string describe(const Expression &e) const {
    std::string text = describe(e.a);
    if (e.scale != 1)
      text = std::to_string(e.scale) + " times " + text;
    if (e.b >= 0)
      text += " times " + describe(e.b);
    if (e.divisor != 1)
      text += " divided by " + std::to_string(e.divisor);
    if (e.c >= 0)
      text += " plus " + describe(e.c);
    if (e.offset != 0)
      text += " plus " + std::to_string(e.offset);
    return text;
  }

  std::shared_ptr<Graph> graph_;
  std::vector<Size> sizes_;
  const std::vector<std::string> &names_;
};

[[noreturn]] void different(const Node *first, const Node *other) {
  auto name = [](const Node *node) { return node ? std::string(node->kind().toQualString()) : "nothing more"; };
  throw std::runtime_error(
      "the closure does different things for different examples: " + name(first) + " for the first, " + name(other) +
      " for another at the same place. It has an `if`, or a loop, that depends on the inputs' data or sizes, which a trace "
      "cannot hold: it would always do what it did for the first. Export the part before and the part after as "
      "signatures of their own and leave the decision to the caller, or write it with tensor operations such as `where`");
}

std::vector<Node *> nodes(Graph &graph) {
  std::vector<Node *> all;
  for (Node *node : graph.nodes())
    all.push_back(node);
  return all;
}

} // namespace

std::shared_ptr<Graph> follow_sizes(const std::vector<std::shared_ptr<Graph>> &graphs,
                                    const std::vector<Tensors> &examples, const std::vector<std::string> &names) {
  Merger merger(graphs[0], varying_sizes(examples), names);
  std::vector<std::vector<Node *>> all;
  for (const auto &graph : graphs)
    all.push_back(nodes(*graph));
  // Of every value of the first graph, the one at the same place in each of the others.
  std::vector<std::unordered_map<const Value *, const Value *>> twins(graphs.size());
  const auto pair = [&](size_t k, at::ArrayRef<Value *> mine, at::ArrayRef<Value *> other, Node *a, Node *b) {
    if (mine.size() != other.size())
      different(a, b);
    for (size_t i = 0; i < mine.size(); i++)
      twins[k][mine[i]] = other[i];
  };
  const auto inputs_agree = [&](size_t k, const Node *a, const Node *b) {
    if (a->inputs().size() != b->inputs().size())
      different(a, b);
    for (size_t i = 0; i < a->inputs().size(); i++)
      if (twins[k].at(a->inputs()[i]) != b->inputs()[i])
        different(a, b);
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
        different(node, other);
      inputs_agree(k, node, other);
      if (node->kind() == torch::jit::prim::GetAttr && node->s(at::attr::name) != other->s(at::attr::name))
        different(node, other);
      if (!values.empty())
        values.push_back(torch::jit::toIValue(other->output()).value_or(IValue()));
      pair(k, node->outputs(), other->outputs(), node, other);
    }
    if (!values.empty())
      constants.emplace_back(node, std::move(values));
  }
  for (size_t k = 1; k < graphs.size(); k++) {
    if (all[k].size() > all[0].size())
      different(nullptr, all[k][all[0].size()]);
    inputs_agree(k, graphs[0]->return_node(), graphs[k]->return_node());
  }
  for (auto &[node, values] : constants)
    merger.constant(node, values);
  return graphs[0];
}
