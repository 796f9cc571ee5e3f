//! The time that checkpoints are stamped with, and that rotation goes by.

use chrono::{DateTime, TimeDelta, Utc};

/// Now.
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now().checked_add_signed(offset()).unwrap_or_else(Utc::now)
}

#[cfg(not(any(test, feature = "torture")))]
fn offset() -> TimeDelta {
    TimeDelta::zero()
}

#[cfg(any(test, feature = "torture"))]
fn offset() -> TimeDelta {
    hook::OFFSET.get()
}

/// A clock that is wrong, for tests: of the thread that sets it.
#[cfg(any(test, feature = "torture"))]
pub(crate) mod hook {
    use chrono::TimeDelta;
    use std::cell::Cell;

    thread_local! {
        pub(crate) static OFFSET: Cell<TimeDelta> = const { Cell::new(TimeDelta::zero()) };
    }
}
