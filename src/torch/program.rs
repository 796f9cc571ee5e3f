//! Safe functions over `program.cpp` and what it calls: TorchScript programs.

use super::shim::check;
use std::any::Any;
use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use tch::Tensor;
use torch_sys::C_tensor;

/// A TorchScript module of libtorch.
#[repr(C)]
struct RawProgram {
    _private: [u8; 0],
}

/// A list of tensors of C++.
#[repr(C)]
struct RawTensors {
    _private: [u8; 0],
}

type Closure = unsafe extern "C" fn(*mut c_void, *const *mut C_tensor, usize, *mut RawTensors) -> i32;
type Read = unsafe extern "C" fn(*mut c_void, u64, *mut c_void, usize) -> i32;
type Write = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> i32;
type Visit = unsafe extern "C" fn(*mut c_void, *const c_char, usize, *mut C_tensor, u8);

// SAFETY: these are the functions of program.cpp, with its types. Pointers to tensors are those that tch holds.
unsafe extern "C" {
    fn tcp_push(tensors: *mut RawTensors, tensor: *const C_tensor);
    fn tcp_program_new(
        names: *const *const c_char,
        lengths: *const usize,
        tensors: *const *const C_tensor,
        are_parameters: *const u8,
        n: usize,
        culprit: *mut usize,
        out: *mut *mut RawProgram,
    ) -> *mut c_char;
    fn tcp_program_free(program: *mut RawProgram);
    fn tcp_program_trace(
        program: *mut RawProgram,
        name: *const c_char,
        input_names: *const *const c_char,
        inputs: *const *const C_tensor,
        n_inputs: usize,
        n_examples: usize,
        n_given: usize,
        others: *const *const C_tensor,
        n_others: usize,
        closure: Closure,
        data: *mut c_void,
    ) -> *mut c_char;
    fn tcp_program_reread(program: *const RawProgram, out: *mut *mut RawProgram) -> *mut c_char;
    fn tcp_program_write(program: *const RawProgram, write: Write, data: *mut c_void) -> *mut c_char;
    fn tcp_program_bytes(program: *const RawProgram, bytes: *mut u64) -> *mut c_char;
    fn tcp_program_read(
        read: Read,
        data: *mut c_void,
        size: usize,
        from: *const c_char,
        to: *const c_char,
        out: *mut *mut RawProgram,
    ) -> *mut c_char;
    fn tcp_program_variables(program: *const RawProgram, visit: Visit, data: *mut c_void) -> *mut c_char;
    fn tcp_program_inputs(program: *const RawProgram, name: *const c_char, inputs: *mut usize) -> *mut c_char;
    fn tcp_program_run(
        program: *const RawProgram,
        name: *const c_char,
        inputs: *const *const C_tensor,
        n: usize,
        out: *mut *mut RawTensors,
    ) -> *mut c_char;
    fn tcp_tensors_len(tensors: *const RawTensors) -> usize;
    fn tcp_tensors_take(tensors: *mut RawTensors, i: usize) -> *mut C_tensor;
    fn tcp_tensors_free(tensors: *mut RawTensors);
}

/// A parameter or buffer of a program.
#[derive(Debug)]
pub(super) struct ProgramVariable {
    pub name: String,
    pub tensor: Tensor,
    pub is_parameter: bool,
}

/// A TorchScript module with the variables' names and one method per signature.
pub(super) struct Program(*mut RawProgram);

// SAFETY: a module is reference-counted atomically and belongs to no thread; it is not used by two at once.
unsafe impl Send for Program {}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the pointer came from C++ and is freed here only.
        unsafe { tcp_program_free(self.0) }
    }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{text:?} has a zero byte in it"))
}

fn pointers<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<*const C_tensor> {
    tensors.into_iter().map(Tensor::as_ptr).collect()
}

/// The state of a callback from C++, and the error or panic of its Rust code: neither may unwind through C++.
struct Call<F, E> {
    work: F,
    met: Option<Result<E, Box<dyn Any + Send>>>,
}

impl<F, E> Call<F, E> {
    fn new(work: F) -> Call<F, E> {
        Call { work, met: None }
    }

    fn data(&mut self) -> *mut c_void {
        ptr::from_mut(self).cast()
    }

    /// Runs `part` of the work. Records an error or panic, and returns whether there was one.
    fn run(&mut self, part: impl FnOnce(&mut F) -> Result<(), E>) -> i32 {
        if self.met.is_some() {
            return 1;
        }
        let work = &mut self.work;
        self.met = match catch_unwind(AssertUnwindSafe(|| part(work))) {
            Ok(Ok(())) => return 0,
            Ok(Err(error)) => Some(Ok(error)),
            Err(panic) => Some(Err(panic)),
        };
        1
    }

    /// Returns the error of libtorch that a method of tch has turned into a panic: while tracing, libtorch rejects more
    /// than usual.
    fn torch_refusal(&self) -> Option<String> {
        let Some(Err(panic)) = &self.met else { return None };
        let (_, reason) = panic.downcast_ref::<String>()?.split_once("value: Torch(\"")?;
        Some(reason.split("\\n").next().unwrap_or_default().to_string())
    }

    /// Returns the recorded error, or resumes a panic.
    fn met(self) -> Option<E> {
        match self.met? {
            Ok(error) => Some(error),
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// The error of the Rust callback, or of C++.
pub(super) enum Failure<E> {
    Callback(E),
    Torch(String),
}

fn result<F, E>(call: Call<F, E>, message: *mut c_char) -> Result<(), Failure<E>> {
    let torch = check(message);
    match call.met() {
        Some(error) => Err(Failure::Callback(error)),
        None => torch.map_err(Failure::Torch),
    }
}

impl Program {
    fn made<E>(make: impl FnOnce(*mut *mut RawProgram) -> Result<(), E>) -> Result<Program, E> {
        let mut program = ptr::null_mut();
        make(&raw mut program)?;
        Ok(Program(program))
    }

    /// Creates a module of these variables, without methods. An error names the variable that it cannot have.
    pub(super) fn new(variables: &[ProgramVariable]) -> Result<Program, (String, String)> {
        let names: Vec<*const c_char> = variables.iter().map(|variable| variable.name.as_ptr().cast()).collect();
        let lengths: Vec<usize> = variables.iter().map(|variable| variable.name.len()).collect();
        let tensors = pointers(variables.iter().map(|variable| &variable.tensor));
        let parameters: Vec<u8> = variables.iter().map(|variable| u8::from(variable.is_parameter)).collect();
        let mut culprit = 0;
        Program::made(|out| {
            // SAFETY: all lists have `variables.len()` elements, and live until the call returns.
            let message = unsafe {
                let (names, lengths) = (names.as_ptr(), lengths.as_ptr());
                let (tensors, parameters) = (tensors.as_ptr(), parameters.as_ptr());
                tcp_program_new(names, lengths, tensors, parameters, variables.len(), &raw mut culprit, out)
            };
            check(message)
        })
        .map_err(|reason| {
            let name = variables.get(culprit).map_or_else(|| "program".to_string(), |one| one.name.clone());
            (name, reason)
        })
    }

    /// Adds a method, traced from `closure` with every example; all have as many inputs as there are names. The first
    /// `given` examples determine the numbers in the program; the others only confirm them. `others` are variables that
    /// the program lacks and must not have as constants either.
    pub(super) fn trace(
        &mut self,
        name: &str,
        input_names: &[String],
        examples: &[Vec<Tensor>],
        given: usize,
        others: &[ProgramVariable],
        closure: &mut dyn FnMut(&[Tensor]) -> Vec<Tensor>,
    ) -> Result<(), String> {
        unsafe extern "C" fn call(
            data: *mut c_void,
            inputs: *const *mut C_tensor,
            n: usize,
            outputs: *mut RawTensors,
        ) -> i32 {
            // SAFETY: `data` is the call that `trace` passed on, which waits there. C++ gives `n` new tensors away.
            let (call, inputs) = unsafe {
                let call = &mut *data.cast::<Call<&mut dyn FnMut(&[Tensor]) -> Vec<Tensor>, String>>();
                let tensor = |i| Tensor::from_ptr(*inputs.add(i));
                (call, (0..n).map(tensor).collect::<Vec<Tensor>>())
            };
            call.run(|closure| {
                let made = closure(&inputs);
                if made.is_empty() {
                    return Err("the closure gave no output".to_string());
                }
                for tensor in &made {
                    if !tensor.defined() {
                        return Err("the closure gave an undefined tensor".to_string());
                    }
                    // SAFETY: both live; C++ copies the handle.
                    unsafe { tcp_push(outputs, tensor.as_ptr()) };
                }
                Ok(())
            })
        }
        if examples.iter().any(|example| example.len() != input_names.len()) {
            return Err(format!("every example needs {} inputs, one for each name", input_names.len()));
        }
        let name = c_string(name)?;
        let names: Vec<CString> = input_names.iter().map(|name| c_string(name)).collect::<Result<_, _>>()?;
        let names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let inputs = pointers(examples.iter().flatten());
        let others = pointers(others.iter().map(|variable| &variable.tensor));
        let mut state = Call::<_, String>::new(closure);
        // SAFETY: the lists have as many elements as is said, and everything lives until the call returns.
        let message = unsafe {
            let (names, inputs) = (names.as_ptr(), inputs.as_ptr());
            tcp_program_trace(
                self.0,
                name.as_ptr(),
                names,
                inputs,
                input_names.len(),
                examples.len(),
                given,
                others.as_ptr(),
                others.len(),
                call,
                state.data(),
            )
        };
        if let Some(reason) = state.torch_refusal() {
            state.met = Some(Ok(reason));
        }
        result(state, message).map_err(|failure| match failure {
            Failure::Callback(reason) | Failure::Torch(reason) => reason,
        })
    }

    /// Returns the program as it will be read from a file, with the same variables.
    pub(super) fn reread(&self) -> Result<Program, String> {
        // SAFETY: the program lives.
        Program::made(|out| check(unsafe { tcp_program_reread(self.0, out) }))
    }

    /// Passes the bytes of the file to `write`, in order.
    pub(super) fn write<E>(&self, write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), Failure<E>> {
        unsafe extern "C" fn call<F: FnMut(&[u8]) -> Result<(), E>, E>(
            data: *mut c_void,
            bytes: *const c_void,
            n: usize,
        ) -> i32 {
            // SAFETY: `data` is the call below, which waits there.
            let call = unsafe { &mut *data.cast::<Call<F, E>>() };
            // SAFETY: C++ shows `n` bytes; for none of them the pointer may be null.
            let bytes = if n == 0 { &[] } else { unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), n) } };
            call.run(|write| write(bytes))
        }
        fn instance<F: FnMut(&[u8]) -> Result<(), E>, E>(_: &Call<F, E>) -> Write {
            call::<F, E>
        }
        let mut state = Call::new(write);
        let callback = instance(&state);
        // SAFETY: the program lives, and `callback` is for the type of `state`, which lives until this returns.
        let message = unsafe { tcp_program_write(self.0, callback, state.data()) };
        result(state, message)
    }

    /// Returns approximately how many bytes [`write`](Program::write) will write.
    pub(super) fn bytes(&self) -> Result<u64, String> {
        let mut bytes = 0;
        // SAFETY: the program and the number live.
        check(unsafe { tcp_program_bytes(self.0, &raw mut bytes) })?;
        Ok(bytes)
    }

    /// Reads a program of `size` bytes, which `read` reads from any offset, onto the device `to`, and replaces the
    /// device `from` by it in the program.
    pub(super) fn read<E>(
        size: usize,
        from: &str,
        to: &str,
        read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Program, Failure<E>> {
        unsafe extern "C" fn call<F: FnMut(u64, &mut [u8]) -> Result<(), E>, E>(
            data: *mut c_void,
            offset: u64,
            buffer: *mut c_void,
            n: usize,
        ) -> i32 {
            // SAFETY: `data` is the call below, which waits there.
            let call = unsafe { &mut *data.cast::<Call<F, E>>() };
            if n == 0 {
                return 0;
            }
            // SAFETY: C++ has room for `n` bytes there, which nobody else sees now. They are written before they are
            // read: a reader of ours only writes.
            let buffer = unsafe {
                ptr::write_bytes(buffer.cast::<u8>(), 0, n);
                std::slice::from_raw_parts_mut(buffer.cast::<u8>(), n)
            };
            call.run(|read| read(offset, buffer))
        }
        fn instance<F: FnMut(u64, &mut [u8]) -> Result<(), E>, E>(_: &Call<F, E>) -> Read {
            call::<F, E>
        }
        let (from, to) = (c_string(from).map_err(Failure::Torch)?, c_string(to).map_err(Failure::Torch)?);
        let mut state = Call::new(read);
        let callback = instance(&state);
        let mut program = ptr::null_mut();
        // SAFETY: `callback` is for the type of `state`, which lives until this returns.
        let message =
            unsafe { tcp_program_read(callback, state.data(), size, from.as_ptr(), to.as_ptr(), &raw mut program) };
        result(state, message)?;
        Ok(Program(program))
    }

    /// Returns all parameters and buffers of the program, not copies.
    pub(super) fn variables(&self) -> Result<Vec<ProgramVariable>, String> {
        unsafe extern "C" fn visit(
            data: *mut c_void,
            name: *const c_char,
            length: usize,
            tensor: *mut C_tensor,
            parameter: u8,
        ) {
            // SAFETY: `data` is the list below; the name has that many bytes; the tensor is new and becomes ours.
            unsafe {
                let name = std::slice::from_raw_parts(name.cast::<u8>(), length);
                let name = String::from_utf8_lossy(name).into_owned();
                let variable = ProgramVariable { name, tensor: Tensor::from_ptr(tensor), is_parameter: parameter != 0 };
                (*data.cast::<Vec<ProgramVariable>>()).push(variable);
            }
        }
        let mut found: Vec<ProgramVariable> = Vec::new();
        // SAFETY: the program and the list live.
        check(unsafe { tcp_program_variables(self.0, visit, ptr::from_mut(&mut found).cast()) })?;
        Ok(found)
    }

    /// Returns the number of inputs of a method.
    pub(super) fn inputs(&self, name: &str) -> Result<usize, String> {
        let name = c_string(name)?;
        let mut inputs = 0;
        // SAFETY: program, name and number live.
        check(unsafe { tcp_program_inputs(self.0, name.as_ptr(), &raw mut inputs) })?;
        Ok(inputs)
    }

    /// Runs a method.
    pub(super) fn run(&self, name: &str, inputs: &[&Tensor]) -> Result<Vec<Tensor>, String> {
        let name = c_string(name)?;
        let inputs = pointers(inputs.iter().copied());
        let mut list = ptr::null_mut();
        // SAFETY: everything lives, and the list has as many elements as is said.
        check(unsafe { tcp_program_run(self.0, name.as_ptr(), inputs.as_ptr(), inputs.len(), &raw mut list) })?;
        // SAFETY: without a message it is a new list, ours alone; every element is taken once.
        unsafe {
            let take = |i| Tensor::from_ptr(tcp_tensors_take(list, i));
            let tensors = (0..tcp_tensors_len(list)).map(take).collect();
            tcp_tensors_free(list);
            Ok(tensors)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn the_bytes_that_are_planned_are_those_that_are_written() {
        let random = |size: &[i64]| Tensor::rand(size, (Kind::Float, Device::Cpu));
        let (large, flat) = (random(&[500, 1000]), random(&[20_000]));
        let part = large.narrow(0, 10, 1);
        let (left, right) = (flat.narrow(0, 0, 10_000), flat.narrow(0, 10_000, 10_000));
        let whole = random(&[30, 100]);
        let tensors =
            [("part", &part), ("tied", &part), ("whole", &whole), ("halves.left", &left), ("halves.right", &right)];
        let variable = |(name, tensor): (&str, &Tensor)| ProgramVariable {
            name: name.to_string(),
            tensor: tensor.shallow_clone(),
            is_parameter: false,
        };
        let mut program = Program::new(&tensors.map(variable)).map_err(|(_, reason)| reason).unwrap();
        let constant = large.narrow(0, 20, 2);
        let mut closure = |x: &[Tensor]| vec![&x[0] + &constant + &part];
        let examples = [vec![random(&[1, 1000])], vec![random(&[1, 1000])]];
        program.trace("forward", &["x".to_string()], &examples, 2, &[], &mut closure).unwrap();
        let mut written = 0;
        let count = |bytes: &[u8]| {
            written += bytes.len() as u64;
            Ok::<(), ()>(())
        };
        assert!(program.write(count).is_ok());
        let planned = program.bytes().unwrap();
        assert!(planned.abs_diff(written) < 4096 && written < 130_000, "{planned} planned, {written} written");
    }
}
