//! The proof that nothing is ever lost: the library itself, run on a simulated disk whose every legal state after a
//! crash is looked at, and under injected faults. Compiled for tests and for the program `torture`; no part of the
//! public interface.

mod actors;
mod check;
mod crash;
mod damage;
mod faults;
#[cfg(feature = "pytorch")]
pub mod foreign;
mod history;
pub mod hostile;
mod kills;
mod loops;
mod memory;
pub mod micro;
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
#[cfg(test)]
mod unreadable;
mod words;

pub use actors::{ActorReport, actor_child, actors};
pub use crash::{CrashReport, CrashRun, Phase, crash};
pub use damage::{DamageReport, damage};
pub use faults::{FaultReport, faults_everywhere};
pub use history::{HistoryReport, broken_histories, histories};
pub use kills::{KillReport, kill_child, kills};
pub use loops::FileSystem;
pub use mutants::{MutantReport, mutants};
pub use power::{PowerReport, PowerRun, power, power_child};
pub use processes::{ProcessReport, process_child, processes};
pub use stamp::{StampReport, stamp};
