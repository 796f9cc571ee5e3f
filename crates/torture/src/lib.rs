//! Tests that nothing is lost: the library runs on a simulated disk, of which every possible state after a crash is
//! examined, and under injected faults. This package's tests are short forms; the program `torture` runs them at full
//! length.
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]
#![deny(unsafe_code)]
#![allow(clippy::missing_errors_doc, reason = "an error describes what was found, and this package is not published")]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::todo, clippy::unimplemented, clippy::dbg_macro)
)]

mod actors;
mod check;
#[cfg(all(test, not(shuttle)))]
mod corpora;
mod crash;
mod damage;
mod faults;
pub mod foreign;
mod history;
pub mod hostile;
mod kills;
pub mod layouts;
mod loops;
mod marked;
mod memory;
#[cfg(test)]
mod moved;
mod mutants;
mod oracle;
mod power;
mod processes;
mod random;
mod run;
#[cfg(all(test, shuttle))]
mod schedules;
mod sim;
mod stamp;
mod system;
mod table;
#[cfg(test)]
mod unreadable;
mod words;

pub use actors::{ActorReport, Beside, Careless, actor_child, actors};
pub use crash::{CrashReport, CrashRun, Phase, Programs, crash};
pub use damage::{DamageReport, damage};
pub use faults::{FaultReport, faults_everywhere};
pub use history::{HistoryReport, broken_histories, histories};
pub use kills::{KillReport, kill_child, kills};
pub use loops::FileSystem;
pub use mutants::{MutantReport, mutants};
pub use power::{PowerReport, PowerRun, power, power_child};
pub use processes::{ProcessReport, process_child, processes};
pub use stamp::{StampReport, stamp};
