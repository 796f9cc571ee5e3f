//! Transforms of tensors, independent of a source.

use super::pattern::Pattern;
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{BoxError, Loss};
use std::fmt;
use std::sync::Arc;

/// A user-defined function for [`Transform::function`].
///
/// ```
/// use tch_checkpoint::map::{Loss, TensorFunction};
/// use tch_checkpoint::{BoxError, TensorSpec};
///
/// /// Reverses the bytes.
/// struct Reverse;
///
/// impl TensorFunction for Reverse {
///     fn spec(&self, inputs: &[TensorSpec]) -> Result<TensorSpec, BoxError> {
///         Ok(inputs.first().cloned().ok_or("takes one tensor")?)
///     }
///
///     fn apply(&self, _: &[TensorSpec], mut inputs: Vec<Vec<u8>>) -> Result<Vec<u8>, BoxError> {
///         let mut bytes = inputs.pop().unwrap_or_default();
///         bytes.reverse();
///         Ok(bytes)
///     }
///
///     fn loss(&self) -> Loss {
///         Loss::Nothing
///     }
/// }
/// ```
pub trait TensorFunction: Send + Sync {
    /// Returns the dtype and shape of the result. Called before anything is read.
    ///
    /// # Errors
    /// The reason why the function cannot be applied to such tensors.
    fn spec(&self, inputs: &[TensorSpec]) -> Result<TensorSpec, BoxError>;

    /// Computes the elements, row-major and little-endian, with exactly the length of [`spec`](TensorFunction::spec).
    /// It may be called several times for one tensor, from several threads, and must return the same result each time.
    ///
    /// # Errors
    /// The reason why the elements are refused.
    fn apply(&self, specs: &[TensorSpec], inputs: Vec<Vec<u8>>) -> Result<Vec<u8>, BoxError>;

    /// Returns what is lost. Defaults to [`Loss::Unknown`].
    fn loss(&self) -> Loss {
        Loss::Unknown
    }
}

/// A function and its name.
#[derive(Clone)]
pub(crate) struct Function {
    pub name: String,
    pub function: Arc<dyn TensorFunction>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl PartialEq for Function {
    fn eq(&self, other: &Function) -> bool {
        self.name == other.name
    }
}

/// A computation of a tensor from tensors of a source. Shapes are checked when the map is applied to a source; elements
/// are computed when the tensor is read. Dimensions are counted from 0, or from the end if negative.
///
/// ```
/// use tch_checkpoint::Dtype;
/// use tch_checkpoint::map::Transform;
/// let weight = Transform::of("dense/kernel").transpose().cast(Dtype::F32);
/// assert_eq!(weight.to_string(), "cast(transpose(dense/kernel), F32)");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Transform(pub(crate) Expr);

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expr {
    Source(Pattern),
    Cast(Box<Expr>, Dtype),
    /// Without axes, all dimensions are reversed.
    Transpose(Box<Expr>, Option<Vec<i64>>),
    /// `None` is the dimension that is inferred from the others.
    Reshape(Box<Expr>, Vec<Option<u64>>),
    Flatten(Box<Expr>, i64, i64),
    Slice(Box<Expr>, i64, Option<u64>, Option<u64>),
    Blocks(Box<Expr>, i64, u64, Vec<u64>),
    Concat(i64, Vec<Expr>),
    Stack(i64, Vec<Expr>),
    Repeat(Box<Expr>, Vec<u64>),
    Pad(Box<Expr>, i64, u64, f64),
    Truncate(Box<Expr>, i64, u64),
    Add(Vec<Expr>),
    Zeros(Box<Expr>),
    Function(Function, Vec<Expr>),
}

impl Transform {
    fn boxed(self) -> Box<Expr> {
        Box::new(self.0)
    }

    fn all(parts: impl IntoIterator<Item = Transform>) -> Vec<Expr> {
        parts.into_iter().map(|part| part.0).collect()
    }

    /// Returns the source's tensor of this name, unchanged. A `*` in it matches the same text as in the defined name.
    #[must_use]
    pub fn of(name: &str) -> Transform {
        Transform(Expr::Source(Pattern::new(name)))
    }

    /// Converts the elements to `dtype`: floats are rounded to the nearest, ties to even, and integers must fit. There
    /// is no conversion from floats to integers, to booleans, or to 8-bit floats.
    #[must_use]
    pub fn cast(self, dtype: Dtype) -> Transform {
        Transform(Expr::Cast(self.boxed(), dtype))
    }

    /// Reverses the order of the dimensions.
    #[must_use]
    pub fn transpose(self) -> Transform {
        Transform(Expr::Transpose(self.boxed(), None))
    }

    /// Permutes the dimensions to the order of `axes`.
    #[must_use]
    pub fn permute(self, axes: impl Into<Vec<i64>>) -> Transform {
        Transform(Expr::Transpose(self.boxed(), Some(axes.into())))
    }

    /// Changes the shape of the same elements in row-major order. One dimension may be `None`: it is inferred from the
    /// others.
    #[must_use]
    pub fn reshape(self, shape: impl Into<Vec<Option<u64>>>) -> Transform {
        Transform(Expr::Reshape(self.boxed(), shape.into()))
    }

    /// Merges the dimensions from `first` to `last` into one.
    #[must_use]
    pub fn flatten(self, first: i64, last: i64) -> Transform {
        Transform(Expr::Flatten(self.boxed(), first, last))
    }

    /// Takes the elements `start..end` along a dimension; `None` means its start or its end.
    #[must_use]
    pub fn slice(self, dim: i64, start: impl Into<Option<u64>>, end: impl Into<Option<u64>>) -> Transform {
        Transform(Expr::Slice(self.boxed(), dim, start.into(), end.into()))
    }

    /// Divides a dimension into `count` equal blocks, and selects the blocks `order`, such as the gates of a recurrent
    /// layer or one of three projections.
    #[must_use]
    pub fn blocks(self, dim: i64, count: u64, order: impl Into<Vec<u64>>) -> Transform {
        Transform(Expr::Blocks(self.boxed(), dim, count, order.into()))
    }

    /// Concatenates tensors along an existing dimension.
    pub fn concat(dim: i64, parts: impl IntoIterator<Item = Transform>) -> Transform {
        Transform(Expr::Concat(dim, Transform::all(parts)))
    }

    /// Stacks tensors of one shape along a new dimension.
    pub fn stack(dim: i64, parts: impl IntoIterator<Item = Transform>) -> Transform {
        Transform(Expr::Stack(dim, Transform::all(parts)))
    }

    /// Repeats the tensor along each dimension, as `torch.Tensor.repeat` does.
    #[must_use]
    pub fn repeat(self, times: impl Into<Vec<u64>>) -> Transform {
        Transform(Expr::Repeat(self.boxed(), times.into()))
    }

    /// Pads a dimension to `length` with elements of the value `value`.
    #[must_use]
    pub fn pad(self, dim: i64, length: u64, value: f64) -> Transform {
        Transform(Expr::Pad(self.boxed(), dim, length, value))
    }

    /// Truncates a dimension to `length`.
    #[must_use]
    pub fn truncate(self, dim: i64, length: u64) -> Transform {
        Transform(Expr::Truncate(self.boxed(), dim, length))
    }

    /// Adds tensors of one dtype and shape, element by element: F16, BF16, F32 or F64.
    pub fn sum(parts: impl IntoIterator<Item = Transform>) -> Transform {
        Transform(Expr::Add(Transform::all(parts)))
    }

    /// Returns zeros of this dtype and shape.
    #[must_use]
    pub fn zeros(self) -> Transform {
        Transform(Expr::Zeros(self.boxed()))
    }

    /// Returns the result of `function` on some tensors. `name` denotes it in texts.
    pub fn function(
        name: &str,
        function: impl TensorFunction + 'static,
        inputs: impl IntoIterator<Item = Transform>,
    ) -> Transform {
        let function = Function { name: name.to_string(), function: Arc::new(function) };
        Transform(Expr::Function(function, Transform::all(inputs)))
    }
}

impl Expr {
    /// Returns the names of tensors in it, from left to right.
    pub(crate) fn sources(&self) -> Vec<&Pattern> {
        let mut found = Vec::new();
        self.each_source(&mut |name| found.push(name));
        found
    }

    fn each_source<'a>(&'a self, with: &mut impl FnMut(&'a Pattern)) {
        match self {
            Expr::Source(name) => with(name),
            Expr::Cast(inner, _)
            | Expr::Transpose(inner, _)
            | Expr::Reshape(inner, _)
            | Expr::Flatten(inner, ..)
            | Expr::Slice(inner, ..)
            | Expr::Blocks(inner, ..)
            | Expr::Repeat(inner, _)
            | Expr::Pad(inner, ..)
            | Expr::Truncate(inner, ..)
            | Expr::Zeros(inner) => inner.each_source(with),
            Expr::Concat(_, parts) | Expr::Stack(_, parts) | Expr::Add(parts) | Expr::Function(_, parts) => {
                parts.iter().for_each(|part| part.each_source(with));
            }
        }
    }
}

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns a list in the text form.
fn list<T: fmt::Display>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(T::to_string).collect::<Vec<_>>().join(", "))
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: &Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
        let all = |parts: &[Expr]| parts.iter().map(Expr::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Expr::Source(name) => name.fmt(f),
            Expr::Cast(inner, dtype) => write!(f, "cast({inner}, {dtype})"),
            Expr::Transpose(inner, None) => write!(f, "transpose({inner})"),
            Expr::Transpose(inner, Some(axes)) => write!(f, "transpose({inner}, {})", list(axes)),
            Expr::Reshape(inner, shape) => {
                let shape: Vec<String> =
                    shape.iter().map(|length| length.map_or("_".to_string(), |length| length.to_string())).collect();
                write!(f, "reshape({inner}, {})", list(&shape))
            }
            Expr::Flatten(inner, first, last) => write!(f, "flatten({inner}, {first}, {last})"),
            Expr::Slice(inner, dim, start, end) => {
                write!(f, "slice({inner}, {dim}, {}..{})", number(start), number(end))
            }
            Expr::Blocks(inner, dim, count, order) => write!(f, "blocks({inner}, {dim}, {count}, {})", list(order)),
            Expr::Concat(dim, parts) => write!(f, "concat({dim}, {})", all(parts)),
            Expr::Stack(dim, parts) => write!(f, "stack({dim}, {})", all(parts)),
            Expr::Repeat(inner, times) => write!(f, "repeat({inner}, {})", list(times)),
            Expr::Pad(inner, dim, length, value) if *value == 0.0 && value.is_sign_positive() => {
                write!(f, "pad({inner}, {dim}, {length})")
            }
            Expr::Pad(inner, dim, length, value) => write!(f, "pad({inner}, {dim}, {length}, {value:?})"),
            Expr::Truncate(inner, dim, length) => write!(f, "truncate({inner}, {dim}, {length})"),
            Expr::Add(parts) => write!(f, "add({})", all(parts)),
            Expr::Zeros(inner) => write!(f, "zeros({inner})"),
            Expr::Function(function, parts) => write!(f, "{}({})", function.name, all(parts)),
        }
    }
}
