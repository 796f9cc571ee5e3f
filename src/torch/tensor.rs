//! Tensors of libtorch as leaves of the graph.

use super::shim::{self, Info, Memory, NoMemory, Pinned, Tensors};
use super::undone;
use crate::dtype::{Dtype, TensorSpec};
use crate::error::BoxError;
use crate::graph::{
    self, Area, Exclusive, Identity, Mark, Node, Seen, TensorBytes, TensorGroup, TensorLeaf, TensorPin, TensorTarget,
    Touched, Trackable, Writing, bytes_as, wait_for,
};
use std::any::Any;
use std::ffi::c_void;
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use tch::Tensor;
use torch_sys::C_tensor;

#[cfg(target_endian = "big")]
compile_error!("checkpoints hold little-endian bytes, and tensors are read from memory without conversion");

/// The types that libtorch and safetensors share, with libtorch's number (`c10::ScalarType`; checked in tensors.cpp).
const DTYPES: [(i32, Dtype); 19] = [
    (0, Dtype::U8),
    (1, Dtype::I8),
    (2, Dtype::I16),
    (3, Dtype::I32),
    (4, Dtype::I64),
    (5, Dtype::F16),
    (6, Dtype::F32),
    (7, Dtype::F64),
    (9, Dtype::C64),
    (11, Dtype::Bool),
    (15, Dtype::BF16),
    (23, Dtype::F8E5m2),
    (24, Dtype::F8E4m3),
    (25, Dtype::F8E5m2fnuz),
    (26, Dtype::F8E4m3fnuz),
    (27, Dtype::U16),
    (28, Dtype::U32),
    (29, Dtype::U64),
    (44, Dtype::F8E8m0),
];

/// libtorch's numbers of the types that can require a gradient: floating-point types, those of 8 bits included, and
/// complex types.
const CAN_REQUIRE_GRAD: [i32; 12] = [5, 6, 7, 8, 9, 10, 15, 23, 24, 25, 26, 44];

/// The types of real numbers in which an optimizer can step variables.
const REAL: [Dtype; 4] = [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64];

/// Returns `true` if a slot of one type is converted when its variable is of the other. The imaginary part would be lost.
pub(super) fn can_convert(one: Dtype, other: Dtype) -> bool {
    one == other || (REAL.contains(&one) && REAL.contains(&other))
}

/// Returns libtorch's number of a type.
pub(super) fn scalar_type(dtype: Dtype) -> Option<i32> {
    DTYPES.iter().find(|(_, known)| *known == dtype).map(|(number, _)| *number)
}

/// Returns what a writer of these tensors touches.
pub(super) fn touched<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Touched {
    let mut touched = Touched::default();
    for info in tensors.filter_map(|tensor| shim::info(tensor).ok()) {
        touched.add_variable(Some(info.object));
        let memory = info.memory.ok();
        let area = memory.map(|memory| Area::new(&info.device, memory.data as usize, memory.span));
        area.into_iter().for_each(|area| touched.add_area(area));
    }
    touched
}

/// Marks tensors that are partly overwritten, so that none of them is saved.
pub(super) fn mark_torn<'a>(tensors: impl Iterator<Item = &'a Tensor>) {
    graph::mark_torn(tensors.map(|tensor| Mark::new(Arc::new(Leaf::new(tensor)))));
}

fn dtype(info: &Info) -> Result<Dtype, String> {
    DTYPES.iter().find(|(number, _)| *number == info.scalar_type).map(|(_, dtype)| *dtype).ok_or_else(|| {
        let advice = match info.dtype.as_str() {
            "ComplexHalf" => "; track it as `ComplexFloat`, or its `view_as_real`",
            "ComplexDouble" => "; track its `view_as_real`, which shows the same memory as pairs of `Double`",
            _ => "; track a tensor of another type",
        };
        format!("its elements are {}, which safetensors files have no type for{advice}", info.dtype)
    })
}

/// Returns the type, shape and memory of a tensor, or the reason why it cannot be saved.
pub(super) fn examine(tensor: &Tensor) -> Result<(TensorSpec, Info, Memory), String> {
    let info = shim::info(tensor)?;
    let memory = info.memory.clone().map_err(|reason| match reason {
        NoMemory::Undefined => "it is an undefined tensor; track it once it has a value".to_string(),
        NoMemory::Meta => "it is on the `meta` device and has no values; move it to a real device first".to_string(),
        NoMemory::Quantized => {
            "it is quantized, which safetensors files cannot hold; track `int_repr()` and its scales".to_string()
        }
        NoMemory::Layout(layout) => {
            format!("its layout is {layout}, and only strided tensors can be saved; track its parts or `to_dense()`")
        }
    })?;
    let dtype = dtype(&info)?;
    let shape: Option<Vec<u64>> = memory.sizes.iter().map(|&length| u64::try_from(length).ok()).collect();
    let spec = TensorSpec::new(dtype, shape.ok_or("its shape has a negative length")?);
    if memory.bytes > 0 && memory.data.is_null() {
        return Err("its memory was released; give it a value before it is saved or restored".to_string());
    }
    if elements_may_overlap(&memory) {
        return Err("several of its elements are the same memory (it is expanded, or a view that overlaps itself), \
                    so saved values could not be put back one by one; track the tensor it was made from, or its \
                    `contiguous()` copy"
            .to_string());
    }
    Ok((spec, info, memory))
}

/// Returns `true` if two indices may refer to the same memory. They do not if, in the order of their strides, every
/// dimension steps over everything that the dimensions before it reach.
fn elements_may_overlap(memory: &Memory) -> bool {
    if memory.sizes.contains(&0) {
        return false;
    }
    let mut dimensions: Vec<(i64, i64)> = memory
        .strides
        .iter()
        .zip(&memory.sizes)
        .filter(|&(_, &length)| length > 1)
        .map(|(&stride, &length)| (stride, length))
        .collect();
    dimensions.sort_unstable();
    let mut reach = 0;
    for (stride, length) in dimensions {
        if stride <= reach {
            return true;
        }
        reach += stride * (length - 1);
    }
    false
}

/// Whether the elements are of a type that can require a gradient.
fn can_require_grad(tensor: &Tensor) -> bool {
    shim::info(tensor).is_ok_and(|info| CAN_REQUIRE_GRAD.contains(&info.scalar_type))
}

/// A tensor in the graph.
#[derive(Clone)]
pub(super) struct Leaf(Arc<Held>);

/// Behind a lock, because `tch::Tensor` is `Send` but not `Sync`.
pub(super) struct Held {
    tensor: Mutex<Tensor>,
    object: usize,
    glance: Glance,
    /// Whether it is the user's own tensor and can require a gradient.
    is_variable: bool,
    /// The access of its writer, if that had the only handle when the leaf was made.
    exclusive: Option<Arc<Exclusive>>,
    /// The type and shape that a restore has for it.
    adapted: Mutex<Option<TensorSpec>>,
    /// Whether it is a tensor of the user, who may have given it to the checkpoint by value.
    is_users: bool,
    /// Whether the user had a handle when it was tracked first, so that one must still be there.
    is_watched: OnceLock<bool>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.is_watched.get() == Some(&true) {
            shim::unwatch(self.tensor.get_mut().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Leaf {
    pub(super) fn new(tensor: &Tensor) -> Leaf {
        Leaf::held(tensor.shallow_clone(), false, None, false)
    }

    /// Creates a leaf of a tensor to which only a writer of this crate has a handle, until it shares it.
    pub(super) fn exclusive(tensor: &Tensor, exclusive: &Arc<Exclusive>) -> Leaf {
        Leaf::held(tensor.shallow_clone(), false, Some(exclusive.clone()), false)
    }

    /// Creates a leaf of a tensor that may be a variable, whose `requires_grad` is saved.
    pub(super) fn variable(tensor: &Tensor) -> Leaf {
        Leaf::held(tensor.shallow_clone(), can_require_grad(tensor), None, false)
    }

    /// Like [`variable`](Leaf::variable), for a tensor that the user tracks.
    fn of_user(tensor: &Tensor) -> Leaf {
        Leaf::held(tensor.shallow_clone(), can_require_grad(tensor), None, true)
    }

    fn held(tensor: Tensor, is_variable: bool, exclusive: Option<Arc<Exclusive>>, is_users: bool) -> Leaf {
        let (object, glance) = (shim::object(&tensor), Glance(tensor.as_ptr()));
        let (tensor, adapted, is_watched) = (Mutex::new(tensor), Mutex::default(), OnceLock::new());
        Leaf(Arc::new(Held { tensor, object, glance, is_variable, exclusive, adapted, is_users, is_watched }))
    }

    /// Returns a handle that does not keep the tensor alive.
    pub(super) fn downgrade(&self) -> Weak<Held> {
        Arc::downgrade(&self.0)
    }

    /// Returns the leaf if it is still alive.
    pub(super) fn upgrade(weak: &Weak<Held>) -> Option<Leaf> {
        weak.upgrade().map(Leaf)
    }

    /// Returns another handle to the tensor, for the user: the access of its writer is no longer exclusive.
    pub(super) fn share(&self) -> Tensor {
        if let Some(exclusive) = &self.0.exclusive {
            exclusive.share();
        }
        self.tensor()
    }

    /// Returns another handle to the tensor, for its writer.
    pub(super) fn tensor(&self) -> Tensor {
        self.with(Tensor::shallow_clone)
    }

    fn adapted(&self) -> MutexGuard<'_, Option<TensorSpec>> {
        self.0.adapted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_watched(&self) -> bool {
        self.0.is_watched.get() == Some(&true)
    }

    fn with<R>(&self, use_it: impl FnOnce(&Tensor) -> R) -> R {
        use_it(&self.0.tensor.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl TensorLeaf for Leaf {
    fn spec(&self) -> Result<TensorSpec, BoxError> {
        Ok(self.with(|tensor| examine(tensor).map(|(spec, ..)| spec))?)
    }

    fn identity(&self) -> Option<Identity> {
        // A copy-on-write clone is another tensor, although it shows the same memory until one of the two is written.
        let examined = self.with(|tensor| shim::unshare(tensor).and_then(|()| examine(tensor)));
        let (spec, info, memory) = examined.ok()?;
        if memory.bytes == 0 || memory.lazy {
            return None;
        }
        // The stride of a dimension of length 1 has no effect, and libtorch leaves any number there.
        let steps = memory.strides.iter().zip(&memory.sizes);
        let strides = steps.map(|(&stride, &length)| if length == 1 { 0 } else { stride }).collect();
        Some(Identity { device: info.device, address: memory.data as usize, spec, strides })
    }

    fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError> {
        Ok(self.with(bytes_of)?)
    }

    fn copy_to(&self, spec: &TensorSpec, target: &mut [u8]) -> Result<(), BoxError> {
        let copied = |number| self.with(|tensor| shim::copy_plain(tensor, number, &spec.shape, target));
        if scalar_type(spec.dtype).is_some_and(copied) {
            return Ok(());
        }
        target.copy_from_slice(bytes_as(self, spec)?.as_slice());
        Ok(())
    }

    fn is_plain_memory(&self) -> bool {
        self.with(|tensor| {
            shim::info(tensor)
                .is_ok_and(|info| info.memory.is_ok_and(|memory| memory.cpu && memory.contiguous && !memory.lazy))
        })
    }

    fn version(&self) -> Option<u64> {
        self.0.glance.version()
    }

    fn is_undone(&self, then: u64, now: u64) -> bool {
        undone::is_same(self.0.object, then, now)
    }

    fn generation(&self) -> Option<u64> {
        Some(self.0.glance.fingerprint())
    }

    fn as_any(&self) -> Option<&dyn std::any::Any> {
        Some(self)
    }

    fn join(&self, place: usize, group: &mut Option<Box<dyn TensorGroup>>) -> bool {
        let group: &mut dyn Any = &mut **group.get_or_insert_with(|| Box::new(Together(Tensors::new())));
        let is_watched = self.is_watched();
        let add = |group: &mut Together| self.with(|tensor| group.0.add(tensor, self.0.is_variable, is_watched, place));
        group.downcast_mut().is_some_and(add)
    }

    fn exclusive(&self) -> Option<Arc<Exclusive>> {
        self.0.exclusive.clone().filter(|exclusive| !exclusive.is_shared())
    }

    fn variable(&self) -> Option<usize> {
        Some(self.0.object).filter(|object| *object != 0)
    }

    fn pin(&self, spec: &TensorSpec) -> Result<Option<Box<dyn TensorPin>>, BoxError> {
        let pin = |number| self.with(|tensor| pin(tensor, number, spec));
        match scalar_type(spec.dtype).map(pin).transpose()?.flatten() {
            Some(pin) => Ok(Some(Box::new(pin))),
            None => Err(format!("it is no longer {spec}, or shows no memory of its own any more").into()),
        }
    }

    fn was_tracked(&self) {
        self.0.is_watched.get_or_init(|| self.0.is_users && self.with(shim::watch));
    }

    fn is_lost(&self) -> bool {
        self.is_watched() && self.with(shim::is_lost)
    }

    fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.with(shim::is_alone)
    }

    fn requires_grad(&self) -> Option<bool> {
        if !self.0.is_variable {
            return None;
        }
        self.with(|tensor| tensor.is_leaf().then(|| tensor.requires_grad()))
    }

    fn set_requires_grad(&self, requires_grad: bool) -> Result<(), BoxError> {
        Ok(self.with(|tensor| tensor.f_set_requires_grad(requires_grad)).map(drop)?)
    }

    fn adapt_to(&self, saved: &TensorSpec) -> bool {
        let Some((spec, ..)) = self.0.exclusive.as_ref().and_then(|_| self.with(examine).ok()) else { return false };
        let can = spec.shape == saved.shape && can_convert(spec.dtype, saved.dtype);
        *self.adapted() = can.then(|| saved.clone());
        can
    }

    fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError> {
        let (tensor, (spec, _, memory)) =
            self.with(|tensor| Ok::<_, String>((tensor.shallow_clone(), examine(tensor)?)))?;
        let writing = self.0.exclusive.as_ref().map(Exclusive::write);
        let adapted = self.adapted().clone().filter(|adapted| *adapted != spec);
        if let (Some(spec), Some(exclusive)) = (adapted, &self.0.exclusive) {
            let bytes = spec.bytes().and_then(|bytes| usize::try_from(bytes).ok());
            let buffer = vec![0; bytes.ok_or("its size does not fit this machine")?];
            return Ok(Box::new(Exchanged { buffer, spec, tensor, exclusive: exclusive.clone(), _writing: writing }));
        }
        if memory.cpu && memory.contiguous && !memory.lazy {
            let data = shim::open(&tensor)?;
            let held = scalar_type(spec.dtype).map(|number| Pinned::new(&tensor, number, &spec.shape)).transpose()?;
            let is_bool = spec.dtype == Dtype::Bool;
            return Ok(Box::new(InPlace {
                data,
                len: memory.bytes,
                is_bool,
                tensor,
                _held: held.flatten(),
                _writing: writing,
            }));
        }
        Ok(Box::new(Buffered { buffer: vec![0; memory.bytes], spec, tensor, _writing: writing }))
    }
}

/// A pointer to query a tensor without a lock, as a save does for thousands of tensors while training waits.
struct Glance(*const C_tensor);

// SAFETY: the pointer is to the `at::Tensor` of the `tch::Tensor` that `Held` keeps with this one and never replaces.
// Both questions only read; libtorch's version counter is atomic, and the fingerprint is read on the thread that saves.
unsafe impl Send for Glance {}
// SAFETY: as above.
unsafe impl Sync for Glance {}

impl Glance {
    fn version(&self) -> Option<u64> {
        // SAFETY: the tensor lives as long as this does, in the same `Held`.
        unsafe { shim::version_at(self.0) }
    }

    fn fingerprint(&self) -> u64 {
        // SAFETY: as above.
        unsafe { shim::fingerprint_at(self.0) }
    }
}

/// Tensors that are queried together.
struct Together(Tensors);

impl TensorGroup for Together {
    fn look(&self, held: &[bool], seen: &mut [Seen]) {
        self.0.look(held, before_write, seen);
    }
}

/// Returns a tensor's bytes: its own memory if that is row-major and on the CPU, otherwise a copy.
pub(super) fn bytes_of(tensor: &Tensor) -> Result<Box<dyn TensorBytes>, String> {
    let (spec, _, own) = examine(tensor)?;
    if own.cpu && own.contiguous && !own.lazy {
        let pinned = scalar_type(spec.dtype).map(|number| Pinned::new(tensor, number, &spec.shape)).transpose()?;
        let pinned = pinned.flatten().filter(|pinned| pinned.plain);
        return Ok(Box::new(Bytes(pinned.ok_or("it was changed while it was being saved")?)));
    }
    copied(&shim::on_cpu(tensor)?)
}

/// Returns the bytes of a row-major CPU tensor that nothing else uses.
fn copied(copy: &Tensor) -> Result<Box<dyn TensorBytes>, String> {
    let (spec, ..) = examine(copy)?;
    let pinned = scalar_type(spec.dtype).map(|number| Pinned::new(copy, number, &spec.shape)).transpose()?.flatten();
    Ok(Box::new(Bytes(pinned.filter(|pinned| pinned.plain).ok_or("libtorch did not make a plain copy of it")?)))
}

/// The bytes of a contiguous CPU tensor. It holds the memory itself, so the tensor may get another memory or be
/// dropped. If something else writes to the memory meanwhile, each byte is read as of some moment of that time.
struct Bytes(Pinned);

impl TensorBytes for Bytes {
    fn as_slice(&self) -> &[u8] {
        self.0.memory().unwrap_or_default()
    }
}

/// A tensor's memory, held after the call of a background save has returned.
struct Pin {
    pinned: Pinned,
    /// Lengths and strides, in elements, of memory that is not row-major.
    layout: Vec<(i64, i64)>,
}

/// Pins a tensor. Returns `None` if it does not have this type and shape.
fn pin(tensor: &Tensor, number: i32, spec: &TensorSpec) -> Result<Option<Pin>, String> {
    let Some(pinned) = Pinned::new(tensor, number, &spec.shape)? else { return Ok(None) };
    let layout = match pinned.plain {
        true => Vec::new(),
        false => {
            let memory = examine(tensor)?.2;
            memory.sizes.into_iter().zip(memory.strides).collect()
        }
    };
    Ok(Some(Pin { pinned, layout }))
}

impl TensorPin for Pin {
    fn bytes(&self) -> Result<Box<dyn TensorBytes + '_>, BoxError> {
        match self.pinned.plain {
            true => Ok(Box::new(PinnedSlice(&self.pinned))),
            false => Ok(copied(&self.pinned.read()?)?),
        }
    }

    fn memory(&self) -> Option<&[u8]> {
        self.pinned.memory()
    }

    fn sample(&self, element: u64, target: &mut [u8]) -> bool {
        if let Some(memory) = self.pinned.memory() {
            let begin = usize::try_from(element).ok().and_then(|element| element.checked_mul(target.len()));
            let bytes = begin.and_then(|begin| memory.get(begin..begin.checked_add(target.len())?));
            return bytes.map(|bytes| target.copy_from_slice(bytes)).is_some();
        }
        let (mut rest, mut steps) = (element as i64, 0);
        for (length, stride) in self.layout.iter().rev().filter(|(length, _)| *length > 0) {
            steps += rest % length * stride;
            rest /= length;
        }
        if !self.pinned.cpu || rest != 0 {
            return false;
        }
        // SAFETY: the index is within the lengths, so the strides lead to an element; the memory is CPU memory.
        unsafe { self.pinned.element(steps as usize * target.len(), target) };
        true
    }

    fn version(&self) -> Option<u64> {
        self.pinned.version()
    }

    fn address(&self) -> Option<usize> {
        Some(self.pinned.address())
    }
}

/// Waits until no background save reads this memory. libtorch calls it before a write.
extern "C" fn before_write(data: *const c_void, bytes: usize) {
    // Captures catch panics themselves; this makes sure that none unwinds through C++.
    let _ = catch_unwind(|| {
        wait_for(|| {
            let mut touched = Touched::default();
            touched.add_area(Area::new("cpu", data as usize, bytes));
            touched
        });
    });
}

struct PinnedSlice<'a>(&'a Pinned);

impl TensorBytes for PinnedSlice<'_> {
    fn as_slice(&self) -> &[u8] {
        self.0.memory().unwrap_or_default()
    }
}

/// A contiguous CPU tensor that is overwritten in its own memory. It stays the same leaf of autograd: `requires_grad`,
/// gradient and aliases are unchanged. Its version counter increases, so that libtorch refuses a backward pass through
/// the old values instead of computing a wrong gradient, and so that a background save detects the change.
struct InPlace {
    data: *mut u8,
    len: usize,
    is_bool: bool,
    tensor: Tensor,
    _held: Option<Pinned>,
    _writing: Option<Writing>,
}

// SAFETY: `data` points into memory that is held here; `tensor` is itself Send.
unsafe impl Send for InPlace {}

impl TensorTarget for InPlace {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: the memory, which is held here, has that many bytes from its first element on. A restore is the only
        // user of the tensors that it restores, and writes those whose memory overlaps one after the other
        // (restore/overlap.rs), so that no other slice of this memory is borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }

    fn finish(mut self: Box<Self>) -> Result<(), BoxError> {
        if self.is_bool {
            make_bools(self.as_mut_slice());
        }
        Ok(shim::written(&self.tensor)?)
    }
}

/// A tensor of another device or layout, into which libtorch copies the elements at the end.
struct Buffered {
    buffer: Vec<u8>,
    spec: TensorSpec,
    tensor: Tensor,
    _writing: Option<Writing>,
}

impl TensorTarget for Buffered {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn finish(mut self: Box<Self>) -> Result<(), BoxError> {
        let now = examine(&self.tensor)?.0;
        if now != self.spec {
            return Err(format!("it was {} and became {now} while it was being restored", self.spec).into());
        }
        if now.dtype == Dtype::Bool {
            make_bools(&mut self.buffer);
        }
        Ok(shim::fill(&self.tensor, &mut self.buffer)?)
    }
}

/// A slot of another type than the saved one. At the end it gets new memory of the saved type, as it had when it was saved;
/// the next step of its variable converts it.
struct Exchanged {
    buffer: Vec<u8>,
    /// The saved type and shape.
    spec: TensorSpec,
    tensor: Tensor,
    exclusive: Arc<Exclusive>,
    _writing: Option<Writing>,
}

impl TensorTarget for Exchanged {
    fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn finish(mut self: Box<Self>) -> Result<(), BoxError> {
        let now = examine(&self.tensor)?.0;
        if now.shape != self.spec.shape {
            return Err(format!("it became {now} while it was being restored").into());
        }
        let number = scalar_type(self.spec.dtype).ok_or_else(|| format!("libtorch has no type {}", self.spec.dtype))?;
        let made = shim::zeros_of(number, &self.tensor)?;
        shim::fill(&made, &mut self.buffer)?;
        // It stays the same tensor object, so that other handles to the slot follow.
        self.tensor.f_set_data(&made)?;
        self.exclusive.moved();
        Ok(())
    }
}

/// In C++, a bool other than 0 and 1 is undefined behaviour, and a file of another tool may have any byte.
fn make_bools(bytes: &mut [u8]) {
    bytes.iter_mut().filter(|byte| **byte > 1).for_each(|byte| *byte = 1);
}

/// Tracks the tensor itself, not a copy. A restore writes into its memory, so that views and clones of the handle see
/// the restored values. Device, layout, `requires_grad` and the gradient are unchanged. Restoring counts as an in-place
/// change: libtorch refuses `backward` through a graph that was built before.
///
/// Give new values with an in-place operation such as `copy_`. A tensor that the tracked object no longer has, because
/// another one was assigned to its field, is an error at the next save or restore. A tensor that is given to
/// [`track`](crate::Checkpoint::track) by value belongs to the checkpoint.
///
/// Saves refuse sparse, quantized and expanded tensors, tensors of the `meta` device, and types that safetensors files
/// lack.
///
/// ```no_run
/// use tch_checkpoint::{Node, Trackable};
///
/// struct RunningMean { mean: tch::Tensor, count: tch::Tensor }
///
/// impl Trackable for RunningMean {
///     fn node(&self) -> Node {
///         Node::group([("mean", self.mean.node()), ("count", self.count.node())])
///     }
/// }
/// ```
impl Trackable for Tensor {
    fn node(&self) -> Node {
        Node::tensor(Leaf::of_user(self))
    }
}

#[cfg(test)]
mod tests;
