// The states of libtorch's random number generators.

#define AT_PER_OPERATOR_HEADERS
#include "guard.hpp"

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <mutex>

namespace {

at::Generator default_generator(int32_t device_type, int32_t index) {
  return at::globalContext().defaultGenerator(at::Device(c10::DeviceType(device_type), index));
}

// Sets the state on a copy of the generator only. The caller holds its lock.
void try_state(const at::Generator &generator, const at::Tensor &state) { generator.clone().set_state(state); }

} // namespace

extern "C" {

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
    at::Generator generator = default_generator(device_type, index);
    std::lock_guard<std::mutex> lock(generator.mutex());
    *out = new at::Tensor(generator.get_state());
  });
}

// Sets the state on a copy of the generator only.
char *tcp_check_generator_state(int32_t device_type, int32_t index, const at::Tensor *state) {
  return guarded([&] {
    at::Generator generator = default_generator(device_type, index);
    std::lock_guard<std::mutex> lock(generator.mutex());
    try_state(generator, *state);
  });
}

// Sets the state on a copy of the generator first, so that a state that is refused changes nothing.
char *tcp_set_generator_state(int32_t device_type, int32_t index, const at::Tensor *state) {
  return guarded([&] {
    at::Generator generator = default_generator(device_type, index);
    std::lock_guard<std::mutex> lock(generator.mutex());
    try_state(generator, *state);
    generator.set_state(*state);
  });
}

} // extern "C"
