//! The memory of tensors: pinning, reading, writing and creating.

use super::look::info;
use super::{
    RawPinned, WriteError, check, made, tcp_copy, tcp_copy_plain, tcp_exchange, tcp_fill, tcp_on_cpu, tcp_open,
    tcp_pin, tcp_pinned_version, tcp_read_pinned, tcp_unpin, tcp_written, tcp_zeros, tcp_zeros_like,
};
use std::ffi::c_void;
use std::ptr;
use tch::Tensor;

/// The memory that a tensor had when it was pinned, and its version counter. It can be read from any thread, whatever
/// happens to the tensor.
pub(crate) struct Pinned {
    pin: *mut c_void,
    data: *const u8,
    bytes: usize,
    /// Whether the memory is row-major and the processor's.
    pub plain: bool,
    /// Whether the processor reads it at all.
    pub cpu: bool,
}

// SAFETY: the C++ side shares ownership of the memory by atomic counts, and reads a version counter that is atomic; an
// alias tensor it has is nobody else's.
unsafe impl Send for Pinned {}
// SAFETY: as above; nothing is changed through it.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Pins the memory of a tensor; `None` if it does not have this type and shape, or has no memory of its own.
    pub(crate) fn new(tensor: &Tensor, scalar_type: i32, shape: &[u64]) -> Result<Option<Pinned>, String> {
        let mut raw = RawPinned { pin: ptr::null_mut(), data: ptr::null(), bytes: 0, plain: 0, cpu: 0 };
        // SAFETY: the tensor lives, the shape has the length that goes with it, and `raw` the layout of `tcp_pinned`.
        check(unsafe { tcp_pin(tensor.as_ptr(), scalar_type, shape.as_ptr(), shape.len(), &raw mut raw) })?;
        let bytes = usize::try_from(raw.bytes).map_err(|e| e.to_string())?;
        let pinned = Pinned { pin: raw.pin, data: raw.data.cast(), bytes, plain: raw.plain != 0, cpu: raw.cpu != 0 };
        Ok((!raw.pin.is_null()).then_some(pinned))
    }

    /// Returns the address of the first element.
    pub(crate) fn address(&self) -> usize {
        self.data as usize
    }

    /// Returns the elements if they are [plain](Pinned::plain). Other code may write to them at any time.
    pub(crate) fn memory(&self) -> Option<&[u8]> {
        if self.bytes == 0 {
            return self.plain.then_some(&[]);
        }
        // SAFETY: plain memory has all elements from the first one on, and is held for as long as this lives.
        self.plain.then(|| unsafe { std::slice::from_raw_parts(self.data, self.bytes) })
    }

    /// Copies the element at `offset` bytes from the first one.
    ///
    /// # Safety
    /// It is an element of the tensor that was pinned, and has the length of `target`; the memory is the processor's.
    pub(crate) unsafe fn element(&self, offset: usize, target: &mut [u8]) {
        // SAFETY: as the caller guarantees; the memory is held.
        unsafe { ptr::copy_nonoverlapping(self.data.add(offset), target.as_mut_ptr(), target.len()) };
    }

    /// Returns a copy in row-major order, of memory that is not plain.
    pub(crate) fn read(&self) -> Result<Tensor, String> {
        // SAFETY: the pin lives, and has an alias if its memory is not plain.
        made(|out| unsafe { tcp_read_pinned(self.pin, out) })
    }

    /// Returns how often the tensor has been changed in place; `None` if libtorch does not count that.
    pub(crate) fn version(&self) -> Option<u64> {
        // SAFETY: the pin lives.
        u64::try_from(unsafe { tcp_pinned_version(self.pin) }).ok()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it came from `tcp_pin`, and is freed nowhere else.
        unsafe { tcp_unpin(self.pin) };
    }
}

/// Copies the tensor into `target` if it has this type, shape and size and is row-major in CPU memory. Returns whether
/// it did.
pub(crate) fn copy_plain(tensor: &Tensor, scalar_type: i32, shape: &[u64], target: &mut [u8]) -> bool {
    let (out, bytes) = (target.as_mut_ptr().cast(), target.len());
    // SAFETY: the tensor lives; the shape and the target have the lengths that go with them.
    unsafe { tcp_copy_plain(tensor.as_ptr(), scalar_type, shape.as_ptr(), shape.len(), out, bytes) }
}

/// Returns the values, row-major in CPU memory: the tensor's own memory if it has this form, a copy otherwise.
pub(crate) fn on_cpu(tensor: &Tensor) -> Result<Tensor, String> {
    // SAFETY: the tensor lives.
    made(|out| unsafe { tcp_on_cpu(tensor.as_ptr(), out) })
}

/// Returns the memory of a contiguous CPU tensor, for writing; call [`written`] afterwards.
pub(crate) fn open(tensor: &Tensor) -> Result<*mut u8, String> {
    let mut data = ptr::null_mut();
    // SAFETY: the tensor lives.
    check(unsafe { tcp_open(tensor.as_ptr(), &raw mut data) })?;
    Ok(data.cast())
}

/// Tells autograd that the tensor's memory has changed.
pub(crate) fn written(tensor: &Tensor) -> Result<(), String> {
    // SAFETY: the tensor lives.
    check(unsafe { tcp_written(tensor.as_ptr()) })
}

/// Overwrites a tensor of any device and layout from its elements in row-major order.
pub(crate) fn fill(tensor: &Tensor, bytes: &mut [u8]) -> Result<(), String> {
    let needed = info(tensor)?.memory.map_err(|_| "it has no memory")?.bytes;
    if needed != bytes.len() {
        return Err(format!("it takes {needed} bytes, {} were given", bytes.len()));
    }
    // SAFETY: the tensor lives, and there are exactly as many bytes as its elements take.
    check(unsafe { tcp_fill(tensor.as_ptr(), bytes.as_mut_ptr().cast()) })
}

/// Returns zeros in CPU memory; `scalar_type` is libtorch's number.
pub(crate) fn zeros(scalar_type: i32, sizes: &[i64]) -> Result<Tensor, String> {
    // SAFETY: the pointer and the length are those of a slice.
    made(|out| unsafe { tcp_zeros(scalar_type, sizes.as_ptr(), sizes.len(), out) })
}

/// Returns zeros of the shape, type, device and layout of `tensor`.
pub(crate) fn zeros_like(tensor: &Tensor) -> Result<Tensor, String> {
    zeros_of(info(tensor)?.scalar_type, tensor)
}

/// Returns zeros of the type `scalar_type`, which is libtorch's number, and of the shape, device and layout of `tensor`.
pub(crate) fn zeros_of(scalar_type: i32, tensor: &Tensor) -> Result<Tensor, String> {
    // SAFETY: the tensor lives.
    made(|out| unsafe { tcp_zeros_like(tensor.as_ptr(), scalar_type, out) })
}

/// Copies the elements of a tensor into another one of its shape.
pub(crate) fn copy(to: &Tensor, from: &Tensor) -> Result<(), WriteError> {
    let mut begun = false;
    // SAFETY: the tensors live.
    let message = unsafe { tcp_copy(to.as_ptr(), from.as_ptr(), &raw mut begun) };
    check(message).map_err(|reason| WriteError { place: None, reason, begun })
}

/// Exchanges the elements of two tensors of one shape and type.
pub(crate) fn exchange(one: &Tensor, other: &Tensor) -> Result<(), WriteError> {
    let mut begun = false;
    // SAFETY: the tensors live.
    let message = unsafe { tcp_exchange(one.as_ptr(), other.as_ptr(), &raw mut begun) };
    check(message).map_err(|reason| WriteError { place: None, reason, begun })
}
