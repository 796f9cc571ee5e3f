//! The proof that nothing is ever lost: the library itself, run on a simulated disk whose every legal state after a
//! crash is looked at, and under injected faults. Compiled for tests and for the program `torture`; no part of the
//! public interface.

mod check;
mod crash;
mod faults;
mod memory;
mod random;
mod run;
mod sim;

pub use crash::{CrashReport, CrashRun, Phase, crash};
pub use faults::{FaultReport, faults_everywhere};
