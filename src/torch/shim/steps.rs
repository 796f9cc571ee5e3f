//! Gradients, the steps of optimizers, and averages.

use super::{
    WriteError, check, made, pointers, tcp_average, tcp_clip_grad_norm, tcp_clip_grad_value, tcp_forget_used,
    tcp_free_used, tcp_gradient, tcp_gradient_is_zero, tcp_new_used, tcp_note_gradients, tcp_set_gradient, tcp_step,
    tcp_unscale, tcp_unused_gradients, tcp_zero_grad,
};
use std::ffi::c_void;
use std::ptr;
use tch::Tensor;
use torch_sys::C_tensor;

/// The maximum number of slots of a parameter.
pub(crate) const SLOTS: usize = 4;

/// The algorithm of a step. The same numbers as `tcp_algorithm` in steps.cpp.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sgd = 0,
    Adam = 1,
    AdamW = 2,
    RmsProp = 3,
}

/// The options of a parameter group. The same layout as `tcp_options` in steps.cpp; an algorithm reads only those that
/// it has.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepOptions {
    pub algorithm: Algorithm,
    pub amsgrad: bool,
    pub nesterov: bool,
    pub centered: bool,
    pub fused: bool,
    pub lr: f64,
    pub weight_decay: f64,
    pub momentum: f64,
    pub dampening: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub alpha: f64,
}

impl StepOptions {
    /// Returns options that are all zero, for those that an algorithm does not read.
    pub(crate) fn new(algorithm: Algorithm, lr: f64) -> StepOptions {
        StepOptions {
            algorithm,
            amsgrad: false,
            nesterov: false,
            centered: false,
            fused: true,
            lr,
            weight_decay: 0.0,
            momentum: 0.0,
            dampening: 0.0,
            beta1: 0.0,
            beta2: 0.0,
            eps: 0.0,
            alpha: 0.0,
        }
    }
}

/// Makes all gradients undefined.
pub(crate) fn zero_grad(params: &[&Tensor]) -> Result<(), String> {
    let params = pointers(params);
    // SAFETY: the tensors live; pointer and length are those of a vector.
    check(unsafe { tcp_zero_grad(params.as_ptr(), params.len()) })
}

/// Limits every element of every gradient to `-max ..= max`.
pub(crate) fn clip_grad_value(params: &[&Tensor], max: f64) -> Result<(), String> {
    let params = pointers(params);
    // SAFETY: the tensors live; pointer and length are those of a vector.
    check(unsafe { tcp_clip_grad_value(params.as_ptr(), params.len(), max) })
}

/// Scales the gradients to a total L2 norm of at most `max`. Returns the norm before.
pub(crate) fn clip_grad_norm(params: &[&Tensor], max: f64) -> Result<f64, String> {
    let params = pointers(params);
    let mut total = 0.0;
    // SAFETY: the tensors live; pointer and length are those of a vector.
    check(unsafe { tcp_clip_grad_norm(params.as_ptr(), params.len(), max, &raw mut total) })?;
    Ok(total)
}

/// The gradient of a parameter's last step; null if there was no memory for it.
#[derive(Debug)]
pub(crate) struct UsedGradient(*mut c_void);

// SAFETY: what it points to is read and written under a lock of the C++ side.
unsafe impl Send for UsedGradient {}
// SAFETY: as above.
unsafe impl Sync for UsedGradient {}

impl UsedGradient {
    /// None yet.
    pub(crate) fn none() -> UsedGradient {
        // SAFETY: nothing goes in; what comes out is ours, or null where there is no memory.
        UsedGradient(unsafe { tcp_new_used() })
    }

    /// Forgets the gradient, because the parameter has a new one.
    pub(crate) fn forget(&self) {
        // SAFETY: it is null or lives.
        unsafe { tcp_forget_used(self.0) }
    }
}

impl Drop for UsedGradient {
    fn drop(&mut self) {
        // SAFETY: it is null or was made by `tcp_new_used`, and nobody else has it.
        unsafe { tcp_free_used(self.0) }
    }
}

/// Records that the gradients of these parameters were used.
pub(crate) fn note_gradients<'a>(
    parameters: impl Iterator<Item = (&'a Tensor, &'a UsedGradient)>,
) -> Result<(), String> {
    let (tensors, used): (Vec<_>, Vec<_>) = parameters.map(|(tensor, used)| (tensor.as_ptr(), used.0)).unzip();
    // SAFETY: the tensors and what was made by `tcp_new_used` live, and both lists have this length.
    check(unsafe { tcp_note_gradients(tensors.as_ptr(), tensors.len(), used.as_ptr()) })
}

/// Returns, for each parameter, in order, whether it has a gradient that no step has used.
pub(crate) fn unused_gradients<'a>(parameters: impl Iterator<Item = (&'a Tensor, &'a UsedGradient)>) -> Vec<bool> {
    let (tensors, used): (Vec<_>, Vec<_>) = parameters.map(|(tensor, used)| (tensor.as_ptr(), used.0)).unzip();
    let mut unused = vec![false; tensors.len()];
    // SAFETY: as above; the third list has this length too.
    unsafe { tcp_unused_gradients(tensors.as_ptr(), used.as_ptr(), tensors.len(), unused.as_mut_ptr()) };
    unused
}

/// Returns `true` if a parameter's gradient is zero everywhere, or there is none.
pub(crate) fn gradient_is_zero(parameter: &Tensor) -> Result<bool, String> {
    let mut zero = false;
    // SAFETY: the tensor lives.
    check(unsafe { tcp_gradient_is_zero(parameter.as_ptr(), &raw mut zero) })?;
    Ok(zero)
}

/// Returns a handle to a parameter's gradient.
pub(crate) fn gradient(parameter: &Tensor) -> Result<Tensor, String> {
    // SAFETY: the tensor lives.
    made(|out| unsafe { tcp_gradient(parameter.as_ptr(), out) })
}

/// Exchanges a parameter's gradient.
pub(crate) fn set_gradient(parameter: &Tensor, gradient: Option<&Tensor>) -> Result<(), String> {
    let gradient = gradient.map_or(ptr::null(), |gradient| gradient.as_ptr());
    // SAFETY: the tensors live.
    check(unsafe { tcp_set_gradient(parameter.as_ptr(), gradient) })
}

/// A parameter and its part of an optimizer's state.
pub(crate) struct Stepped<'a> {
    /// The place of its group's options.
    pub group: usize,
    pub param: &'a Tensor,
    pub slots: &'a mut [Option<Tensor>; SLOTS],
}

/// Performs one optimizer step of all parameters that have a gradient, and creates missing slots. Sets `moved` if a
/// slot was created, or moved to another device, type or layout.
pub(crate) fn step(options: &[StepOptions], stepped: &mut [Stepped<'_>], moved: &mut bool) -> Result<(), WriteError> {
    if let Some(place) = stepped.iter().position(|one| one.group >= options.len()) {
        let reason = "its parameter group does not exist".to_string();
        return Err(WriteError { place: Some(place), reason, begun: false });
    }
    let group: Vec<usize> = stepped.iter().map(|one| one.group).collect();
    let params: Vec<_> = stepped.iter().map(|one| one.param.as_ptr()).collect();
    let mut slots: Vec<*mut C_tensor> = stepped
        .iter_mut()
        .flat_map(|one| one.slots.iter_mut())
        .map(|slot| slot.as_mut().map_or(ptr::null_mut(), Tensor::as_mut_ptr))
        .collect();
    let (mut begun, mut culprit) = (false, -1);
    // SAFETY: all tensors live; `group`, `params` and `slots` have the lengths that the C++ side reads, and every
    // group is a place in `options`.
    let message = unsafe {
        tcp_step(
            options.as_ptr(),
            group.as_ptr(),
            params.as_ptr(),
            slots.as_mut_ptr(),
            params.len(),
            moved,
            &raw mut begun,
            &raw mut culprit,
        )
    };
    for (slot, pointer) in stepped.iter_mut().flat_map(|one| one.slots.iter_mut()).zip(slots) {
        if slot.is_none() && !pointer.is_null() {
            // SAFETY: a slot that was null and is not any more is a new `at::Tensor`, ours alone.
            *slot = Some(unsafe { Tensor::from_ptr(pointer) });
        }
    }
    check(message).map_err(|reason| WriteError { place: usize::try_from(culprit).ok(), reason, begun })
}

/// Multiplies all gradients by `inverse`. Returns whether all of them are finite.
pub(crate) fn unscale(params: &[&Tensor], inverse: f64) -> Result<bool, String> {
    let (params, mut finite) = (pointers(params), true);
    // SAFETY: the tensors live; pointer and length are those of a vector.
    check(unsafe { tcp_unscale(params.as_ptr(), params.len(), inverse, &raw mut finite) })?;
    Ok(finite)
}

/// An average to be moved.
pub(crate) struct Averaged<'a> {
    pub average: &'a Tensor,
    pub tensor: &'a Tensor,
    /// Whether the tensor is copied, whatever the weight.
    pub is_copied: bool,
}

/// Moves every average towards its tensor by `weight` of their difference. A `weight` of 1 copies the tensor; averages
/// of types other than floating-point and complex numbers are always copies. Shapes and types are examined before anything is
/// written.
pub(crate) fn average(all: &[Averaged<'_>], weight: f64) -> Result<(), WriteError> {
    let averages: Vec<_> = all.iter().map(|one| one.average.as_ptr()).collect();
    let tensors: Vec<_> = all.iter().map(|one| one.tensor.as_ptr()).collect();
    let copied: Vec<bool> = all.iter().map(|one| one.is_copied).collect();
    let (mut begun, mut culprit) = (false, -1);
    // SAFETY: all tensors live; the three lists have this length.
    let message = unsafe {
        tcp_average(
            averages.as_ptr(),
            tensors.as_ptr(),
            copied.as_ptr(),
            all.len(),
            weight,
            &raw mut begun,
            &raw mut culprit,
        )
    };
    check(message).map_err(|reason| WriteError { place: usize::try_from(culprit).ok(), reason, begun })
}
