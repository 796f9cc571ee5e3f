//! The C++ file `shim.cpp`, as safe functions: what libtorch knows and tch does not reach. Every refusal of libtorch
//! comes back as its message.

use crate::graph::Seen;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use tch::Tensor;
use torch_sys::C_tensor;

/// Slots that a parameter can have.
pub(crate) const SLOTS: usize = 4;

/// Returns when a range of memory, by its first byte and length, may be written. Called on the thread that is about to
/// write, by C++: it must not unwind.
pub(crate) type Wait = extern "C" fn(*const c_void, usize);

/// Memory that is held. As `tcp_pinned` in shim.cpp.
#[repr(C)]
struct RawPinned {
    pin: *mut c_void,
    data: *const c_void,
    bytes: u64,
    plain: u8,
    cpu: u8,
}

/// What is known of a tensor. As `tcp_info` in shim.cpp.
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

/// How parameters are stepped. As `tcp_algorithm` in shim.cpp.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sgd = 0,
    Adam = 1,
    AdamW = 2,
    RmsProp = 3,
}

/// With what a parameter group is stepped. As `tcp_options` in shim.cpp; an algorithm reads only what it has.
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
    /// Returns all zero: for the rest of what an algorithm does not read.
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

// SAFETY: these are the functions of shim.cpp, with its types. Pointers to tensors are those that tch holds.
unsafe extern "C" {
    fn tcp_free_message(text: *mut c_char);
    fn tcp_tensor_info(tensor: *const C_tensor, info: *mut RawInfo) -> *mut c_char;
    fn tcp_object(tensor: *const C_tensor) -> *const c_void;
    fn tcp_version(tensor: *const C_tensor) -> i64;
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
    fn tcp_join(batch: *mut c_void, tensor: *const C_tensor, is_variable: bool, place: usize) -> *mut c_char;
    fn tcp_look(batch: *const c_void, held: *const bool, n: usize, wait: Wait, seen: *mut Seen);
    fn tcp_on_cpu(tensor: *const C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
    fn tcp_open(tensor: *const C_tensor, data: *mut *mut c_void) -> *mut c_char;
    fn tcp_written(tensor: *const C_tensor) -> *mut c_char;
    fn tcp_fill(tensor: *const C_tensor, bytes: *mut c_void) -> *mut c_char;
    fn tcp_zeros(scalar_type: i32, sizes: *const i64, dim: usize, out: *mut *mut C_tensor) -> *mut c_char;
    fn tcp_zeros_like(tensor: *const C_tensor, out: *mut *mut C_tensor) -> *mut c_char;
    fn tcp_count_generators(device_type: i32, count: *mut i64) -> *mut c_char;
    fn tcp_get_generator_state(device_type: i32, index: i32, out: *mut *mut C_tensor) -> *mut c_char;
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
        culprit: *mut i64,
    ) -> *mut c_char;
    fn tcp_unscale(params: *const *const C_tensor, n: usize, inverse: f64, finite: *mut bool) -> *mut c_char;
    fn tcp_average(
        averages: *const *const C_tensor,
        tensors: *const *const C_tensor,
        n: usize,
        weight: f64,
        culprit: *mut i64,
    ) -> *mut c_char;
    fn tcp_copy(to: *const C_tensor, from: *const C_tensor) -> *mut c_char;
    fn tcp_exchange(one: *const C_tensor, other: *const C_tensor) -> *mut c_char;
}

/// Returns what the C++ side answered.
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

/// A tensor that the C++ side makes.
fn made(make: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Result<Tensor, String> {
    let mut tensor = ptr::null_mut();
    check(make(&mut tensor))?;
    // SAFETY: without a message the pointer is a new `at::Tensor`, and nobody else holds it.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

/// A tensor, seen at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Info {
    /// Which tensor object, whatever memory it shows: equal for shallow clones, different for views.
    pub object: usize,
    /// The number of the type in libtorch.
    pub scalar_type: i32,
    /// The type's name in libtorch, such as `Float`.
    pub dtype: String,
    /// The device, such as `cpu` or `cuda:0`.
    pub device: String,
    /// Where the elements are; why not, where they are not in plain memory.
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
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests ask so far"))]
    pub storage: usize,
    /// Elements from there to the first one.
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests ask so far"))]
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

/// Looks at a tensor.
pub(crate) fn info(tensor: &Tensor) -> Result<Info, String> {
    // SAFETY: the struct is plain old data, for which zeros are a value.
    let mut raw: RawInfo = unsafe { std::mem::zeroed() };
    // SAFETY: the tensor lives, and `raw` has the layout of `tcp_info`.
    check(unsafe { tcp_tensor_info(tensor.as_ptr(), &mut raw) })?;
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

/// Which tensor object it is, whatever memory it shows: as [`Info::object`], 0 for an undefined one.
pub(crate) fn object(tensor: &Tensor) -> usize {
    // SAFETY: the tensor lives.
    unsafe { tcp_object(tensor.as_ptr()) as usize }
}

/// A number that moves when a tensor gets other memory, another shape, type or device, or is frozen; not when its
/// elements change.
pub(crate) fn fingerprint(tensor: &Tensor) -> u64 {
    // SAFETY: the tensor lives.
    unsafe { fingerprint_at(tensor.as_ptr()) }
}

/// [`fingerprint`] of many tensors, in order: faster than asking for one after the other.
pub(crate) fn fingerprints<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Vec<u64> {
    let tensors: Vec<*const C_tensor> = tensors.map(Tensor::as_ptr).collect();
    let mut fingerprints = vec![0; tensors.len()];
    // SAFETY: the tensors live, and both lists have this length.
    unsafe { tcp_fingerprints(tensors.as_ptr(), tensors.len(), fingerprints.as_mut_ptr()) };
    fingerprints
}

/// One number for which tensor objects these are, in order. It tells them from others for as long as they live.
pub(crate) fn objects<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> u64 {
    let tensors: Vec<*const C_tensor> = tensors.map(Tensor::as_ptr).collect();
    // SAFETY: the tensors live, and the list has this length.
    unsafe { tcp_objects(tensors.as_ptr(), tensors.len()) }
}

/// Tensors that are asked together; they live as long as this.
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
    /// None yet.
    pub(crate) fn new() -> Tensors {
        // SAFETY: nothing goes in; what comes out is ours, or null where there is no memory.
        Tensors { batch: unsafe { tcp_new_batch() }, end: 0 }
    }

    /// Adds a tensor with its place; `false` where there is no memory for it. Of a variable, `requires_grad` counts.
    pub(crate) fn add(&mut self, tensor: &Tensor, is_variable: bool, place: usize) -> bool {
        // SAFETY: the batch is not null, and the tensor lives.
        let joined = || check(unsafe { tcp_join(self.batch, tensor.as_ptr(), is_variable, place) });
        let added = !self.batch.is_null() && joined().is_ok();
        if added {
            self.end = self.end.max(place + 1);
        }
        added
    }

    /// Writes what they say of themselves to their places. From now on libtorch calls `wait` before the next write to
    /// the memory of those that `held` names by place, whoever writes. Must not be called on two threads at a time
    /// unless nothing is held.
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
    // SAFETY: the caller says that the tensor lives.
    unsafe { tcp_fingerprint(tensor) }
}

/// The memory that a tensor had when it was pinned, and its version counter. It stays as it is, to be read from any
/// thread, whatever becomes of the tensor.
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
    /// Pins the memory of a tensor; `None` if it is not of this type and shape, or shows no memory of its own.
    pub(crate) fn new(tensor: &Tensor, scalar_type: i32, shape: &[u64]) -> Result<Option<Pinned>, String> {
        let mut raw = RawPinned { pin: ptr::null_mut(), data: ptr::null(), bytes: 0, plain: 0, cpu: 0 };
        // SAFETY: the tensor lives, the shape has the length that goes with it, and `raw` the layout of `tcp_pinned`.
        check(unsafe { tcp_pin(tensor.as_ptr(), scalar_type, shape.as_ptr(), shape.len(), &mut raw) })?;
        let bytes = usize::try_from(raw.bytes).map_err(|e| e.to_string())?;
        let pinned = Pinned { pin: raw.pin, data: raw.data.cast(), bytes, plain: raw.plain != 0, cpu: raw.cpu != 0 };
        Ok((!raw.pin.is_null()).then_some(pinned))
    }

    /// Where the first element is.
    pub(crate) fn address(&self) -> usize {
        self.data as usize
    }

    /// Returns the elements, where they are [plain](Pinned::plain). Others may write to them at any time.
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
        // SAFETY: as the caller says; the memory is held.
        unsafe { ptr::copy_nonoverlapping(self.data.add(offset), target.as_mut_ptr(), target.len()) };
    }

    /// Returns a copy in row-major order, of memory that is not plain.
    pub(crate) fn read(&self) -> Result<Tensor, String> {
        // SAFETY: the pin lives, and has an alias if its memory is not plain.
        made(|out| unsafe { tcp_read_pinned(self.pin, out) })
    }

    /// How often the tensor was changed in place by now; `None` where libtorch does not count.
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

/// How often a tensor was changed in place; `None` where libtorch does not count.
pub(crate) fn version(tensor: &Tensor) -> Option<u64> {
    // SAFETY: the tensor lives.
    unsafe { version_at(tensor.as_ptr()) }
}

/// Like [`version`].
///
/// # Safety
/// The tensor lives.
pub(crate) unsafe fn version_at(tensor: *const C_tensor) -> Option<u64> {
    // SAFETY: the caller says that the tensor lives.
    u64::try_from(unsafe { tcp_version(tensor) }).ok()
}

/// Copies the tensor into `target` if it has this type, shape and size and is row-major in CPU memory; says whether it
/// did.
pub(crate) fn copy_plain(tensor: &Tensor, scalar_type: i32, shape: &[u64], target: &mut [u8]) -> bool {
    let (out, bytes) = (target.as_mut_ptr().cast(), target.len());
    // SAFETY: the tensor lives; the shape and the target have the lengths that go with them.
    unsafe { tcp_copy_plain(tensor.as_ptr(), scalar_type, shape.as_ptr(), shape.len(), out, bytes) }
}

/// Returns the values, row-major in CPU memory: the tensor's own memory where it is so, a copy otherwise.
pub(crate) fn on_cpu(tensor: &Tensor) -> Result<Tensor, String> {
    // SAFETY: the tensor lives.
    made(|out| unsafe { tcp_on_cpu(tensor.as_ptr(), out) })
}

/// Returns the memory of a contiguous CPU tensor, for writing; call [`written`] afterwards.
pub(crate) fn open(tensor: &Tensor) -> Result<*mut u8, String> {
    let mut data = ptr::null_mut();
    // SAFETY: the tensor lives.
    check(unsafe { tcp_open(tensor.as_ptr(), &mut data) })?;
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

/// Zeros in CPU memory; `scalar_type` is libtorch's number.
pub(crate) fn zeros(scalar_type: i32, sizes: &[i64]) -> Result<Tensor, String> {
    // SAFETY: the pointer and the length are those of a slice.
    made(|out| unsafe { tcp_zeros(scalar_type, sizes.as_ptr(), sizes.len(), out) })
}

/// Zeros of the shape, type, device and layout of `tensor`.
pub(crate) fn zeros_like(tensor: &Tensor) -> Result<Tensor, String> {
    // SAFETY: the tensor lives.
    made(|out| unsafe { tcp_zeros_like(tensor.as_ptr(), out) })
}

/// A kind of device that has generators of random numbers; the numbers are libtorch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GeneratorDevice {
    Cpu = 0,
    Cuda = 1,
    Mps = 13,
}

/// Returns how many default generators of that kind there are.
pub(crate) fn count_generators(device: GeneratorDevice) -> Result<i32, String> {
    let mut count = 0;
    // SAFETY: the count is ours to write to.
    check(unsafe { tcp_count_generators(device as i32, &mut count) })?;
    i32::try_from(count).map_err(|e| e.to_string())
}

/// Returns the state of a default generator: bytes, on the CPU.
pub(crate) fn generator_state(device: GeneratorDevice, index: i32) -> Result<Tensor, String> {
    // SAFETY: only numbers go in.
    made(|out| unsafe { tcp_get_generator_state(device as i32, index, out) })
}

/// Sets the state of a default generator; one that is refused leaves it as it was.
pub(crate) fn set_generator_state(device: GeneratorDevice, index: i32, state: &Tensor) -> Result<(), String> {
    // SAFETY: the tensor lives.
    check(unsafe { tcp_set_generator_state(device as i32, index, state.as_ptr()) })
}

fn pointers(tensors: &[&Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(|tensor| tensor.as_ptr()).collect()
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

/// Scales the gradients to a common L2 norm of at most `max`; gives the norm before.
pub(crate) fn clip_grad_norm(params: &[&Tensor], max: f64) -> Result<f64, String> {
    let params = pointers(params);
    let mut total = 0.0;
    // SAFETY: the tensors live; pointer and length are those of a vector.
    check(unsafe { tcp_clip_grad_norm(params.as_ptr(), params.len(), max, &mut total) })?;
    Ok(total)
}

/// Which gradient a parameter was stepped with last; null where there was no memory for it.
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

    /// Forgets the gradient: the parameter has got another one.
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

/// Notes that the gradients of these parameters were used.
pub(crate) fn note_gradients<'a>(
    parameters: impl Iterator<Item = (&'a Tensor, &'a UsedGradient)>,
) -> Result<(), String> {
    let (tensors, used): (Vec<_>, Vec<_>) = parameters.map(|(tensor, used)| (tensor.as_ptr(), used.0)).unzip();
    // SAFETY: the tensors and what was made by `tcp_new_used` live, and both lists have this length.
    check(unsafe { tcp_note_gradients(tensors.as_ptr(), tensors.len(), used.as_ptr()) })
}

/// Returns of each parameter, in order, whether it has a gradient that no step has used.
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
    check(unsafe { tcp_gradient_is_zero(parameter.as_ptr(), &mut zero) })?;
    Ok(zero)
}

/// A handle to a parameter's gradient.
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

/// A step that failed, and at which parameter.
#[derive(Debug)]
pub(crate) struct StepError {
    pub place: Option<usize>,
    pub reason: String,
}

/// One optimizer step of all parameters that have a gradient; makes the slots that are missing.
pub(crate) fn step(options: &[StepOptions], stepped: &mut [Stepped<'_>]) -> Result<(), StepError> {
    if let Some(place) = stepped.iter().position(|one| one.group >= options.len()) {
        return Err(StepError { place: Some(place), reason: "its parameter group does not exist".to_string() });
    }
    let group: Vec<usize> = stepped.iter().map(|one| one.group).collect();
    let params: Vec<_> = stepped.iter().map(|one| one.param.as_ptr()).collect();
    let mut slots: Vec<*mut C_tensor> = stepped
        .iter_mut()
        .flat_map(|one| one.slots.iter_mut())
        .map(|slot| slot.as_mut().map_or(ptr::null_mut(), Tensor::as_mut_ptr))
        .collect();
    let mut culprit = -1;
    // SAFETY: all tensors live; `group`, `params` and `slots` have the lengths that the C++ side reads, and every
    // group is a place in `options`.
    let message = unsafe {
        tcp_step(options.as_ptr(), group.as_ptr(), params.as_ptr(), slots.as_mut_ptr(), params.len(), &mut culprit)
    };
    for (slot, pointer) in stepped.iter_mut().flat_map(|one| one.slots.iter_mut()).zip(slots) {
        if slot.is_none() && !pointer.is_null() {
            // SAFETY: a slot that was null and is not any more is a new `at::Tensor`, ours alone.
            *slot = Some(unsafe { Tensor::from_ptr(pointer) });
        }
    }
    check(message).map_err(|reason| StepError { place: usize::try_from(culprit).ok(), reason })
}

/// Multiplies all gradients by `inverse`; says whether all of them are finite.
pub(crate) fn unscale(params: &[&Tensor], inverse: f64) -> Result<bool, String> {
    let (params, mut finite) = (pointers(params), true);
    // SAFETY: the tensors live; pointer and length are those of a vector.
    check(unsafe { tcp_unscale(params.as_ptr(), params.len(), inverse, &mut finite) })?;
    Ok(finite)
}

/// Moves every average towards its tensor by `weight` of their difference. A `weight` of 1 copies the tensor; averages
/// of types other than floating-point and complex numbers are always copies. Shapes are compared before anything is
/// written.
pub(crate) fn average(averages: &[&Tensor], tensors: &[&Tensor], weight: f64) -> Result<(), StepError> {
    if averages.len() != tensors.len() {
        return Err(StepError { place: None, reason: "there are more averages than tensors, or fewer".to_string() });
    }
    let (averages, tensors, mut culprit) = (pointers(averages), pointers(tensors), -1);
    // SAFETY: all tensors live; both lists have this length.
    let message = unsafe { tcp_average(averages.as_ptr(), tensors.as_ptr(), averages.len(), weight, &mut culprit) };
    check(message).map_err(|reason| StepError { place: usize::try_from(culprit).ok(), reason })
}

/// Copies the elements of a tensor into another one of its shape.
pub(crate) fn copy(to: &Tensor, from: &Tensor) -> Result<(), String> {
    // SAFETY: the tensors live.
    check(unsafe { tcp_copy(to.as_ptr(), from.as_ptr()) })
}

/// Exchanges the elements of two tensors of one shape and type.
pub(crate) fn exchange(one: &Tensor, other: &Tensor) -> Result<(), String> {
    // SAFETY: the tensors live.
    check(unsafe { tcp_exchange(one.as_ptr(), other.as_ptr()) })
}
