//! Safe functions over the C++ files: what libtorch provides and tch does not. Every error of libtorch is returned as
//! its message.

mod look;
mod memory;
mod random;
mod steps;

pub(crate) use look::{
    Info, Memory, NoMemory, Tensors, fingerprint, fingerprint_at, fingerprints, info, is_alone, is_lost, object,
    objects, unshare, unwatch, version, version_at, watch,
};
pub(crate) use memory::{Pinned, copy, copy_plain, exchange, fill, on_cpu, open, written, zeros, zeros_like, zeros_of};
pub(crate) use random::{
    GeneratorDevice, check_generator_state, count_generators, generator_state, set_generator_state,
};
pub(crate) use steps::{
    Algorithm, Averaged, SLOTS, StepOptions, Stepped, UsedGradient, average, clip_grad_norm, clip_grad_value, gradient,
    gradient_is_zero, note_gradients, set_gradient, step, unscale, unused_gradients, zero_grad,
};

use crate::graph::Seen;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use tch::Tensor;
use torch_sys::C_tensor;

/// Blocks until a range of memory, given by its first byte and length, may be written. C++ calls it on the thread that
/// is about to write; it must not unwind.
pub(crate) type Wait = extern "C" fn(*const c_void, usize);

/// Memory that is held. As `tcp_pinned` in pins.cpp.
#[repr(C)]
struct RawPinned {
    pin: *mut c_void,
    data: *const c_void,
    bytes: u64,
    plain: u8,
    cpu: u8,
}

/// The properties of a tensor. The same layout as `tcp_info` in tensors.cpp.
#[repr(C)]
struct RawInfo {
    object: *const c_void,
    data: *const c_void,
    storage: *const c_void,
    sizes: *const i64,
    strides: *const i64,
    dim: i64,
    numel: i64,
    element_size: i64,
    storage_offset: i64,
    span: i64,
    _version: i64,
    scalar_type: i32,
    defined: u8,
    plain: u8,
    quantized: u8,
    cpu: u8,
    contiguous: u8,
    lazy: u8,
    whole: u8,
    dtype: [u8; 24],
    device: [u8; 24],
    layout: [u8; 24],
}

// SAFETY: these are the functions of the C++ files, with their types. Pointers to tensors are those that tch holds.
unsafe extern "C" {
    fn tcp_free_message(text: *mut c_char);
    fn tcp_tensor_info(tensor: *const C_tensor, info: *mut RawInfo) -> *mut c_char;
    fn tcp_unshare(tensor: *const C_tensor) -> *mut c_char;
    fn tcp_object(tensor: *const C_tensor) -> *const c_void;
    fn tcp_version(tensor: *const C_tensor) -> i64;
    fn tcp_is_alone(tensor: *const C_tensor) -> bool;
    fn tcp_watch(tensor: *const C_tensor) -> bool;
    fn tcp_unwatch(tensor: *const C_tensor);
    fn tcp_is_lost(tensor: *const C_tensor) -> bool;
    fn tcp_copy_plain(
        tensor: *const C_tensor,
        scalar_type: i32,
        sizes: *const u64,
        dim: usize,
        out: *mut c_void,
        bytes: usize,
    ) -> bool;
    fn tcp_pin(
        tensor: *const C_tensor,
        scalar_type: i32,
        sizes: *const u64,
        dim: usize,
        out: *mut RawPinned,
    ) -> *mut c_char;
    fn tcp_unpin(pin: *mut c_void);
    fn tcp_pinned_version(pin: *const c_void) -> i64;
    fn tcp_read_pinned(pin: *const c_void, out: *mut *mut C_tensor) -> *mut c_char;
    fn tcp_fingerprint(tensor: *const C_tensor) -> u64;
    fn tcp_fingerprints(tensors: *const *const C_tensor, n: usize, out: *mut u64);
    fn tcp_objects(tensors: *const *const C_tensor, n: usize) -> u64;
    fn tcp_new_batch() -> *mut c_void;
    fn tcp_free_batch(batch: *mut c_void);
    fn tcp_join(
        batch: *mut c_void,
        tensor: *const C_tensor,
        is_variable: bool,
        is_watched: bool,
        place: usize,
    ) -> *mut c_char;
    fn tcp_look(batch: *const c_void, held: *const bool, n: usize, wait: Wait, seen: *mut Seen);
    fn tcp_on_cpu(tensor: *const C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
    fn tcp_open(tensor: *const C_tensor, data: *mut *mut c_void) -> *mut c_char;
    fn tcp_written(tensor: *const C_tensor) -> *mut c_char;
    fn tcp_fill(tensor: *const C_tensor, bytes: *mut c_void) -> *mut c_char;
    fn tcp_zeros(scalar_type: i32, sizes: *const i64, dim: usize, out: *mut *mut C_tensor) -> *mut c_char;
    fn tcp_zeros_like(tensor: *const C_tensor, scalar_type: i32, out: *mut *mut C_tensor) -> *mut c_char;
    fn tcp_count_generators(device_type: i32, count: *mut i64) -> *mut c_char;
    fn tcp_get_generator_state(device_type: i32, index: i32, out: *mut *mut C_tensor) -> *mut c_char;
    fn tcp_check_generator_state(device: i32, index: i32, state: *const C_tensor) -> *mut c_char;
    fn tcp_set_generator_state(device_type: i32, index: i32, state: *const C_tensor) -> *mut c_char;
    fn tcp_free_used(used: *mut c_void);
    fn tcp_new_used() -> *mut c_void;
    fn tcp_forget_used(used: *mut c_void);
    fn tcp_note_gradients(params: *const *const C_tensor, n: usize, used: *const *mut c_void) -> *mut c_char;
    fn tcp_unused_gradients(params: *const *const C_tensor, used: *const *mut c_void, n: usize, unused: *mut bool);
    fn tcp_gradient_is_zero(param: *const C_tensor, zero: *mut bool) -> *mut c_char;
    fn tcp_gradient(param: *const C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
    fn tcp_set_gradient(param: *const C_tensor, grad: *const C_tensor) -> *mut c_char;
    fn tcp_zero_grad(params: *const *const C_tensor, n: usize) -> *mut c_char;
    fn tcp_clip_grad_value(params: *const *const C_tensor, n: usize, max: f64) -> *mut c_char;
    fn tcp_clip_grad_norm(params: *const *const C_tensor, n: usize, max: f64, total: *mut f64) -> *mut c_char;
    fn tcp_step(
        options: *const StepOptions,
        group: *const usize,
        params: *const *const C_tensor,
        slots: *mut *mut C_tensor,
        n: usize,
        moved: *mut bool,
        begun: *mut bool,
        culprit: *mut i64,
    ) -> *mut c_char;
    fn tcp_unscale(params: *const *const C_tensor, n: usize, inverse: f64, finite: *mut bool) -> *mut c_char;
    fn tcp_average(
        averages: *const *const C_tensor,
        tensors: *const *const C_tensor,
        copied: *const bool,
        n: usize,
        weight: f64,
        begun: *mut bool,
        culprit: *mut i64,
    ) -> *mut c_char;
    fn tcp_copy(to: *const C_tensor, from: *const C_tensor, begun: *mut bool) -> *mut c_char;
    fn tcp_exchange(one: *const C_tensor, other: *const C_tensor, begun: *mut bool) -> *mut c_char;
}

/// The error of what writes tensors.
#[derive(Debug)]
pub(crate) struct WriteError {
    /// The place of the tensor that it is about.
    pub place: Option<usize>,
    pub reason: String,
    /// Whether elements may have changed by then.
    pub begun: bool,
}

/// The error of what precedes the first write.
impl From<String> for WriteError {
    fn from(reason: String) -> WriteError {
        WriteError { place: None, reason, begun: false }
    }
}

/// Converts the result of the C++ side.
pub(super) fn check(message: *mut c_char) -> Result<(), String> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message is a C string that is ours until it is freed, which happens here and nowhere else.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        tcp_free_message(message);
        text
    };
    Err(text)
}

/// Returns a tensor that the C++ side creates.
fn made(make: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Result<Tensor, String> {
    let mut tensor = ptr::null_mut();
    check(make(&raw mut tensor))?;
    // SAFETY: without a message the pointer is a new `at::Tensor`, and nobody else holds it.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

fn pointers(tensors: &[&Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(|tensor| tensor.as_ptr()).collect()
}
