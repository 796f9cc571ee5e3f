// Gradients: clipping, unscaling, and whether a step has used them.

#include "tensors.hpp"

#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <map>
#include <mutex>
#include <new>
#include <tuple>

extern "C" {

// Makes the gradients undefined, as `torch::optim::Optimizer::zero_grad` does.
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

// Scales all gradients so that their total L2 norm is at most `max`. Returns the norm before.
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

// The gradient of a parameter's last step: the tensor object, which the weak reference distinguishes from a later one at the
// same address, and its version. Optimizers on several threads share it.
struct tcp_used {
  std::optional<c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>> grad;
  int64_t version = 0;
};

// Protects all of them.
std::mutex used_lock;

tcp_used *tcp_new_used() { return new (std::nothrow) tcp_used; }

void tcp_free_used(tcp_used *used) { delete used; }

void tcp_forget_used(tcp_used *used) {
  std::lock_guard<std::mutex> lock(used_lock);
  if (used)
    used->grad.reset();
}

// Records the gradients of the parameters as used.
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

// Tells for each parameter whether it has a gradient that no step has used. Prefetches as `for_each_ahead` does: with
// thousands of parameters, cache misses are most of the time.
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

// Tells whether the parameter's gradient is zero or undefined.
char *tcp_gradient_is_zero(const at::Tensor *param, bool *zero) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const at::Tensor &grad = param->grad();
    *zero = !grad.defined() || (grad.is_sparse() ? grad._values() : grad).count_nonzero().item<int64_t>() == 0;
  });
}

// Returns another handle to the gradient, undefined if there is none.
char *tcp_gradient(const at::Tensor *param, at::Tensor **out) {
  return guarded([&] { *out = new at::Tensor(param->grad()); });
}

// Sets the gradient; null removes it.
char *tcp_set_gradient(const at::Tensor *param, const at::Tensor *grad) {
  return guarded([&] {
    require(!grad || grad->sizes() == param->sizes(), "the gradient has another shape");
    param->mutable_grad() = grad ? *grad : at::Tensor();
  });
}

// Multiplies all gradients by `inverse`. Tells whether all of them are finite.
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
      require(has_arithmetic(grad.scalar_type()),
              std::string("the elements of a gradient are ") + c10::toString(grad.scalar_type()) +
                  "; only `Half`, `BFloat16`, `Float` and `Double` can be unscaled");
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

} // extern "C"
