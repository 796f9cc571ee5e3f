// A file contains the whole storage of each of its tensors. A tensor that is only a small part of its storage is copied before,
// so that the file does not contain the rest.

#include "program.hpp"

#include <torch/csrc/jit/ir/constants.h>

#include <map>
#include <unordered_map>

namespace {

using torch::jit::Module;

// Returns the number of elements from the first one of a tensor to its last in memory.
int64_t span(const at::Tensor &tensor) {
  int64_t span = tensor.numel() > 0;
  for (int64_t dim = 0; dim < tensor.dim() && span > 0; dim++)
    span += (tensor.size(dim) - 1) * tensor.stride(dim);
  return span;
}

bool has_memory(const at::Tensor &tensor) {
  return tensor.defined() && tensor.layout() == at::kStrided && tensor.has_storage() && !tensor.is_quantized();
}

// Returns the bytes of a copy in a storage of its own.
uint64_t bytes_alone(const at::Tensor &tensor) {
  return uint64_t(std::min(tensor.numel(), span(tensor))) * tensor.element_size();
}

bool is_part(const at::Tensor &tensor) { return bytes_alone(tensor) < tensor.storage().nbytes(); }

// Copies the elements to a storage of their own. An expanded tensor stays expanded.
at::Tensor alone(const at::Tensor &tensor) {
  const at::Tensor plain = tensor.detach();
  if (plain.numel() <= span(plain))
    return plain.clone();
  return plain.as_strided({span(plain)}, {1}).clone().as_strided(plain.sizes(), plain.strides(), 0);
}

// A range of elements of a storage.
using View = std::tuple<const void *, int64_t, std::vector<int64_t>, std::vector<int64_t>, at::ScalarType>;

View view(const at::Tensor &tensor) {
  return {tensor.storage().data(), tensor.storage_offset(), tensor.sizes().vec(), tensor.strides().vec(),
          tensor.scalar_type()};
}

// Tells which views of the module's variables are copied: those that do not overlap others in their storage, and that are
// together less than all of it.
std::map<View, bool> copied(const Module &module) {
  std::map<const void *, std::map<View, at::Tensor>> storages;
  each_variable(module, "", [&](const std::string &, const at::Tensor &tensor, bool, const auto &, size_t) {
    if (has_memory(tensor))
      storages[tensor.storage().data()].emplace(view(tensor), tensor);
  });
  std::map<View, bool> copied;
  for (const auto &[data, views] : storages) {
    uint64_t bytes = 0, whole = 0;
    std::map<uint64_t, uint64_t> ranges;
    bool overlap = false;
    for (const auto &[key, tensor] : views) {
      bytes += bytes_alone(tensor);
      whole = tensor.storage().nbytes();
      const uint64_t first = uint64_t(tensor.storage_offset()) * tensor.element_size();
      const uint64_t last = first + uint64_t(span(tensor)) * tensor.element_size();
      auto after = ranges.lower_bound(first);
      overlap |= after != ranges.end() && after->first < last;
      overlap |= after != ranges.begin() && std::prev(after)->second > first;
      ranges[first] = last;
    }
    for (const auto &[key, tensor] : views)
      copied[key] = !overlap && bytes < whole;
  }
  return copied;
}

} // namespace

void each_variable(const Module &module, const std::string &prefix, const VisitVariable &visit) {
  auto object = module._ivalue();
  const auto &type = object->type();
  for (size_t slot = 0; slot < type->numAttributes(); slot++) {
    const std::string name = prefix + type->getAttributeName(slot);
    const auto value = object->getSlot(slot);
    if (type->getAttribute(slot)->is_module())
      each_variable(value.toModule(), name + ".", visit);
    else if (value.isTensor() && (type->is_parameter(slot) || type->is_buffer(slot)))
      visit(name, value.toTensor(), type->is_parameter(slot), object, slot);
  }
}

void shrink_constants(torch::jit::Graph &graph) {
  for (auto *node : graph.nodes()) {
    auto value = node->kind() == torch::jit::prim::Constant ? torch::jit::toIValue(node->output()) : std::nullopt;
    if (value && value->isTensor() && has_memory(value->toTensor()) && is_part(value->toTensor()))
      node->t_(at::attr::value, alone(value->toTensor()));
  }
}

ShrunkVariables::ShrunkVariables(const Module &module) {
  const auto which = copied(module);
  std::map<View, at::Tensor> copies;
  each_variable(module, "", [&](const std::string &, const at::Tensor &tensor, bool, const auto &object, size_t slot) {
    if (has_memory(tensor) && which.at(view(tensor)))
      slots_.push_back({object, slot, tensor});
  });
  try {
    for (auto &slot : slots_) {
      // Tied variables remain one tensor.
      auto &copy = copies[view(slot.tensor)];
      if (!copy.defined())
        copy = alone(slot.tensor).set_requires_grad(slot.tensor.requires_grad());
      slot.object->setSlot(slot.place, copy);
    }
  } catch (...) {
    for (auto &slot : slots_)
      slot.object->setSlot(slot.place, slot.tensor);
    throw;
  }
}

ShrunkVariables::~ShrunkVariables() {
  for (auto &slot : slots_)
    slot.object->setSlot(slot.place, slot.tensor);
}

uint64_t variable_bytes(const Module &module) {
  const auto which = copied(module);
  std::map<const void *, uint64_t> storages;
  std::map<View, uint64_t> copies;
  each_variable(module, "", [&](const std::string &, const at::Tensor &tensor, bool, const auto &, size_t) {
    if (!has_memory(tensor))
      return;
    if (which.at(view(tensor)))
      copies[view(tensor)] = bytes_alone(tensor);
    else
      storages[tensor.storage().data()] = tensor.storage().nbytes();
  });
  uint64_t bytes = 0;
  for (const auto &[data, taken] : storages)
    bytes += taken;
  for (const auto &[key, taken] : copies)
    bytes += taken;
  return bytes;
}
