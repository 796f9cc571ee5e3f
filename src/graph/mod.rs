//! The object graph: named nodes, with tensors and small values at the leaves. It is independent of files and of
//! libtorch.
//!
//! Most programs need only [`Trackable`], [`Counter`] and [`Value`], which the crate root re-exports. The other traits
//! are for implementers: [`TensorLeaf`] makes the tensors of another library trackable, [`ValueLeaf`] a value with its
//! own representation, and [`Collection`] an object whose children are added and removed over time. Their errors are
//! [`BoxError`](crate::BoxError)s.
//!
//! ```
//! # fn main() -> tch_checkpoint::Result<()> {
//! use std::sync::{Arc, Mutex, PoisonError};
//! use tch_checkpoint::graph::{ValueApply, ValueLeaf};
//! use tch_checkpoint::{BoxError, Checkpoint, Node, Trackable, serde_json};
//!
//! /// A temperature in degrees Celsius, which is saved in kelvins.
//! #[derive(Clone)]
//! struct Temperature(Arc<Mutex<f64>>);
//!
//! impl ValueLeaf for Temperature {
//!     fn save(&self) -> Result<serde_json::Value, BoxError> {
//!         Ok((*self.0.lock().map_err(|_| "its lock is poisoned")? + 273.15).into())
//!     }
//!
//!     fn load(&self, saved: &serde_json::Value) -> Result<ValueApply, BoxError> {
//!         let kelvins = saved.as_f64().ok_or("a number is expected")?;
//!         let degrees = self.0.clone();
//!         Ok(Box::new(move || *degrees.lock().unwrap_or_else(PoisonError::into_inner) = kelvins - 273.15))
//!     }
//! }
//!
//! impl Trackable for Temperature {
//!     fn node(&self) -> Node {
//!         Node::value(self.clone())
//!     }
//! }
//!
//! let checkpoint = Checkpoint::new().track("temperature", Temperature(Arc::default()))?;
//! # let _ = checkpoint;
//! # Ok(())
//! # }
//! ```

mod captures;
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "only libtorch's optimizers have exclusive access"))]
mod exclusive;
mod field;
mod gate;
mod gated;
mod group;
mod handles;
mod leaf;
mod node;
mod place;
mod survey;
mod torn;
mod tracked;
mod walk;

pub(crate) use captures::{Area, Entered, Hold, Touched, enter, wait_for};
#[doc(hidden)]
pub use exclusive::Exclusive;
#[cfg(feature = "torch")]
pub(crate) use exclusive::Writing;
pub use field::Field;
pub use gate::{Gate, Guarded};
pub(crate) use gated::{Gated, Moment, changed_meanwhile};
#[doc(hidden)]
pub use group::{Seen, TensorGroup};
pub use handles::{Counter, Value};
pub(crate) use handles::{decode, encode};
pub use leaf::{Identity, TensorBytes, TensorLeaf, TensorPin, TensorTarget, ValueApply, ValueLeaf};
pub(crate) use leaf::{LOST, bytes_as};
pub(crate) use node::{Adopt, Kind};
pub use node::{Child, Collection, Created, Node, SavedTree, Trackable, Unfinished};
pub(crate) use place::Place;
pub(crate) use survey::{Asked, Survey};
pub(crate) use torn::{Mark, Torn, mark_torn, mark_whole, torn_keys};
pub(crate) use tracked::Tracked;
pub(crate) use walk::{Children, Leaf, LeafObject, Visitor, Walk, walk};
