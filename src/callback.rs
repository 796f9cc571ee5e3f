//! User-provided functions that a save calls: panics are caught, and forbidden calls are refused.

use crate::error::{Error, Result};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Whether this thread is running such a function.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Calls a function of the user. A panic is returned as its message.
pub(crate) fn call<R>(function: impl FnOnce() -> R) -> std::result::Result<R, String> {
    let was_in = IN_CALLBACK.replace(true);
    let result = catch_unwind(AssertUnwindSafe(function));
    IN_CALLBACK.set(was_in);
    result.map_err(|panic| message(&*panic))
}

/// Rejects calls that such a function must not make: they would wait for the save, which waits for the function.
///
/// # Errors
/// [`Error::InvalidArgument`] in such a function.
pub(crate) fn refuse() -> Result<()> {
    if IN_CALLBACK.get() {
        let reason = "a function given to `on_saved` must not call the manager or restore: the save waits for it. Read the \
                      checkpoint with `CheckpointReader`, or hand its path to another thread";
        return Err(Error::InvalidArgument(reason.into()));
    }
    Ok(())
}

/// Returns the message of a panic.
pub(crate) fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a value without a message".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_message_and_ends_the_refusal() {
        assert!(refuse().is_ok());
        assert_eq!(call(|| refuse().is_err()), Ok(true));
        assert_eq!(call(|| -> u8 { panic!("no {}", 7) }), Err("no 7".to_string()));
        assert_eq!(call(|| -> u8 { std::panic::panic_any(7) }), Err("a value without a message".to_string()));
        assert!(refuse().is_ok());
    }
}
