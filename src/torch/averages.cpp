// Averages of the weights, and exchanging them with the weights.

#include "tensors.hpp"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/empty_like.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>

extern "C" {

// Moves every average towards its tensor by `weight` of their difference; a `weight` of 1 copies the tensor. Integers, and
// those of which `copied` says so, are copied too. Shapes and types are examined before anything is written. Sets `begun`
// before elements may change, and `culprit` to the average that a message is about, or to -1.
char *tcp_average(at::Tensor *const *averages, at::Tensor *const *tensors, const bool *copied, size_t n, double weight,
                  bool *begun, int64_t *culprit) {
  *culprit = -1;
  return guarded([&] {
    c10::NoGradGuard no_grad;
    for (size_t i = 0; i < n; i++) {
      *culprit = int64_t(i);
      require(averages[i]->sizes() == tensors[i]->sizes(), "its shape differs from that of its average");
      at::assert_no_internal_overlap(*averages[i]);
    }
    using Key = std::tuple<int, int, int>;
    std::map<Key, std::pair<Written, std::vector<at::Tensor>>> lists;
    const auto is_copied = [&](size_t i) {
      return weight == 1 || copied[i] || !(averages[i]->is_floating_point() || averages[i]->is_complex());
    };
    // Converts first, for which memory may be lacking.
    for (size_t i = 0; i < n; i++) {
      if (is_copied(i))
        continue;
      *culprit = int64_t(i);
      const at::Tensor &average = *averages[i];
      require(has_arithmetic(average.scalar_type()),
              std::string("the elements of its average are ") + c10::toString(average.scalar_type()) +
                  "; only `Half`, `BFloat16`, `Float`, `Double` and complex numbers can be averaged");
      auto device = average.device();
      auto &list = lists[Key(int(device.type()), int(device.index()), int(average.scalar_type()))];
      list.first.add(average);
      list.second.push_back(tensors[i]->to(average.options().requires_grad(false)));
    }
    *begun = n > 0;
    for (size_t i = 0; i < n; i++) {
      *culprit = int64_t(i);
      if (is_copied(i))
        averages[i]->copy_(*tensors[i]);
    }
    *culprit = -1;
    for (auto &entry : lists)
      at::_foreach_lerp_(entry.second.first.tensors, entry.second.second, weight);
  });
}

// Copies the elements of a tensor into another one of its shape. Sets `begun` before they may change.
char *tcp_copy(const at::Tensor *to, const at::Tensor *from, bool *begun) {
  return guarded([&] {
    Writing writing(*to);
    require(to->sizes() == from->sizes(), "their shapes differ");
    at::assert_no_internal_overlap(*to);
    *begun = true;
    to->copy_(*from);
  });
}

// Exchanges the elements of two tensors of one shape and type. Sets `begun` before they may change.
char *tcp_exchange(const at::Tensor *one, const at::Tensor *other, bool *begun) {
  return guarded([&] {
    Writing writing(*one);
    require(one->sizes() == other->sizes() && one->scalar_type() == other->scalar_type(),
            "their shapes or types differ");
    at::assert_no_internal_overlap(*one);
    at::assert_no_internal_overlap(*other);
    at::Tensor between = at::empty_like(*one);
    between.copy_(*one);
    *begun = true;
    one->copy_(*other);
    other->copy_(between);
  });
}

} // extern "C"
