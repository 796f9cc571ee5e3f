// What the C++ files that read and write tensors share.

#pragma once

#define AT_PER_OPERATOR_HEADERS
#include "guard.hpp"

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/impl/COW.h>
#include <torch/csrc/autograd/variable.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

namespace tcp {

// The modes in which a tensor can be written in place: without gradients, and in inference mode if it was created there.
struct Writing {
  c10::NoGradGuard no_grad;
  std::optional<c10::InferenceMode> inference;
  explicit Writing(const at::Tensor &tensor) {
    if (tensor.is_inference())
      inference.emplace(true);
  }
};

// Returns the version counter, or -1 for a tensor created in inference mode, which has none.
inline int64_t version(const at::Tensor &tensor) {
  return tensor.is_inference() ? -1 : int64_t(tensor.unsafeGetTensorImpl()->version_counter().current_version());
}

inline void bump_version(const at::Tensor &tensor) {
  if (!tensor.is_inference())
    tensor.unsafeGetTensorImpl()->bump_version();
}

// Tensors that a kernel writes to. Some kernels do not increment the version counters, so this does.
struct Written {
  std::vector<at::Tensor> tensors;
  std::vector<int64_t> versions;
  void add(const at::Tensor &tensor) {
    tensors.push_back(tensor);
    versions.push_back(version(tensor));
  }
  ~Written() {
    for (size_t i = 0; i < tensors.size(); i++)
      if (version(tensors[i]) == versions[i])
        bump_version(tensors[i]);
  }
};

// Returns whether libtorch has arithmetic for elements of this type. It has none for the floating-point types of 8 and fewer
// bits, although they may require a gradient.
inline bool has_arithmetic(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 || type == at::kFloat || type == at::kDouble ||
         at::isComplexType(type);
}

inline bool is_strided_memory(const at::Tensor &t) {
  return t.defined() && t.layout() == at::kStrided && !t.is_nested() && !t.is_quantized() && !t.is_meta() &&
         t.has_storage() && !t.is_conj() && !t.is_neg();
}

// Copies copy-on-write memory now, so that a later write does not exchange it.
inline void unshare(c10::StorageImpl &storage) {
  if (c10::impl::cow::is_cow_data_ptr(storage._mutable_data_ptr_no_checks()))
    storage.mutable_data();
}

// Returns a number that changes when the tensor gets other memory, another shape, type or device, or is frozen; 0 if that
// cannot be determined.
uint64_t fingerprint(const at::Tensor &tensor) noexcept;

// Called on this thread, if it is set, when the memory of a watched storage is requested for writing, as `data_ptr` does.
extern thread_local void (*on_request)();

// Watches a storage in CPU memory until its memory is requested once.
void watch(c10::StorageImpl &storage);

// Prefetches an object.
template <class T> void prefetch(const T *object) {
  const char *begin = reinterpret_cast<const char *>(object);
  for (size_t at = 0; at < sizeof(T); at += 64)
    __builtin_prefetch(begin + at);
  __builtin_prefetch(begin + sizeof(T) - 1);
}

// Prefetches the version counter of a tensor.
inline void prefetch_counter(const c10::TensorImpl &object) {
  // `VariableVersion` consists of one pointer to the counter.
  static_assert(sizeof(c10::VariableVersion) == sizeof(void *));
  const void *counter;
  memcpy(&counter, &object.version_counter(), sizeof counter);
  if (counter)
    __builtin_prefetch(static_cast<const char *>(counter) + 16);
}

// Calls `visit` with every place and tensor. The parts of a tensor are spread over memory. They are prefetched some tensors
// ahead, so that the cache misses of several tensors overlap.
template <class At, class Visit> void for_each_ahead(size_t n, const At &at, const Visit &visit) {
  constexpr size_t HANDLE = 24, OBJECT = 16, PARTS = 8;
  for (size_t i = 0; i < n; i++) {
    if (i + HANDLE < n)
      __builtin_prefetch(&at(i + HANDLE));
    if (i + OBJECT < n)
      prefetch(at(i + OBJECT).unsafeGetTensorImpl());
    if (i + PARTS < n && at(i + PARTS).defined()) {
      const c10::TensorImpl &object = *at(i + PARTS).unsafeGetTensorImpl();
      if (object.has_storage())
        prefetch(object.unsafe_storage().unsafeGetStorageImpl());
      prefetch_counter(object);
      if (const auto *autograd = object.autograd_meta())
        prefetch(static_cast<const torch::autograd::AutogradMeta *>(autograd));
    }
    visit(i, at(i));
  }
}

} // namespace tcp

using namespace tcp;
