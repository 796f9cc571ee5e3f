// Facts about a tensor and raw access to its memory, which libtorch has and tch does not reach.
//
// Every function returns null, or a message that the caller frees with `tcp_free_message`: no C++ exception leaves these
// files. Tensors cross the boundary as pointers to `at::Tensor`, as in tch. The declarations for Rust are in shim/mod.rs;
// the structs there and here must agree.

#include "tensors.hpp"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <sstream>

// The numbers of the types in tensor.rs.
static_assert(int(c10::ScalarType::Byte) == 0 && int(c10::ScalarType::Double) == 7 &&
              int(c10::ScalarType::ComplexFloat) == 9 && int(c10::ScalarType::Bool) == 11 &&
              int(c10::ScalarType::BFloat16) == 15 && int(c10::ScalarType::Float8_e5m2) == 23 &&
              int(c10::ScalarType::Float8_e4m3fn) == 24 && int(c10::ScalarType::Float8_e5m2fnuz) == 25 &&
              int(c10::ScalarType::Float8_e4m3fnuz) == 26 && int(c10::ScalarType::UInt16) == 27 &&
              int(c10::ScalarType::UInt32) == 28 && int(c10::ScalarType::UInt64) == 29 &&
              int(c10::ScalarType::Float8_e8m0fnu) == 44);

extern "C" {

struct tcp_info {
  const void *object;      // the tensor object (`TensorImpl`)
  const void *data;        // the first element
  const void *storage;     // the beginning of the storage, which views may share
  const int64_t *sizes;    // valid, as the strides, until the tensor is changed
  const int64_t *strides;
  int64_t dim;
  int64_t numel;
  int64_t element_size;
  int64_t storage_offset;
  int64_t span;            // bytes from the first to the last element
  int64_t version;         // -1: it has none (inference mode)
  int32_t scalar_type;
  uint8_t defined;
  uint8_t plain;           // strided, neither quantized nor nested, with memory: all fields above are set
  uint8_t quantized;
  uint8_t cpu;
  uint8_t contiguous;
  uint8_t lazy;            // a conjugate or negative view, whose memory holds other values
  uint8_t whole;           // its elements fill its storage
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

// Gives the tensor memory of its own if it shares it only until one of those who show it is written.
char *tcp_unshare(const at::Tensor *tensor) {
  return guarded([&] {
    if (is_strided_memory(*tensor))
      unshare(*tensor->storage().unsafeGetStorageImpl());
  });
}

// Returns the tensor object, or null if the tensor is undefined.
const void *tcp_object(const at::Tensor *tensor) { return tensor->defined() ? tensor->unsafeGetTensorImpl() : nullptr; }

// Returns whether this is the only handle to the tensor, and the tensor the only one that shows its memory.
bool tcp_is_alone(const at::Tensor *tensor) {
  try {
    return !tensor->defined() ||
           (tensor->use_count() == 1 && (!tensor->has_storage() || tensor->storage().use_count() == 1));
  } catch (...) {
    return false;
  }
}

// Returns how often the tensor was changed in place, or -1 if that is not counted.
int64_t tcp_version(const at::Tensor *tensor) {
  try {
    return tensor->defined() ? version(*tensor) : -1;
  } catch (...) {
    return -1;
  }
}

// Copies a tensor whose memory is its values in row-major order. Returns false for any other. This is the fast path for
// thousands of small tensors.
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

} // namespace

uint64_t tcp::fingerprint(const at::Tensor &t) noexcept {
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

extern "C" {

uint64_t tcp_fingerprint(const at::Tensor *tensor) { return fingerprint(*tensor); }

void tcp_fingerprints(const at::Tensor *const *tensors, size_t n, uint64_t *out) {
  for_each_ahead(n, [&](size_t i) -> const at::Tensor & { return *tensors[i]; },
                 [&](size_t i, const at::Tensor &t) { out[i] = fingerprint(t); });
}

// Returns a hash of the identities of the tensor objects, in order.
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

// Returns the values in row-major order in CPU memory. The result shares the tensor's memory if that is so already.
char *tcp_on_cpu(const at::Tensor *tensor, at::Tensor **out) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    *out = new at::Tensor(tensor->detach().resolve_conj().resolve_neg().to(at::kCPU).contiguous());
  });
}

// Returns the memory of a contiguous CPU tensor for writing; `tcp_written` must follow. The version counter is incremented
// before the first write and after the last one, so that a concurrent reader notices.
char *tcp_open(const at::Tensor *tensor, void **data) {
  return guarded([&] {
    *data = tensor->mutable_data_ptr();
    bump_version(*tensor);
  });
}

// Increments the version counter after a write.
char *tcp_written(const at::Tensor *tensor) {
  return guarded([&] { bump_version(*tensor); });
}

// Overwrites a tensor with values in row-major order in CPU memory, as many as it has elements and of its type.
char *tcp_fill(const at::Tensor *tensor, void *bytes) {
  return guarded([&] {
    Writing writing(*tensor);
    bump_version(*tensor);
    tensor->copy_(at::from_blob(bytes, tensor->sizes(), at::TensorOptions(tensor->scalar_type())));
  });
}

// Returns a CPU tensor of zeros.
char *tcp_zeros(int32_t scalar_type, const int64_t *sizes, size_t dim, at::Tensor **out) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    *out = new at::Tensor(at::zeros(at::IntArrayRef(sizes, dim), at::TensorOptions(at::ScalarType(scalar_type))));
  });
}

// Returns zeros of the type `scalar_type` and of the tensor's shape, device and layout.
char *tcp_zeros_like(const at::Tensor *tensor, int32_t scalar_type, at::Tensor **out) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    *out = new at::Tensor(at::zeros_like(*tensor, tensor->options().dtype(at::ScalarType(scalar_type))));
  });
}

} // extern "C"
