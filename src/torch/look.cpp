// The survey at the call of a background save: what thousands of tensors report, and the hooks that make other writers wait.

#include "tensors.hpp"

#include <atomic>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>

namespace {

// Returns once a range of memory may be written.
using Wait = void (*)(const void *data, size_t bytes);
std::atomic<Wait> wait_for_readers{nullptr};

// The hook of a storage. libtorch calls it before it hands out the memory for writing, and removes it afterwards. It does not
// change the storage, so that several threads may call it at once. It is harmless if the storage has other memory by now, or
// if nothing reads the memory any more.
void before_write(c10::StorageImpl *storage) {
  if (on_request)
    on_request();
  // Work that is done while waiting must not wait for itself.
  thread_local bool waiting = false;
  const Wait wait = wait_for_readers.load(std::memory_order_acquire);
  if (waiting || !wait)
    return;
  waiting = true;
  wait(storage->_mutable_data_ptr_no_checks().get(), storage->nbytes());
  waiting = false;
}

// The number of handles that this library has to each watched tensor. A tensor to which nobody else has a handle is lost:
// the object that had it has another one. A handle is counted after it was made, and no longer counted before it is dropped,
// so that there are never fewer handles than are counted.
class Watched {
public:
  // Counts one more handle.
  static void add(const at::Tensor &tensor) {
    std::lock_guard<std::mutex> lock(mutex());
    ++counts()[tensor.unsafeGetTensorImpl()];
  }

  static void remove(const at::Tensor &tensor) {
    std::lock_guard<std::mutex> lock(mutex());
    const auto found = counts().find(tensor.unsafeGetTensorImpl());
    if (found != counts().end() && --found->second == 0)
      counts().erase(found);
  }

  // The number of other handles.
  static size_t others(const at::Tensor &tensor) {
    std::lock_guard<std::mutex> lock(mutex());
    const auto found = counts().find(tensor.unsafeGetTensorImpl());
    return tensor.use_count() - (found == counts().end() ? 0 : found->second);
  }

  static bool is_lost(const at::Tensor &tensor) { return others(tensor) == 0; }

private:
  static std::mutex &mutex() {
    static std::mutex mutex;
    return mutex;
  }

  // Never freed: a tensor may be dropped while the process ends.
  static std::unordered_map<const c10::TensorImpl *, size_t> &counts() {
    static auto *counts = new std::unordered_map<const c10::TensorImpl *, size_t>;
    return *counts;
  }
};

} // namespace

thread_local void (*tcp::on_request)() = nullptr;

// There is one hook for both purposes, since a storage has only one.
void tcp::watch(c10::StorageImpl &storage) {
  if (!storage.has_materializer() && !c10::impl::cow::is_cow_data_ptr(storage._mutable_data_ptr_no_checks()))
    storage.set_materializer(&before_write);
}

extern "C" {

// Tensors that are examined together at every save.
struct tcp_batch {
  std::vector<at::Tensor> tensors;
  struct Place {
    size_t place;     // in the result
    bool is_variable; // its `requires_grad` is reported
    bool is_watched;  // it is reported if it is lost
  };
  std::vector<Place> places;

  ~tcp_batch() {
    for (size_t i = 0; i < tensors.size(); ++i)
      if (places[i].is_watched)
        Watched::remove(tensors[i]);
  }
};

// The layout of `Seen` in graph/group.rs.
struct tcp_seen {
  uint64_t fingerprint;
  uint64_t version;
  uint8_t says;
};

constexpr uint8_t SAYS_FINGERPRINT = 1, SAYS_VERSION = 2, SAYS_REQUIRES_GRAD = 4, REQUIRES_GRAD = 8, IS_LOST = 16;

tcp_batch *tcp_new_batch() { return new (std::nothrow) tcp_batch; }

void tcp_free_batch(tcp_batch *batch) { delete batch; }

char *tcp_join(tcp_batch *batch, const at::Tensor *tensor, bool is_variable, bool is_watched, size_t place) {
  return guarded([&] {
    batch->places.reserve(batch->tensors.size() + 1);
    batch->tensors.push_back(*tensor);
    batch->places.push_back({place, is_variable, false});
    if (is_watched)
      Watched::add(*tensor);
    batch->places.back().is_watched = is_watched;
  });
}

// Watches the tensor of this handle, if somebody else has a handle: returns whether.
bool tcp_watch(const at::Tensor *tensor) {
  try {
    if (!tensor->defined() || Watched::others(*tensor) <= 1)
      return false;
    Watched::add(*tensor);
    return true;
  } catch (...) {
    return false;
  }
}

// This handle is dropped, with which the tensor was watched.
void tcp_unwatch(const at::Tensor *tensor) { Watched::remove(*tensor); }

// Returns whether nobody else has a handle to the watched tensor.
bool tcp_is_lost(const at::Tensor *tensor) { return Watched::is_lost(*tensor); }

// Writes what each tensor reports to its place in `seen`. From now on libtorch calls `wait` before the next write to the
// storages of the tensors whose place is set in `held`, if they are CPU memory. The hook is never removed from here, because
// another thread could see that half done. A storage that already has a hook has this one, or one of other code, which is
// left alone.
void tcp_look(const tcp_batch *batch, const bool *held, size_t n, Wait wait, tcp_seen *seen) {
  if (n > 0)
    wait_for_readers.store(wait, std::memory_order_release);
  const auto &tensors = batch->tensors;
  for_each_ahead(tensors.size(), [&](size_t i) -> const at::Tensor & { return tensors[i]; },
                 [&](size_t i, const at::Tensor &t) {
                   const auto [place, is_variable, is_watched] = batch->places[i];
                   tcp_seen &one = seen[place] = tcp_seen{0, 0, SAYS_FINGERPRINT};
                   try {
                     if (!t.defined())
                       return;
                     if (place < n && held[place] && is_strided_memory(t) && t.is_cpu()) {
                       c10::StorageImpl &storage = *t.storage().unsafeGetStorageImpl();
                       unshare(storage);
                       watch(storage);
                     }
                     one.fingerprint = fingerprint(t);
                     if (is_watched && Watched::is_lost(t))
                       one.says |= IS_LOST;
                     if (!t.is_inference()) {
                       one.version = uint64_t(version(t));
                       one.says |= SAYS_VERSION;
                     }
                     const bool requires_grad = t.requires_grad();
                     if (is_variable && (!requires_grad || t.is_leaf()))
                       one.says |= SAYS_REQUIRES_GRAD | (requires_grad ? REQUIRES_GRAD : 0);
                   } catch (...) {
                     // Nothing is reported of it. Without a hook, changes are detected instead.
                   }
                 });
}

} // extern "C"
