//! Queries of tensors, one by one or together.

use super::{
    RawInfo, Wait, check, tcp_fingerprint, tcp_fingerprints, tcp_free_batch, tcp_is_alone, tcp_is_lost, tcp_join,
    tcp_look, tcp_new_batch, tcp_object, tcp_objects, tcp_tensor_info, tcp_unshare, tcp_unwatch, tcp_version,
    tcp_watch,
};
use crate::graph::Seen;
use std::ffi::c_void;
use tch::Tensor;
use torch_sys::C_tensor;

/// The properties of a tensor at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Info {
    /// The identity of the tensor object, independent of its memory: equal for shallow clones, different for views.
    pub object: usize,
    /// The number of the type in libtorch.
    pub scalar_type: i32,
    /// The type's name in libtorch, such as `Float`.
    pub dtype: String,
    /// The device, such as `cpu` or `cuda:0`.
    pub device: String,
    /// The memory of the elements, or why they are not in plain memory.
    pub memory: Result<Memory, NoMemory>,
}

/// Why a tensor has no elements in memory to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoMemory {
    Undefined,
    Meta,
    Quantized,
    /// The layout: `Sparse`, `SparseCsr`, `Mkldnn`, `Nested` …
    Layout(String),
}

/// The memory of a strided tensor.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    /// The first element.
    pub data: *const u8,
    /// The beginning of the storage, which views share.
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests use it so far"))]
    pub storage: usize,
    /// Elements from there to the first one.
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests use it so far"))]
    pub storage_offset: i64,
    pub sizes: Vec<i64>,
    /// In elements.
    pub strides: Vec<i64>,
    /// Bytes that all elements take together.
    pub bytes: usize,
    /// Bytes from the first to the last element, with the gaps between them.
    pub span: usize,
    /// Whether it is all of its storage.
    pub is_whole: bool,
    /// In the memory of this process that the processor reads.
    pub cpu: bool,
    /// Row-major, without gaps.
    pub contiguous: bool,
    /// A conjugate or negative view: the memory holds other values than the tensor shows.
    pub lazy: bool,
}

/// Returns the properties of a tensor.
pub(crate) fn info(tensor: &Tensor) -> Result<Info, String> {
    // SAFETY: the struct is plain old data, for which zeros are a value.
    let mut raw: RawInfo = unsafe { std::mem::zeroed() };
    // SAFETY: the tensor lives, and `raw` has the layout of `tcp_info`.
    check(unsafe { tcp_tensor_info(tensor.as_ptr(), &raw mut raw) })?;
    let text = |chars: &[u8; 24]| {
        let end = chars.iter().position(|&c| c == 0).unwrap_or(chars.len());
        String::from_utf8_lossy(&chars[..end]).into_owned()
    };
    let device = text(&raw.device);
    let memory = if raw.defined == 0 {
        Err(NoMemory::Undefined)
    } else if raw.quantized != 0 {
        Err(NoMemory::Quantized)
    } else if raw.plain == 0 && device.starts_with("meta") {
        Err(NoMemory::Meta)
    } else if raw.plain == 0 {
        Err(NoMemory::Layout(text(&raw.layout)))
    } else {
        let lengths = |first: *const i64| {
            let dim = usize::try_from(raw.dim).unwrap_or(0);
            if dim == 0 {
                return Vec::new();
            }
            // SAFETY: the tensor has `dim` sizes and strides, and nothing has changed it since.
            unsafe { std::slice::from_raw_parts(first, dim) }.to_vec()
        };
        let bytes = raw.numel.checked_mul(raw.element_size).and_then(|bytes| usize::try_from(bytes).ok());
        Ok(Memory {
            data: raw.data.cast(),
            storage: raw.storage as usize,
            storage_offset: raw.storage_offset,
            sizes: lengths(raw.sizes),
            strides: lengths(raw.strides),
            bytes: bytes.ok_or("its size does not fit this machine")?,
            span: usize::try_from(raw.span).unwrap_or(0),
            is_whole: raw.whole != 0,
            cpu: raw.cpu != 0,
            contiguous: raw.contiguous != 0,
            lazy: raw.lazy != 0,
        })
    };
    Ok(Info { object: raw.object as usize, scalar_type: raw.scalar_type, dtype: text(&raw.dtype), device, memory })
}

/// Returns the identity of the tensor object, as [`Info::object`]; 0 for an undefined tensor.
pub(crate) fn object(tensor: &Tensor) -> usize {
    // SAFETY: the tensor lives.
    unsafe { tcp_object(tensor.as_ptr()) as usize }
}

/// Gives the tensor memory of its own if it shares it only until one of those that show it is written (copy-on-write).
pub(crate) fn unshare(tensor: &Tensor) -> Result<(), String> {
    // SAFETY: the tensor lives.
    check(unsafe { tcp_unshare(tensor.as_ptr()) })
}

/// Whether nobody else has a handle to the tensor or to its memory.
pub(crate) fn is_alone(tensor: &Tensor) -> bool {
    // SAFETY: the tensor lives.
    unsafe { tcp_is_alone(tensor.as_ptr()) }
}

/// Watches the tensor of this handle, until [`unwatch`], if somebody else has a handle: returns whether.
pub(crate) fn watch(tensor: &Tensor) -> bool {
    // SAFETY: the tensor lives.
    unsafe { tcp_watch(tensor.as_ptr()) }
}

/// Ends what [`watch`] has begun for this handle.
pub(crate) fn unwatch(tensor: &Tensor) {
    // SAFETY: the tensor lives.
    unsafe { tcp_unwatch(tensor.as_ptr()) }
}

/// Whether nobody but this crate has a handle to a tensor that is watched.
pub(crate) fn is_lost(tensor: &Tensor) -> bool {
    // SAFETY: the tensor lives.
    unsafe { tcp_is_lost(tensor.as_ptr()) }
}

/// Returns a number that changes when a tensor gets other memory, another shape, type or device, or is frozen, but not
/// when its elements change.
pub(crate) fn fingerprint(tensor: &Tensor) -> u64 {
    // SAFETY: the tensor lives.
    unsafe { fingerprint_at(tensor.as_ptr()) }
}

/// Returns the [`fingerprint`] of many tensors, in order: faster than one call per tensor.
pub(crate) fn fingerprints<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Vec<u64> {
    let tensors: Vec<*const C_tensor> = tensors.map(Tensor::as_ptr).collect();
    let mut fingerprints = vec![0; tensors.len()];
    // SAFETY: the tensors live, and both lists have this length.
    unsafe { tcp_fingerprints(tensors.as_ptr(), tensors.len(), fingerprints.as_mut_ptr()) };
    fingerprints
}

/// Returns a number that identifies these tensor objects, in order, for as long as they live.
pub(crate) fn objects<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> u64 {
    let tensors: Vec<*const C_tensor> = tensors.map(Tensor::as_ptr).collect();
    // SAFETY: the tensors live, and the list has this length.
    unsafe { tcp_objects(tensors.as_ptr(), tensors.len()) }
}

/// Tensors that are queried together. They live as long as this does.
pub(crate) struct Tensors {
    batch: *mut c_void,
    /// One more than the highest of their places.
    end: usize,
}

// SAFETY: the C++ side holds tensors by atomic counts. What it is asked only reads them, as [`version`] and
// [`fingerprint`] do; the hook is set by one thread at a time.
unsafe impl Send for Tensors {}
// SAFETY: as above.
unsafe impl Sync for Tensors {}

impl Tensors {
    /// Creates an empty batch.
    pub(crate) fn new() -> Tensors {
        // SAFETY: nothing goes in; what comes out is ours, or null where there is no memory.
        Tensors { batch: unsafe { tcp_new_batch() }, end: 0 }
    }

    /// Adds a tensor with its place; returns `false` if there is no memory for it. For a variable, `requires_grad` is
    /// reported. A watched tensor is reported if it is lost.
    pub(crate) fn add(&mut self, tensor: &Tensor, is_variable: bool, is_watched: bool, place: usize) -> bool {
        // SAFETY: the batch is not null, and the tensor lives.
        let joined = || check(unsafe { tcp_join(self.batch, tensor.as_ptr(), is_variable, is_watched, place) });
        let added = !self.batch.is_null() && joined().is_ok();
        if added {
            self.end = self.end.max(place + 1);
        }
        added
    }

    /// Writes what each tensor reports to its place. From now on, libtorch calls `wait` before the next write by any
    /// code to the memory of those that `held` names by place. Must not be called on two threads at a time unless
    /// nothing is held.
    pub(crate) fn look(&self, held: &[bool], wait: Wait, seen: &mut [Seen]) {
        if self.end == 0 || seen.len() < self.end {
            return;
        }
        // SAFETY: the batch is not null where a tensor was added; all places are in `seen`, and `held` has its length.
        unsafe { tcp_look(self.batch, held.as_ptr(), held.len(), wait, seen.as_mut_ptr()) };
    }
}

impl Drop for Tensors {
    fn drop(&mut self) {
        // SAFETY: it is null or came from `tcp_new_batch`, and is freed nowhere else.
        unsafe { tcp_free_batch(self.batch) };
    }
}

/// Like [`fingerprint`].
///
/// # Safety
/// The tensor lives.
pub(crate) unsafe fn fingerprint_at(tensor: *const C_tensor) -> u64 {
    // SAFETY: the caller guarantees that the tensor lives.
    unsafe { tcp_fingerprint(tensor) }
}

/// Returns how often a tensor was changed in place; `None` if libtorch does not count that.
pub(crate) fn version(tensor: &Tensor) -> Option<u64> {
    // SAFETY: the tensor lives.
    unsafe { version_at(tensor.as_ptr()) }
}

/// Like [`version`].
///
/// # Safety
/// The tensor lives.
pub(crate) unsafe fn version_at(tensor: *const C_tensor) -> Option<u64> {
    // SAFETY: the caller guarantees that the tensor lives.
    u64::try_from(unsafe { tcp_version(tensor) }).ok()
}
