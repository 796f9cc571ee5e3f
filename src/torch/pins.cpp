// Pins: the memory that a tensor had at a moment, readable from any thread whatever is done with the tensor afterwards.

#include "tensors.hpp"

#include <ATen/ops/from_blob.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace {

// The shared ownership of a storage's memory. A storage that is given other memory, for example by `resize_`, drops only its
// own share. It is installed when the memory is pinned for the first time, and stays.
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

// Returns a share in the memory of a storage, which the caller must `release`, or null if the storage does not own its
// memory and so cannot free it. Other threads may read the memory meanwhile.
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

// Storages that cannot be resized while anything pins them, with the number of pins.
class Fixed {
public:
  // Returns false, and counts nothing, if the storage cannot be resized anyway.
  static bool begin(c10::StorageImpl &storage) {
    std::lock_guard<std::mutex> lock(mutex());
    auto found = counts().find(&storage);
    if (found == counts().end()) {
      if (!storage.resizable())
        return false;
      found = counts().emplace(&storage, 0).first;
      storage.set_resizable(false);
    }
    found->second++;
    return true;
  }
  static void end(c10::StorageImpl &storage) {
    std::lock_guard<std::mutex> lock(mutex());
    auto found = counts().find(&storage);
    if (found != counts().end() && --found->second == 0) {
      counts().erase(found);
      storage.set_resizable(true);
    }
  }

private:
  // Never destroyed: a thread may unpin while the process ends.
  static std::mutex &mutex() {
    static auto *one = new std::mutex;
    return *one;
  }
  static std::unordered_map<const c10::StorageImpl *, size_t> &counts() {
    static auto *all = new std::unordered_map<const c10::StorageImpl *, size_t>;
    return *all;
  }
};

// The memory that a tensor had, and its version counter.
struct Pin {
  c10::Storage storage;
  Allocation *allocation = nullptr;
  c10::VariableVersion version;
  at::Tensor alias; // of that memory, if it is not in row-major order on the CPU
  bool fixed = false; // the storage cannot be resized while this lives
  ~Pin() {
    if (allocation)
      release(allocation);
    if (fixed)
      Fixed::end(*storage.unsafeGetStorageImpl());
  }
};

} // namespace

extern "C" {

struct tcp_pinned {
  Pin *pin;         // null: the tensor has another type or shape, or no memory that holds its values
  const void *data; // the first element
  uint64_t bytes;   // of all elements
  uint8_t plain;    // in row-major order in CPU memory, from `data` on
  uint8_t cpu;
};

// Pins the memory of a tensor of this type and shape. It can be read from any thread until `tcp_unpin`, whatever is done with
// the tensor. On the CPU the ownership of the allocation is shared. CUDA's allocator does not allow that, so on other devices
// the storage is kept and made non-resizable.
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
    } else {
      pin->fixed = Fixed::begin(storage);
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

// Returns the version counter, or -1 if the tensor has none.
int64_t tcp_pinned_version(const Pin *pin) { return pin->version.enabled() ? int64_t(pin->version.current_version()) : -1; }

// Returns a row-major copy in CPU memory of pinned memory that is not plain.
char *tcp_read_pinned(const Pin *pin, at::Tensor **out) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    *out = new at::Tensor(pin->alias.to(at::kCPU).contiguous());
  });
}

} // extern "C"
