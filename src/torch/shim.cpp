// What this crate needs of libtorch and tch does not reach: facts about a tensor, raw access to its memory, the
// generators' states, and an optimizer step as one call.
//
// Every function returns null, or a message that the caller frees with `tcp_free_message`: no C++ exception leaves
// this file. Tensors cross as pointers to `at::Tensor`, the same that tch holds. The declarations for Rust are in
// shim/mod.rs; the structs there and here must agree.

#define AT_PER_OPERATOR_HEADERS
#include "guard.hpp"

#include <ATen/Context.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/impl/COW.h>
#include <torch/csrc/autograd/variable.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace {

// In-place writes need no gradient, and those to a tensor of inference mode need that mode.
struct Writing {
  c10::NoGradGuard no_grad;
  std::optional<c10::InferenceMode> inference;
  explicit Writing(const at::Tensor &tensor) {
    if (tensor.is_inference())
      inference.emplace(true);
  }
};

// -1 for a tensor of inference mode, which keeps none.
int64_t version(const at::Tensor &tensor) {
  return tensor.is_inference() ? -1 : int64_t(tensor.unsafeGetTensorImpl()->version_counter().current_version());
}

void bump_version(const at::Tensor &tensor) {
  if (!tensor.is_inference())
    tensor.unsafeGetTensorImpl()->bump_version();
}

} // namespace

// ---------------------------------------------------------------------------------------------- tensors

// The numbers that dtype maps in tensor.rs.
static_assert(int(c10::ScalarType::Byte) == 0 && int(c10::ScalarType::Double) == 7 &&
              int(c10::ScalarType::ComplexFloat) == 9 && int(c10::ScalarType::Bool) == 11 &&
              int(c10::ScalarType::BFloat16) == 15 && int(c10::ScalarType::Float8_e5m2) == 23 &&
              int(c10::ScalarType::Float8_e4m3fn) == 24 && int(c10::ScalarType::Float8_e5m2fnuz) == 25 &&
              int(c10::ScalarType::Float8_e4m3fnuz) == 26 && int(c10::ScalarType::UInt16) == 27 &&
              int(c10::ScalarType::UInt32) == 28 && int(c10::ScalarType::UInt64) == 29 &&
              int(c10::ScalarType::Float8_e8m0fnu) == 44);

extern "C" {

struct tcp_info {
  const void *object;      // which tensor object (`TensorImpl`), whatever memory it shows
  const void *data;        // the first element
  const void *storage;     // the beginning of the memory that it may share with views
  const int64_t *sizes;    // these two are valid until the tensor is changed
  const int64_t *strides;
  int64_t dim;
  int64_t numel;
  int64_t element_size;
  int64_t storage_offset;
  int64_t span;            // bytes from the first to the last element
  int64_t version;         // -1: none is kept (inference mode)
  int32_t scalar_type;
  uint8_t defined;
  uint8_t plain;           // strided, neither quantized nor nested, and with memory: the fields above are all set
  uint8_t quantized;
  uint8_t cpu;
  uint8_t contiguous;
  uint8_t lazy;            // a conjugate or negative view: its memory holds other values than it shows
  uint8_t whole;           // its elements are all of its storage
  char dtype[24];
  char device[24];
  char layout[24];
};

void tcp_free_message(char *text) { free_message(text); }

char *tcp_tensor_info(const at::Tensor *tensor, tcp_info *info) {
  return guarded([&] {
    *info = tcp_info{};
    const at::Tensor &t = *tensor;
    info->defined = t.defined();
    if (!t.defined())
      return;
    info->object = t.unsafeGetTensorImpl();
    info->scalar_type = int32_t(t.scalar_type());
    info->quantized = t.is_quantized();
    info->cpu = t.is_cpu();
    info->version = version(t);
    strncpy(info->dtype, c10::toString(t.scalar_type()), sizeof info->dtype - 1);
    strncpy(info->device, t.is_cpu() ? "cpu" : t.device().str().c_str(), sizeof info->device - 1);
    info->plain = t.layout() == at::kStrided && !t.is_nested() && !t.is_quantized() && !t.is_meta() && t.has_storage();
    if (!info->plain) {
      std::ostringstream layout;
      layout << t.layout();
      strncpy(info->layout, t.is_nested() ? "Nested" : layout.str().c_str(), sizeof info->layout - 1);
      return;
    }
    info->data = t.const_data_ptr();
    info->storage = t.storage().data();
    info->storage_offset = t.storage_offset();
    info->sizes = t.sizes().data();
    info->strides = t.strides().data();
    info->dim = t.dim();
    info->numel = t.numel();
    info->element_size = t.element_size();
    info->contiguous = t.is_contiguous();
    info->lazy = t.is_conj() || t.is_neg();
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i)
      last += (t.size(i) - 1) * t.stride(i);
    info->span = t.numel() > 0 ? (last + 1) * int64_t(t.element_size()) : 0;
    info->whole = t.storage_offset() == 0 && t.is_non_overlapping_and_dense() && t.nbytes() == t.storage().nbytes();
  });
}

// Which tensor object it is; null for an undefined one.
const void *tcp_object(const at::Tensor *tensor) { return tensor->defined() ? tensor->unsafeGetTensorImpl() : nullptr; }

// How often the tensor was changed in place; -1 where nobody counts. Asked for every tensor at every save.
int64_t tcp_version(const at::Tensor *tensor) {
  try {
    return tensor->defined() ? version(*tensor) : -1;
  } catch (...) {
    return -1;
  }
}

// Copies what needs nothing but copying; false where there is more to it. For thousands of small tensors.
bool tcp_copy_plain(const at::Tensor *tensor, int32_t scalar_type, const uint64_t *sizes, size_t dim, void *out,
                    size_t bytes) {
  try {
    const at::Tensor &t = *tensor;
    if (!t.defined() || !t.is_cpu() || t.layout() != at::kStrided || t.is_nested() || t.is_quantized() ||
        !t.has_storage() || t.is_conj() || t.is_neg() || int32_t(t.scalar_type()) != scalar_type ||
        size_t(t.dim()) != dim || !t.is_contiguous() || t.nbytes() != bytes)
      return false;
    for (size_t i = 0; i < dim; ++i)
      if (uint64_t(t.size(int64_t(i))) != sizes[i])
        return false;
    const void *data = t.const_data_ptr();
    if (bytes > 0 && !data)
      return false;
    memcpy(out, data, bytes);
    return true;
  } catch (...) {
    return false;
  }
}

} // extern "C"

namespace {

uint64_t mixed(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
  return hash ^ hash >> 29;
}

// A number that moves when the tensor gets other memory, another shape, type or device, or is frozen; 0 where that cannot
// be told.
uint64_t fingerprint(const at::Tensor &t) {
  uint64_t hash = 0;
  const auto mix = [&hash](uint64_t value) { hash = mixed(hash, value); };
  try {
    if (!t.defined())
      return 0;
    mix(uint64_t(t.unsafeGetTensorImpl()));
    mix(uint64_t(t.scalar_type()) << 32 | uint64_t(uint8_t(t.device().type())) << 8 | uint8_t(t.device().index()));
    mix(uint64_t(t.requires_grad()) << 2 | uint64_t(t.is_conj()) << 1 | uint64_t(t.is_neg()));
    if (t.layout() == at::kStrided && t.has_storage()) {
      mix(uint64_t(t.storage().unsafeGetStorageImpl()));
      mix(uint64_t(t.const_data_ptr()));
      for (const auto size : t.sizes())
        mix(uint64_t(size));
      for (const auto stride : t.strides())
        mix(uint64_t(stride));
    }
  } catch (...) {
    return 0;
  }
  return hash;
}

// Fetches the memory that an object is in.
template <class T> void prefetch(const T *object) {
  const char *begin = reinterpret_cast<const char *>(object);
  for (size_t at = 0; at < sizeof(T); at += 64)
    __builtin_prefetch(begin + at);
  __builtin_prefetch(begin + sizeof(T) - 1);
}

// Fetches the counter of a tensor's versions.
void prefetch_counter(const c10::TensorImpl &object) {
  // It is behind the one pointer that this is.
  static_assert(sizeof(c10::VariableVersion) == sizeof(void *));
  const void *counter;
  memcpy(&counter, &object.version_counter(), sizeof counter);
  if (counter)
    __builtin_prefetch(static_cast<const char *>(counter) + 16);
}

// Calls `visit` with every place and tensor. What is known of a tensor is spread over memory: it is fetched some tensors
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

} // namespace

extern "C" {

uint64_t tcp_fingerprint(const at::Tensor *tensor) { return fingerprint(*tensor); }

void tcp_fingerprints(const at::Tensor *const *tensors, size_t n, uint64_t *out) {
  for_each_ahead(n, [&](size_t i) -> const at::Tensor & { return *tensors[i]; },
                 [&](size_t i, const at::Tensor &t) { out[i] = fingerprint(t); });
}

// One number for which tensor objects they are, in order.
uint64_t tcp_objects(const at::Tensor *const *tensors, size_t n) {
  constexpr size_t AHEAD = 16;
  uint64_t hash = n;
  for (size_t i = 0; i < n; i++) {
    if (i + AHEAD < n)
      __builtin_prefetch(tensors[i + AHEAD]);
    hash = mixed(hash, uint64_t(tensors[i]->unsafeGetTensorImpl()));
  }
  return hash;
}

// Tensors that are asked together at every save, while the training waits: thousands of them.
struct tcp_batch {
  std::vector<at::Tensor> tensors;
  // Of each its place among others, and whether it is a variable, of which `requires_grad` counts.
  std::vector<std::pair<size_t, bool>> places;
};

// As `Seen` in graph/group.rs.
struct tcp_seen {
  uint64_t fingerprint;
  uint64_t version;
  uint8_t says;
};

constexpr uint8_t SAYS_FINGERPRINT = 1, SAYS_VERSION = 2, SAYS_REQUIRES_GRAD = 4, REQUIRES_GRAD = 8;

tcp_batch *tcp_new_batch() { return new (std::nothrow) tcp_batch; }

void tcp_free_batch(tcp_batch *batch) { delete batch; }

char *tcp_join(tcp_batch *batch, const at::Tensor *tensor, bool is_variable, size_t place) {
  return guarded([&] {
    batch->places.reserve(batch->tensors.size() + 1);
    batch->tensors.push_back(*tensor);
    batch->places.emplace_back(place, is_variable);
  });
}

// The values, row-major in CPU memory; shares the tensor's own memory where that is so already.
char *tcp_on_cpu(const at::Tensor *tensor, at::Tensor **out) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    *out = new at::Tensor(tensor->detach().resolve_conj().resolve_neg().to(at::kCPU).contiguous());
  });
}

// The memory of a contiguous CPU tensor, for writing; `tcp_written` must follow. The version counter moves before the
// first write, and after the last one: whoever reads meanwhile sees it move.
char *tcp_open(const at::Tensor *tensor, void **data) {
  return guarded([&] {
    *data = tensor->mutable_data_ptr();
    bump_version(*tensor);
  });
}

// Tells autograd that the memory has changed.
char *tcp_written(const at::Tensor *tensor) {
  return guarded([&] { bump_version(*tensor); });
}

// Overwrites any tensor from row-major CPU memory, which must hold as many elements of its type.
char *tcp_fill(const at::Tensor *tensor, void *bytes) {
  return guarded([&] {
    Writing writing(*tensor);
    bump_version(*tensor);
    tensor->copy_(at::from_blob(bytes, tensor->sizes(), at::TensorOptions(tensor->scalar_type())));
  });
}

// A CPU tensor of zeros.
char *tcp_zeros(int32_t scalar_type, const int64_t *sizes, size_t dim, at::Tensor **out) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    *out = new at::Tensor(at::zeros(at::IntArrayRef(sizes, dim), at::TensorOptions(at::ScalarType(scalar_type))));
  });
}

// Zeros of the tensor's shape, type, device and layout.
char *tcp_zeros_like(const at::Tensor *tensor, at::Tensor **out) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    *out = new at::Tensor(at::zeros_like(*tensor));
  });
}

// ---------------------------------------------------------------------------------------------- pinned memory

} // extern "C"

namespace {

// What frees a storage's memory, shared: a storage that is given other memory, by `resize_` say, lets go of its part
// only. One is put between a storage and its memory when that is pinned for the first time, and stays there.
struct Allocation {
  std::atomic<size_t> owners;
  std::unique_ptr<void, c10::DeleterFnPtr> context;
  Allocation(std::unique_ptr<void, c10::DeleterFnPtr> &&memory) : owners(2), context(std::move(memory)) {}
};

void release(void *allocation) {
  auto *shared = static_cast<Allocation *>(allocation);
  if (shared->owners.fetch_sub(1, std::memory_order_acq_rel) == 1)
    delete shared;
}

// A part in the memory of a storage, for the caller to `release`; null where the storage does not own it, and so cannot
// free it either. The address of the memory is not touched, so that others may go on reading it.
Allocation *share(c10::StorageImpl &storage) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  at::DataPtr &memory = storage._mutable_data_ptr_no_checks();
  if (!memory.get_context())
    return nullptr;
  if (memory.get_deleter() == &release) {
    auto *shared = static_cast<Allocation *>(memory.get_context());
    shared->owners.fetch_add(1, std::memory_order_relaxed);
    return shared;
  }
  std::unique_ptr<void, c10::DeleterFnPtr> &&context = memory.move_context();
  auto *shared = new Allocation(std::move(context));
  context = std::unique_ptr<void, c10::DeleterFnPtr>(shared, &release);
  return shared;
}

// The memory that a tensor had, and the counter of its versions.
struct Pin {
  c10::Storage storage;
  Allocation *allocation = nullptr;
  c10::VariableVersion version;
  at::Tensor alias; // of that memory, where it is not to be read as it lies
  bool fixed = false; // the storage cannot be given other memory for as long as this lives
  ~Pin() {
    if (allocation)
      release(allocation);
    if (fixed)
      storage.unsafeGetStorageImpl()->set_resizable(true);
  }
};

// Memory that is a copy only once it is written to becomes one now, so that nobody exchanges it later.
void unshare(c10::StorageImpl &storage) {
  if (c10::impl::cow::is_cow_data_ptr(storage._mutable_data_ptr_no_checks()))
    storage.mutable_data();
}

// Returns when a range of memory may be written.
using Wait = void (*)(const void *data, size_t bytes);
std::atomic<Wait> wait_for_readers{nullptr};

// A storage's hook: libtorch calls it before it gives out the memory for writing, and takes it off afterwards. It changes
// nothing of the storage, so that any number of threads may be in it; nor does it matter if the storage has other memory by
// now, or if nobody reads any more.
void before_write(c10::StorageImpl *storage) {
  // What is done while waiting needs no memory for writing; were it to, it would wait for itself.
  thread_local bool waiting = false;
  const Wait wait = wait_for_readers.load(std::memory_order_acquire);
  if (waiting || !wait)
    return;
  waiting = true;
  wait(storage->_mutable_data_ptr_no_checks().get(), storage->nbytes());
  waiting = false;
}

bool is_strided_memory(const at::Tensor &t) {
  return t.defined() && t.layout() == at::kStrided && !t.is_nested() && !t.is_quantized() && !t.is_meta() &&
         t.has_storage() && !t.is_conj() && !t.is_neg();
}

} // namespace

extern "C" {

struct tcp_pinned {
  Pin *pin;         // null: the tensor is not of that type and shape, or has no memory of its own that it shows
  const void *data; // the first element
  uint64_t bytes;   // that all elements take
  uint8_t plain;    // row-major in CPU memory: to be read from `data` on
  uint8_t cpu;
};

// Takes hold of the memory that a tensor of this type and shape has now. It can be read from any thread until
// `tcp_unpin`, whatever is done with the tensor. On the CPU the allocation is shared. CUDA's allocator needs its own as it
// is: on other devices the storage is kept, and cannot be resized.
char *tcp_pin(const at::Tensor *tensor, int32_t scalar_type, const uint64_t *sizes, size_t dim, tcp_pinned *out) {
  return guarded([&] {
    *out = tcp_pinned{};
    const at::Tensor &t = *tensor;
    if (!is_strided_memory(t) || int32_t(t.scalar_type()) != scalar_type || size_t(t.dim()) != dim)
      return;
    for (size_t i = 0; i < dim; ++i)
      if (uint64_t(t.size(int64_t(i))) != sizes[i])
        return;
    auto pin = std::make_unique<Pin>();
    pin->storage = t.storage();
    c10::StorageImpl &storage = *pin->storage.unsafeGetStorageImpl();
    unshare(storage);
    if (t.is_cpu()) {
      pin->allocation = share(storage);
    } else if (storage.resizable()) {
      storage.set_resizable(false);
      pin->fixed = true;
    }
    if (!t.is_inference())
      pin->version = t.unsafeGetTensorImpl()->version_counter();
    out->data = t.const_data_ptr();
    out->bytes = t.nbytes();
    out->cpu = t.is_cpu();
    out->plain = t.is_cpu() && t.is_contiguous();
    if (out->bytes > 0 && !out->data)
      return;
    if (!out->plain)
      pin->alias = at::from_blob(const_cast<void *>(out->data), t.sizes(), t.strides(), [](void *) {},
                                 t.options().requires_grad(false), t.device());
    out->pin = pin.release();
  });
}

void tcp_unpin(Pin *pin) { delete pin; }

// What all tensors say of themselves now, to their places in `seen`. From now on libtorch calls `wait` before the next write
// to the storages of those that the first `n` places of `held` name, where these are CPU memory. The hook is never taken off
// from here, which other threads might see half done. A storage that has one already has this one; or one of somebody else,
// who is not disturbed.
void tcp_look(const tcp_batch *batch, const bool *held, size_t n, Wait wait, tcp_seen *seen) {
  if (n > 0)
    wait_for_readers.store(wait, std::memory_order_release);
  const auto &tensors = batch->tensors;
  for_each_ahead(tensors.size(), [&](size_t i) -> const at::Tensor & { return tensors[i]; },
                 [&](size_t i, const at::Tensor &t) {
                   const auto [place, is_variable] = batch->places[i];
                   tcp_seen &one = seen[place] = tcp_seen{0, 0, SAYS_FINGERPRINT};
                   try {
                     if (!t.defined())
                       return;
                     if (place < n && held[place] && is_strided_memory(t) && t.is_cpu()) {
                       c10::StorageImpl &storage = *t.storage().unsafeGetStorageImpl();
                       unshare(storage);
                       if (!storage.has_materializer())
                         storage.set_materializer(&before_write);
                     }
                     one.fingerprint = fingerprint(t);
                     if (!t.is_inference()) {
                       one.version = uint64_t(version(t));
                       one.says |= SAYS_VERSION;
                     }
                     const bool requires_grad = t.requires_grad();
                     if (is_variable && (!requires_grad || t.is_leaf()))
                       one.says |= SAYS_REQUIRES_GRAD | (requires_grad ? REQUIRES_GRAD : 0);
                   } catch (...) {
                     // What is not there is not said; where there is no hook, changes are detected.
                   }
                 });
}

// -1 where nobody counts.
int64_t tcp_pinned_version(const Pin *pin) { return pin->version.enabled() ? int64_t(pin->version.current_version()) : -1; }

// A row-major copy in CPU memory of pinned memory that is not plain.
char *tcp_read_pinned(const Pin *pin, at::Tensor **out) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    *out = new at::Tensor(pin->alias.to(at::kCPU).contiguous());
  });
}

// ---------------------------------------------------------------------------------------------- generators

char *tcp_count_generators(int32_t device_type, int64_t *count) {
  return guarded([&] {
    auto type = c10::DeviceType(device_type);
    if (type == at::kCPU)
      *count = 1;
    else if (type == at::kCUDA ? at::hasCUDA() : type == at::kMPS && at::hasMPS())
      *count = at::globalContext().getAcceleratorHooksInterface(type).deviceCount();
    else
      *count = 0;
  });
}

char *tcp_get_generator_state(int32_t device_type, int32_t index, at::Tensor **out) {
  return guarded([&] {
    at::Generator generator = at::globalContext().defaultGenerator(at::Device(c10::DeviceType(device_type), index));
    std::lock_guard<std::mutex> lock(generator.mutex());
    *out = new at::Tensor(generator.get_state());
  });
}

// Tries the state on a copy of the generator first, so that a state that is refused changes nothing.
char *tcp_set_generator_state(int32_t device_type, int32_t index, const at::Tensor *state) {
  return guarded([&] {
    at::Generator generator = at::globalContext().defaultGenerator(at::Device(c10::DeviceType(device_type), index));
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.clone().set_state(*state);
    generator.set_state(*state);
  });
}

// ---------------------------------------------------------------------------------------------- gradients

// Gradients become undefined, as in `torch::optim::Optimizer::zero_grad`.
char *tcp_zero_grad(at::Tensor *const *params, size_t n) {
  return guarded([&] {
    for (size_t i = 0; i < n; i++)
      params[i]->mutable_grad().reset();
  });
}

char *tcp_clip_grad_value(at::Tensor *const *params, size_t n, double max) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    for (size_t i = 0; i < n; i++)
      if (params[i]->grad().defined())
        params[i]->mutable_grad().clamp_(-max, max);
  });
}

// Scales all gradients so that their common L2 norm is at most `max`; gives the norm that they had.
char *tcp_clip_grad_norm(at::Tensor *const *params, size_t n, double max, double *total) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    *total = 0;
    std::vector<at::Tensor> norms;
    for (size_t i = 0; i < n; i++) {
      const at::Tensor &grad = params[i]->grad();
      if (grad.defined()) {
        at::Tensor norm = grad.norm();
        norms.push_back(norms.empty() ? norm : norm.to(norms[0].options()));
      }
    }
    if (norms.empty())
      return;
    *total = at::stack(norms).norm().item<double>();
    double scale = max / (*total + 1e-6);
    if (scale < 1)
      for (size_t i = 0; i < n; i++)
        if (params[i]->grad().defined())
          params[i]->mutable_grad().mul_(scale);
  });
}

// ---------------------------------------------------------------------------------------------- optimizer steps

// The gradient that a parameter was stepped with last: the tensor object, which the weak reference keeps from being
// taken for another one at its address, and how often it had been changed. Optimizers on several threads share it.
struct tcp_used {
  std::optional<c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>> grad;
  int64_t version = 0;
};

// Held while any of them is read or written.
std::mutex used_lock;

tcp_used *tcp_new_used() { return new (std::nothrow) tcp_used; }

void tcp_free_used(tcp_used *used) { delete used; }

void tcp_forget_used(tcp_used *used) {
  std::lock_guard<std::mutex> lock(used_lock);
  if (used)
    used->grad.reset();
}

// Notes the gradients of the parameters as used.
char *tcp_note_gradients(const at::Tensor *const *params, size_t n, tcp_used *const *used) {
  return guarded([&] {
    std::lock_guard<std::mutex> lock(used_lock);
    for (size_t i = 0; i < n; i++) {
      if (!used[i])
        throw std::bad_alloc();
      const at::Tensor &grad = params[i]->grad();
      used[i]->grad.reset();
      if (grad.defined()) {
        used[i]->grad.emplace(grad.getIntrusivePtr());
        used[i]->version = version(grad);
      }
    }
  });
}

// Of each parameter whether it has a gradient that no step has used. As in `for_each_ahead`, what is needed of the next
// ones is fetched meanwhile: for the gradients of thousands of parameters this is most of the time.
void tcp_unused_gradients(const at::Tensor *const *params, const tcp_used *const *used, size_t n, bool *unused) {
  constexpr size_t HANDLE = 32, OBJECT = 24, AUTOGRAD = 16, GRADIENT = 8, COUNTER = 4;
  const auto autograd = [&](size_t i) -> const torch::autograd::AutogradMeta * {
    return params[i]->defined()
               ? static_cast<const torch::autograd::AutogradMeta *>(params[i]->unsafeGetTensorImpl()->autograd_meta())
               : nullptr;
  };
  std::lock_guard<std::mutex> lock(used_lock);
  for (size_t i = 0; i < n; i++) {
    if (i + HANDLE < n) {
      __builtin_prefetch(params[i + HANDLE]);
      __builtin_prefetch(used[i + HANDLE]);
    }
    if (i + OBJECT < n)
      prefetch(params[i + OBJECT]->unsafeGetTensorImpl());
    if (i + AUTOGRAD < n)
      if (const auto *meta = autograd(i + AUTOGRAD))
        __builtin_prefetch(&meta->grad_);
    if (i + GRADIENT < n)
      if (const auto *meta = autograd(i + GRADIENT))
        prefetch(meta->grad_.unsafeGetTensorImpl());
    if (i + COUNTER < n)
      if (const auto *meta = autograd(i + COUNTER); meta && meta->grad_.defined())
        prefetch_counter(*meta->grad_.unsafeGetTensorImpl());
    unused[i] = false;
    try {
      const at::Tensor &grad = params[i]->grad();
      if (grad.defined())
        unused[i] = !used[i] || !used[i]->grad || used[i]->grad->_unsafe_get_target() != grad.unsafeGetTensorImpl() ||
                    used[i]->version != version(grad);
    } catch (...) {
      // A parameter without gradients.
    }
  }
}

// Whether the parameter's gradient is zero, or there is none.
char *tcp_gradient_is_zero(const at::Tensor *param, bool *zero) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const at::Tensor &grad = param->grad();
    *zero = !grad.defined() || (grad.is_sparse() ? grad._values() : grad).count_nonzero().item<int64_t>() == 0;
  });
}

// Another handle to the gradient; undefined if there is none.
char *tcp_gradient(const at::Tensor *param, at::Tensor **out) {
  return guarded([&] { *out = new at::Tensor(param->grad()); });
}

// Exchanges the gradient; null for none.
char *tcp_set_gradient(const at::Tensor *param, const at::Tensor *grad) {
  return guarded([&] {
    require(!grad || grad->sizes() == param->sizes(), "the gradient has another shape");
    param->mutable_grad() = grad ? *grad : at::Tensor();
  });
}

enum tcp_algorithm : int32_t { SGD = 0, ADAM = 1, ADAMW = 2, RMSPROP = 3 };

// What a parameter group is stepped with; an algorithm reads only what it has.
struct tcp_options {
  int32_t algorithm;
  uint8_t amsgrad;
  uint8_t nesterov;
  uint8_t centered;
  uint8_t fused;
  double lr, weight_decay, momentum, dampening, beta1, beta2, eps, alpha;
};

} // extern "C"

namespace {

constexpr size_t SLOTS = 4;
// The slots of Adam and AdamW, of RMSprop, and of SGD.
constexpr size_t STEP = 0, EXP_AVG = 1, EXP_AVG_SQ = 2, MAX_EXP_AVG_SQ = 3;
constexpr size_t SQUARE_AVG = 1, MOMENTUM_BUFFER = 2, GRAD_AVG = 3;
constexpr size_t SGD_MOMENTUM_BUFFER = 0;

// One parameter's part of a step.
struct Update {
  at::Tensor param, grad;
  const tcp_options *options = nullptr;
  at::Tensor **slots = nullptr; // of the parameter; null where there is none yet
  int64_t place = -1;
  bool first = false; // SGD: the momentum begins with this gradient
  std::unique_ptr<at::Tensor> made[SLOTS];

  // A slot as the arithmetic sees it: complex numbers as pairs.
  at::Tensor slot(size_t k) const { return real(*slots[k]); }

  static at::Tensor real(const at::Tensor &tensor) {
    return tensor.is_complex() ? at::view_as_real(tensor) : tensor;
  }
};

bool has_momentum(const tcp_options &options) { return options.momentum != 0; }

// Whether a step with these options needs the slot.
bool uses(const tcp_options &o, size_t slot) {
  switch (o.algorithm) {
  case SGD:
    return slot == SGD_MOMENTUM_BUFFER && has_momentum(o);
  case RMSPROP:
    return slot == STEP || slot == SQUARE_AVG || (slot == MOMENTUM_BUFFER && has_momentum(o)) ||
           (slot == GRAD_AVG && o.centered);
  default:
    return slot != MAX_EXP_AVG_SQ || o.amsgrad;
  }
}

bool is_step(const tcp_options &options, size_t slot) { return options.algorithm != SGD && slot == STEP; }

// Throws for what cannot be stepped, before anything has changed.
void check(const Update &u) {
  const tcp_options &o = *u.options;
  require(u.param.layout() == at::kStrided && !u.param.is_conj() && !u.param.is_neg(),
          "it is not a plain tensor (sparse, or a conjugate or negative view); train the tensor it was made from");
  require(u.param.is_floating_point() || u.param.is_complex(), "its elements are not floating-point numbers");
  require(at::has_internal_overlap(u.param) != at::MemOverlap::Yes,
          "several of its elements are the same memory; train the tensor it was expanded from");
  require(u.grad.sizes() == u.param.sizes() && u.grad.device() == u.param.device() &&
              u.grad.is_complex() == u.param.is_complex(),
          "its gradient has another shape, type or device; call `zero_grad` after changing a variable");
  require(!(u.param.is_inference() && !c10::InferenceMode::is_enabled()),
          "it was created in inference mode, and can only be changed there");
  bool sparse_is_fine = o.algorithm == SGD && !has_momentum(o) && o.weight_decay == 0;
  require(u.grad.layout() == at::kStrided || sparse_is_fine,
          "its gradient is sparse, which only SGD without momentum and weight decay can use; build the embedding "
          "with `sparse: false`");
  for (size_t k = 0; k < SLOTS; k++)
    if (uses(o, k) && u.slots[k] && !is_step(o, k))
      require(u.slots[k]->sizes() == u.param.sizes(),
              "its shape has changed since the last step; build a new optimizer");
}

// Makes the slots there are not, and moves those of a variable that was moved to another device, type or layout. Sets
// `moved` before it does either.
void prepare_slots(Update &u, bool &moved) {
  for (size_t k = 0; k < SLOTS; k++) {
    if (!uses(*u.options, k))
      continue;
    bool scalar = is_step(*u.options, k);
    if (!u.slots[k]) {
      auto counter = at::TensorOptions(at::kFloat).device(u.param.device());
      moved = true;
      u.made[k] = std::make_unique<at::Tensor>(scalar ? at::zeros({}, counter) : at::zeros_like(u.param));
      u.first = u.options->algorithm == SGD;
      continue;
    }
    // `set_data` keeps the tensor object, so that everybody who has a handle to the slot sees it moved.
    const at::Tensor &slot = *u.slots[k];
    if (scalar) {
      if (slot.device() != u.param.device()) {
        moved = true;
        slot.set_data(slot.to(u.param.device()));
      }
    } else if (slot.device() != u.param.device() || slot.scalar_type() != u.param.scalar_type() ||
               (u.param.is_non_overlapping_and_dense() && slot.strides() != u.param.strides())) {
      moved = true;
      at::Tensor copy = at::empty_like(u.param);
      copy.copy_(slot);
      slot.set_data(copy);
    }
  }
}

// Whether libtorch's fused kernels take it: they walk the memory of parameter, gradient and slots side by side.
bool fits_fused(const Update &u) {
  auto type = u.param.scalar_type();
  // libtorch 2.13's SGD kernel for the CPU leaves most elements of half precision as they were, and writes rubbish
  // into their momentum: https://github.com/pytorch/pytorch/issues/191763
  if (u.options->algorithm == SGD && u.param.is_cpu() && (type == at::kHalf || type == at::kBFloat16))
    return false;
  return u.options->fused && u.options->algorithm != RMSPROP && (u.param.is_cpu() || u.param.is_cuda()) &&
         (type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16) &&
         u.param.numel() > 0 && u.param.is_non_overlapping_and_dense() && u.grad.layout() == at::kStrided &&
         u.grad.scalar_type() == type && u.grad.device() == u.param.device();
}

// A list of tensors that a kernel writes to. It does not always tell autograd.
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

// Adds one to every step count.
void count_up(at::TensorList counts) {
  if (!counts[0].is_cpu()) {
    at::_foreach_add_(counts, 1);
    return;
  }
  for (const at::Tensor &count : counts) {
    *static_cast<float *>(count.mutable_data_ptr()) += 1;
    bump_version(count);
  }
}

// Below this many elements libtorch does not split an operation between threads (`at::internal::GRAIN_SIZE`).
constexpr int64_t SMALL = 32768;

// Calls `work(begin, end)` for the parts of 0 .. n, on libtorch's threads: an iteration over a tensor of n numbers.
// (`at::parallel_for` is a template, and parallel only in files that are compiled with libtorch's own OpenMP.)
template <class Work> void on_threads(int64_t n, const Work &work) {
  at::Tensor places = at::arange(n, at::kLong);
  auto iterator = at::TensorIterator::nullary_op(places);
  iterator.for_each(
      [&](char **data, const int64_t *, int64_t size) {
        int64_t begin = *reinterpret_cast<const int64_t *>(data[0]);
        work(begin, begin + size);
      },
      /*grain_size=*/1);
}

// One kernel call for parameters of one group, device and type.
void fused_step(const tcp_options &o, const std::vector<Update *> &updates, bool small) {
  std::vector<at::Tensor> grads;
  Written params, slots[SLOTS];
  for (Update *u : updates) {
    at::Tensor grad = u->grad;
    if (grad.strides() != u->param.strides()) {
      grad = at::empty_like(u->param);
      grad.copy_(u->grad);
    }
    grads.push_back(grad);
    params.add(u->param);
    for (size_t k = 0; k < SLOTS; k++)
      if (uses(o, k))
        slots[k].add(u->slot(k));
  }
  if (o.algorithm != SGD)
    count_up(slots[STEP].tensors);

  using List = at::TensorList;
  using Scale = const std::optional<at::Tensor> &;
  using Adam = void(List, List, List, List, List, List, double, double, double, double, double, bool, bool, Scale,
                    Scale);
  Adam *adam = o.algorithm == ADAM ? static_cast<Adam *>(at::_fused_adam_) : static_cast<Adam *>(at::_fused_adamw_);
  auto kernel = [&](int64_t begin, int64_t end) {
    c10::NoGradGuard no_grad; // of this thread
    auto part = [&](const std::vector<at::Tensor> &list) {
      return list.empty() ? List() : List(list).slice(size_t(begin), size_t(end - begin));
    };
    if (o.algorithm == SGD)
      at::_fused_sgd_(part(params.tensors), part(grads), part(slots[SGD_MOMENTUM_BUFFER].tensors), o.weight_decay,
                      o.momentum, o.lr, o.dampening, o.nesterov, /*maximize=*/false, updates[0]->first);
    else
      adam(part(params.tensors), part(grads), part(slots[EXP_AVG].tensors), part(slots[EXP_AVG_SQ].tensors),
           part(slots[MAX_EXP_AVG_SQ].tensors), part(slots[STEP].tensors), o.lr, o.beta1, o.beta2, o.weight_decay,
           o.eps, o.amsgrad, /*maximize=*/false, std::nullopt, std::nullopt);
  };
  // The CPU kernels split every tensor between all threads, whatever its size, which costs far more than a small one
  // is worth. Where they are on one of several threads already they do not.
  if (small)
    on_threads(int64_t(updates.size()), kernel);
  else
    kernel(0, int64_t(updates.size()));
}

// The arithmetic of torch::optim, operation by operation.
void plain_step(const Update &u) {
  const tcp_options &o = *u.options;
  // libtorch refuses a finite number that a type cannot hold, in the middle of a step; its fused kernels make it infinite.
  const auto fit = [&](double x) {
    auto type = c10::toRealValueType(u.param.scalar_type());
    double most = type == at::kDouble ? std::numeric_limits<double>::max()
                  : type == at::kHalf ? 65504
                                      : std::numeric_limits<float>::max();
    return std::isfinite(x) && std::abs(x) > most ? std::copysign(std::numeric_limits<double>::infinity(), x) : x;
  };
  at::Tensor param = Update::real(u.param), grad = Update::real(u.grad);
  if (o.algorithm == ADAMW && o.weight_decay != 0)
    param.mul_(fit(1 - o.lr * o.weight_decay));
  else if (o.weight_decay != 0)
    grad = grad.add(param, fit(o.weight_decay));

  if (o.algorithm == SGD) {
    if (has_momentum(o)) {
      at::Tensor buffer = u.slot(SGD_MOMENTUM_BUFFER);
      if (u.first)
        buffer.copy_(grad);
      else
        buffer.mul_(fit(o.momentum)).add_(grad, fit(1 - o.dampening));
      grad = o.nesterov ? grad.add(buffer, fit(o.momentum)) : buffer;
    }
    param.add_(grad, fit(-o.lr));
    return;
  }

  at::Tensor count = u.slot(STEP);
  count_up({&count, 1});
  if (o.algorithm == RMSPROP) {
    at::Tensor square_avg = u.slot(SQUARE_AVG);
    square_avg.mul_(fit(o.alpha)).addcmul_(grad, grad, fit(1 - o.alpha));
    at::Tensor avg;
    if (o.centered) {
      at::Tensor grad_avg = u.slot(GRAD_AVG);
      grad_avg.mul_(fit(o.alpha)).add_(grad, fit(1 - o.alpha));
      avg = square_avg.addcmul(grad_avg, grad_avg, -1).sqrt_().add_(fit(o.eps));
    } else {
      avg = square_avg.sqrt().add_(fit(o.eps));
    }
    if (has_momentum(o)) {
      at::Tensor buffer = u.slot(MOMENTUM_BUFFER);
      buffer.mul_(fit(o.momentum)).addcdiv_(grad, avg);
      param.add_(buffer, fit(-o.lr));
    } else {
      param.addcdiv_(grad, avg, fit(-o.lr));
    }
    return;
  }

  double steps = count.item<double>();
  double correction1 = 1 - std::pow(o.beta1, steps), correction2 = 1 - std::pow(o.beta2, steps);
  at::Tensor exp_avg = u.slot(EXP_AVG), exp_avg_sq = u.slot(EXP_AVG_SQ), square = exp_avg_sq;
  exp_avg.mul_(fit(o.beta1)).add_(grad, fit(1 - o.beta1));
  exp_avg_sq.mul_(fit(o.beta2)).addcmul_(grad, grad, fit(1 - o.beta2));
  if (o.amsgrad) {
    square = u.slot(MAX_EXP_AVG_SQ);
    at::maximum_out(square, exp_avg_sq, square);
  }
  at::Tensor denominator = square.sqrt().div_(fit(std::sqrt(correction2))).add_(fit(o.eps));
  param.addcdiv_(exp_avg, denominator, fit(-o.lr / correction1));
}

} // namespace

extern "C" {

// One step of `n` parameters. `group[i]` is the place of the i-th one's options; `slots` has SLOTS pointers a
// parameter, and what is null and needed is allocated and becomes the caller's, also when a message is returned.
// `moved` becomes true if a slot is made, or gets other memory. `culprit` is the parameter that a message is about, or -1.
char *tcp_step(const tcp_options *options, const size_t *group, at::Tensor *const *params, at::Tensor **slots, size_t n,
               bool *moved, int64_t *culprit) {
  *culprit = -1;
  return guarded([&] {
    c10::NoGradGuard no_grad;
    std::vector<Update> updates;
    for (size_t i = 0; i < n; i++) {
      const at::Tensor &grad = params[i]->grad();
      if (!grad.defined())
        continue;
      // A lazily negated or conjugated gradient would be read wrongly from its memory.
      at::Tensor resolved = grad.layout() == at::kStrided ? grad.resolve_conj().resolve_neg() : grad;
      Update update;
      update.param = *params[i];
      update.grad = resolved;
      update.options = &options[group[i]];
      update.slots = slots + i * SLOTS;
      update.place = int64_t(i);
      updates.push_back(std::move(update));
      *culprit = int64_t(i);
      check(updates.back());
    }
    using Key = std::tuple<size_t, int, int, int, bool, bool>;
    std::map<Key, std::vector<Update *>> buckets;
    std::vector<Update *> others;
    for (Update &u : updates) {
      *culprit = u.place;
      prepare_slots(u, *moved);
      auto device = u.param.device();
      bool small = u.param.is_cpu() && u.param.numel() < SMALL;
      Key key(group[u.place], int(device.type()), int(device.index()), int(u.param.scalar_type()), u.first, small);
      (fits_fused(u) ? buckets[key] : others).push_back(&u);
    }
    *culprit = -1;
    for (Update &u : updates)
      for (size_t k = 0; k < SLOTS; k++)
        if (u.made[k])
          u.slots[k] = u.made[k].release();
    for (auto &bucket : buckets)
      fused_step(*bucket.second[0]->options, bucket.second, std::get<5>(bucket.first));
    for (Update *u : others) {
      *culprit = u->place;
      plain_step(*u);
    }
  });
}

// ---------------------------------------------------------------------------------------------- loss scaling

// Multiplies all gradients by `inverse`. Says whether all of them are finite.
char *tcp_unscale(at::Tensor *const *params, size_t n, double inverse, bool *finite) {
  *finite = true;
  return guarded([&] {
    c10::NoGradGuard no_grad;
    using Key = std::tuple<int, int, int>;
    std::map<Key, Written> lists;
    for (size_t i = 0; i < n; i++) {
      const at::Tensor &grad = params[i]->grad();
      if (!grad.defined())
        continue;
      require(!grad.is_complex(), "a gradient is complex; train complex variables without a `GradScaler`");
      if (grad.is_sparse() && !grad.is_coalesced())
        params[i]->mutable_grad() = grad.coalesce();
      const at::Tensor values = params[i]->grad().is_sparse() ? params[i]->grad()._values() : params[i]->grad();
      auto device = values.device();
      lists[Key(int(device.type()), int(device.index()), int(values.scalar_type()))].add(values);
    }
    for (auto &entry : lists) {
      auto options = at::TensorOptions(at::kFloat).device(entry.second.tensors[0].device());
      at::Tensor found = at::zeros({1}, options), factor = at::full({1}, inverse, options);
      at::_amp_foreach_non_finite_check_and_unscale_(entry.second.tensors, found, factor);
      *finite = *finite && found.item<float>() == 0;
    }
  });
}

// ---------------------------------------------------------------------------------------------- averages

// Moves every average towards its tensor by `weight` of their difference; a `weight` of 1 copies the tensor. Averages of a
// type that lerp has no kernel for are copies too. `culprit` is the average that a message is about, or -1; shapes are
// compared before anything is written.
char *tcp_average(at::Tensor *const *averages, at::Tensor *const *tensors, size_t n, double weight, int64_t *culprit) {
  *culprit = -1;
  return guarded([&] {
    c10::NoGradGuard no_grad;
    for (size_t i = 0; i < n; i++) {
      *culprit = int64_t(i);
      require(averages[i]->sizes() == tensors[i]->sizes(), "its shape differs from that of its average");
    }
    using Key = std::tuple<int, int, int>;
    std::map<Key, std::pair<Written, std::vector<at::Tensor>>> lists;
    for (size_t i = 0; i < n; i++) {
      *culprit = int64_t(i);
      const at::Tensor &average = *averages[i];
      if (weight == 1 || !(average.is_floating_point() || average.is_complex())) {
        average.copy_(*tensors[i]);
        continue;
      }
      auto device = average.device();
      auto &list = lists[Key(int(device.type()), int(device.index()), int(average.scalar_type()))];
      list.first.add(average);
      list.second.push_back(tensors[i]->to(average.options().requires_grad(false)));
    }
    *culprit = -1;
    for (auto &entry : lists)
      at::_foreach_lerp_(entry.second.first.tensors, entry.second.second, weight);
  });
}

// Copies the elements of a tensor into another one of its shape.
char *tcp_copy(const at::Tensor *to, const at::Tensor *from) {
  return guarded([&] {
    Writing writing(*to);
    require(to->sizes() == from->sizes(), "their shapes differ");
    to->copy_(*from);
  });
}

// Exchanges the elements of two tensors of one shape and type.
char *tcp_exchange(const at::Tensor *one, const at::Tensor *other) {
  return guarded([&] {
    Writing writing(*one);
    require(one->sizes() == other->sizes() && one->scalar_type() == other->scalar_type(),
            "their shapes or types differ");
    at::Tensor between = at::empty_like(*one);
    between.copy_(*one);
    one->copy_(*other);
    other->copy_(between);
  });
}

} // extern "C"
