//! The object graph: named nodes, with tensors and small values at the leaves. Pure: it knows no file and no libtorch.

mod captures;
mod field;
mod gate;
mod group;
mod handles;
mod leaf;
mod node;
mod place;
mod survey;
mod tracked;
mod walk;

pub(crate) use captures::{Area, Entered, Hold, Touched, enter, wait_for};
pub use field::Field;
pub use gate::{Gate, Guarded};
pub use group::{Seen, TensorGroup};
pub use handles::{Counter, Value};
pub(crate) use handles::{decode, encode};
pub(crate) use leaf::bytes_as;
pub use leaf::{Identity, TensorBytes, TensorLeaf, TensorPin, TensorTarget, ValueApply, ValueLeaf};
pub(crate) use node::{Adopt, Kind};
pub use node::{Child, Collection, Created, Node, Saved, Trackable, Unfinished};
pub(crate) use place::Place;
pub(crate) use survey::Survey;
pub(crate) use tracked::Tracked;
pub(crate) use walk::{Children, Leaf, LeafObject, Visitor, Walk, walk};
