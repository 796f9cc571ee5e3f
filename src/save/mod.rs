//! Saving: `plan` (objects → components → byte layout), `write` (several threads, positional writes, digests in the
//! same pass), then `Transaction::commit`; `request` puts them together. The only place that sequences durability.

mod asset;
mod behind;
mod buffer;
mod chunk;
mod clock;
mod copy;
mod freeze;
mod gather;
mod held;
mod image;
mod lazy;
mod options;
mod plan;
mod request;
mod same;
mod samples;
mod scan;
mod tracked;
mod unchanged;
mod write;

pub use asset::AssetStream;
pub(crate) use asset::check_names;
pub(crate) use clock::SaveClock;
pub(crate) use copy::copy;
pub(crate) use freeze::Noted;
pub(crate) use held::Held;
pub(crate) use image::{Capture, Failure, Image, Others};
pub(crate) use lazy::{AllSeen, Lazy};
pub use options::{Health, SaveOptions};
pub(crate) use plan::{Plan, plan};
pub(crate) use request::{Committed, SaveRequest, Stamp};
pub(crate) use same::is_saved;
pub use tracked::Asset as UserAsset;
pub(crate) use tracked::FileStamp;
pub(crate) use unchanged::{Memo, Unchanged};
