//! Element types, under the names that safetensors files use.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $size:literal;)*) => {
        /// The type of a tensor's elements. Bytes are little-endian, as in the
        /// [safetensors format](https://github.com/huggingface/safetensors#format).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Dtype {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Dtype {
            /// All types.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$variant),*];

            /// Returns the name in a safetensors header and in a manifest, such as `F32`.
            pub const fn name(self) -> &'static str {
                match self { $(Dtype::$variant => $name),* }
            }

            /// Returns the number of bytes per element.
            pub const fn size(self) -> usize {
                match self { $(Dtype::$variant => $size),* }
            }
        }
    };
}

dtypes! {
    /// One byte, 0 or 1.
    Bool = "BOOL", 1;
    /// Unsigned 8-bit integer.
    U8 = "U8", 1;
    /// Signed 8-bit integer.
    I8 = "I8", 1;
    /// 8-bit float, 5 exponent bits, 2 mantissa bits.
    F8E5m2 = "F8_E5M2", 1;
    /// 8-bit float, 4 exponent bits, 3 mantissa bits, no infinities.
    F8E4m3 = "F8_E4M3", 1;
    /// As `F8E5m2`, without negative zero and infinities.
    F8E5m2fnuz = "F8_E5M2FNUZ", 1;
    /// As `F8E4m3`, without negative zero.
    F8E4m3fnuz = "F8_E4M3FNUZ", 1;
    /// 8-bit power of two.
    F8E8m0 = "F8_E8M0", 1;
    /// Signed 16-bit integer.
    I16 = "I16", 2;
    /// Unsigned 16-bit integer.
    U16 = "U16", 2;
    /// IEEE half precision.
    F16 = "F16", 2;
    /// The upper half of an `F32`.
    BF16 = "BF16", 2;
    /// Signed 32-bit integer.
    I32 = "I32", 4;
    /// Unsigned 32-bit integer.
    U32 = "U32", 4;
    /// IEEE single precision.
    F32 = "F32", 4;
    /// Two `F32`: real and imaginary part.
    C64 = "C64", 8;
    /// IEEE double precision.
    F64 = "F64", 8;
    /// Signed 64-bit integer.
    I64 = "I64", 8;
    /// Unsigned 64-bit integer.
    U64 = "U64", 8;
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Type and shape of a tensor.
///
/// ```
/// use tch_checkpoint::{Dtype, TensorSpec};
/// let spec = TensorSpec::new(Dtype::F32, [2, 3]);
/// assert_eq!(spec.bytes(), Some(24));
/// assert_eq!(spec.to_string(), "F32 [2, 3]");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// The type of the elements.
    pub dtype: Dtype,
    /// The length of every dimension; empty for a scalar.
    pub shape: Vec<u64>,
}

impl TensorSpec {
    /// Creates a specification from a type and a shape.
    pub fn new(dtype: Dtype, shape: impl Into<Vec<u64>>) -> TensorSpec {
        TensorSpec { dtype, shape: shape.into() }
    }

    /// Returns the number of bytes of all elements, or `None` if it exceeds a `u64`.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.shape.iter().try_fold(self.dtype.size() as u64, |product, &length| product.checked_mul(length))
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}
