//! The states of libtorch's default generators of random numbers.

use super::{
    check, made, tcp_check_generator_state, tcp_count_generators, tcp_get_generator_state, tcp_set_generator_state,
};
use tch::Tensor;

/// A kind of device that has generators of random numbers; the numbers are libtorch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GeneratorDevice {
    Cpu = 0,
    Cuda = 1,
    Mps = 13,
}

/// Returns the number of default generators of that kind.
pub(crate) fn count_generators(device: GeneratorDevice) -> Result<i32, String> {
    let mut count = 0;
    // SAFETY: the count is ours to write to.
    check(unsafe { tcp_count_generators(device as i32, &raw mut count) })?;
    i32::try_from(count).map_err(|e| e.to_string())
}

/// Returns the state of a default generator: bytes, on the CPU.
pub(crate) fn generator_state(device: GeneratorDevice, index: i32) -> Result<Tensor, String> {
    // SAFETY: only numbers go in.
    made(|out| unsafe { tcp_get_generator_state(device as i32, index, out) })
}

/// Sets the state of a default generator. If libtorch rejects it, the generator is unchanged.
pub(crate) fn set_generator_state(device: GeneratorDevice, index: i32, state: &Tensor) -> Result<(), String> {
    // SAFETY: the tensor lives.
    check(unsafe { tcp_set_generator_state(device as i32, index, state.as_ptr()) })
}

/// Checks that a default generator accepts a state. Changes nothing.
pub(crate) fn check_generator_state(device: GeneratorDevice, index: i32, state: &Tensor) -> Result<(), String> {
    // SAFETY: the tensor lives.
    check(unsafe { tcp_check_generator_state(device as i32, index, state.as_ptr()) })
}
