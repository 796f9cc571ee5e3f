// A step of an optimizer as one call.

#include "tensors.hpp"

#include <ATen/MemoryOverlap.h>
#include <ATen/TensorIterator.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

extern "C" {

enum tcp_algorithm : int32_t { SGD = 0, ADAM = 1, ADAMW = 2, RMSPROP = 3 };

// The options of a parameter group. An algorithm reads only those that it has.
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
// The places of the slots of Adam and AdamW, of RMSprop, and of SGD.
constexpr size_t STEP = 0, EXP_AVG = 1, EXP_AVG_SQ = 2, MAX_EXP_AVG_SQ = 3;
constexpr size_t SQUARE_AVG = 1, MOMENTUM_BUFFER = 2, GRAD_AVG = 3;
constexpr size_t SGD_MOMENTUM_BUFFER = 0;

// The update of one parameter.
struct Update {
  at::Tensor param, grad;
  const tcp_options *options = nullptr;
  at::Tensor **slots = nullptr; // of the parameter; null if not created yet
  int64_t place = -1;
  bool first = false; // SGD: the momentum is initialized with this gradient
  std::unique_ptr<at::Tensor> made[SLOTS];

  // Returns a slot, complex numbers as pairs of real ones.
  at::Tensor slot(size_t k) const { return real(*slots[k]); }

  static at::Tensor real(const at::Tensor &tensor) {
    return tensor.is_complex() ? at::view_as_real(tensor) : tensor;
  }
};

bool has_momentum(const tcp_options &options) { return options.momentum != 0; }

// Returns whether a step with these options needs the slot.
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

// Throws if the parameter cannot be updated. Called before anything has changed.
void check(const Update &u) {
  const tcp_options &o = *u.options;
  require(u.param.layout() == at::kStrided && !u.param.is_conj() && !u.param.is_neg(),
          "it is not a plain tensor (sparse, or a conjugate or negative view); train the tensor it was made from");
  require(has_arithmetic(u.param.scalar_type()),
          std::string("its elements are ") + c10::toString(u.param.scalar_type()) +
              "; only `Half`, `BFloat16`, `Float`, `Double` and complex numbers can be stepped");
  require(!u.param.is_meta(), "it is on the `meta` device and has no values; move it to a real device first");
  require(at::has_internal_overlap(u.param) != at::MemOverlap::Yes,
          "several of its elements are the same memory; train the tensor it was expanded from");
  require(u.grad.sizes() == u.param.sizes() && u.grad.device() == u.param.device() &&
              has_arithmetic(u.grad.scalar_type()) && u.grad.is_complex() == u.param.is_complex(),
          "its gradient has another shape, type or device; call `zero_grad` after changing a variable");
  require(!(u.param.is_inference() && !c10::InferenceMode::is_enabled()),
          "it was created in inference mode, and can only be changed there");
  bool sparse_is_fine = u.grad.layout() == at::kSparse && !u.param.is_complex() && o.algorithm == SGD &&
                        !has_momentum(o) && o.weight_decay == 0;
  require(u.grad.layout() == at::kStrided || sparse_is_fine,
          "its gradient is sparse, which only SGD without momentum and weight decay can use, for real numbers; build the "
          "embedding with `sparse: false`");
  for (size_t k = 0; k < SLOTS; k++) {
    if (!uses(o, k) || !u.slots[k])
      continue;
    const at::Tensor &slot = *u.slots[k];
    // Whoever has a handle to a slot may have exchanged its memory.
    if (is_step(o, k))
      require(is_strided_memory(slot) && slot.scalar_type() == at::kFloat && slot.dim() == 0,
              "its slot `step` is no longer one number of type `Float`; change it in place with `fill_`, or build a new "
              "optimizer");
    else
      require(is_strided_memory(slot) && slot.sizes() == u.param.sizes() && slot.is_complex() == u.param.is_complex(),
              "its shape or that of a slot has changed since the last step, or from real to complex numbers; build a new "
              "optimizer");
  }
}

// Creates missing slots, and moves those of a variable that was moved to another device, type or layout. Sets `moved` before
// it does either.
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
    // `set_data` keeps the tensor object, so that other handles to the slot see the new memory.
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

// Returns whether libtorch's fused kernels can do the update: they traverse the memory of parameter, gradient and slots in
// parallel.
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

// Increments every step count.
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

// Calls `work(begin, end)` for parts of 0 .. n on libtorch's threads, as an iteration over a tensor of n numbers.
// `at::parallel_for` is a template, and parallel only in files that are compiled with libtorch's own OpenMP.
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

// Returns whether two of these tensors, which are dense, have memory in common.
bool overlap(const std::vector<at::Tensor> &tensors) {
  std::vector<std::pair<const char *, const char *>> spans;
  for (const at::Tensor &tensor : tensors)
    if (tensor.storage().use_count() > 1) {
      auto *begin = static_cast<const char *>(tensor.const_data_ptr());
      spans.emplace_back(begin, begin + tensor.nbytes());
    }
  std::sort(spans.begin(), spans.end());
  const auto meets = [](const auto &one, const auto &next) { return next.first < one.second; };
  return std::adjacent_find(spans.begin(), spans.end(), meets) != spans.end();
}

// Updates parameters of one group, device and type with one kernel call.
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
  // The CPU kernels divide every tensor among all threads, whatever its size, which takes far longer than the update of a
  // small one. On one of libtorch's threads they do not. Parameters over the same memory are updated one after the other.
  if (small && !overlap(params.tensors))
    on_threads(int64_t(updates.size()), kernel);
  else
    kernel(0, int64_t(updates.size()));
}

// Updates a parameter with the operations of torch::optim.
void plain_step(const Update &u) {
  const tcp_options &o = *u.options;
  // libtorch throws for a finite number that the type cannot represent; its fused kernels make it infinite, as this does.
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

// Updates `n` parameters. `group[i]` is the place of the options of parameter i. `slots` has SLOTS pointers per parameter;
// missing slots are created and belong to the caller, also if a message is returned. Sets `moved` if a slot is created or
// gets other memory, `begun` before elements of parameters and slots may change, and `culprit` to the parameter that a message
// is about, or to -1.
char *tcp_step(const tcp_options *options, const size_t *group, at::Tensor *const *params, at::Tensor **slots, size_t n,
               bool *moved, bool *begun, int64_t *culprit) {
  *culprit = -1;
  return guarded([&] {
    c10::NoGradGuard no_grad;
    std::vector<Update> updates;
    for (size_t i = 0; i < n; i++) {
      const at::Tensor &grad = params[i]->grad();
      if (!grad.defined())
        continue;
      // The memory of a conjugate or negative view holds other values.
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
    *begun = !updates.empty();
    for (auto &bucket : buckets)
      fused_step(*bucket.second[0]->options, bucket.second, std::get<5>(bucket.first));
    for (Update *u : others) {
      *culprit = u->place;
      plain_step(*u);
    }
  });
}

} // extern "C"
