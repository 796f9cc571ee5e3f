//! TensorFlow's types, by their numbers.

use crate::dtype::Dtype;

/// The number of the type of strings.
pub(super) const STRING: u32 = 7;
/// The number of the type of `int64`.
pub(super) const INT64: u32 = 9;

/// A type of TensorFlow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Type {
    /// The name in TensorFlow.
    pub name: &'static str,
    /// Bytes of an element; 0 where elements differ in length.
    pub size: u64,
    /// What holds the same bytes here.
    pub dtype: Option<Dtype>,
}

const fn of(name: &'static str, size: u64, dtype: Dtype) -> Option<Type> {
    Some(Type { name, size, dtype: Some(dtype) })
}

const fn without(name: &'static str, size: u64) -> Option<Type> {
    Some(Type { name, size, dtype: None })
}

/// Returns the type of this number, if there is one.
pub(super) fn by_number(number: u32) -> Option<Type> {
    match number {
        1 => of("float32", 4, Dtype::F32),
        2 => of("float64", 8, Dtype::F64),
        3 => of("int32", 4, Dtype::I32),
        4 => of("uint8", 1, Dtype::U8),
        5 => of("int16", 2, Dtype::I16),
        6 => of("int8", 1, Dtype::I8),
        STRING => without("string", 0),
        8 => of("complex64", 8, Dtype::C64),
        INT64 => of("int64", 8, Dtype::I64),
        10 => of("bool", 1, Dtype::Bool),
        // The quantized types are integers whose scale is elsewhere in the model.
        11 => of("qint8", 1, Dtype::I8),
        12 => of("quint8", 1, Dtype::U8),
        13 => of("qint32", 4, Dtype::I32),
        14 => of("bfloat16", 2, Dtype::BF16),
        15 => of("qint16", 2, Dtype::I16),
        16 => of("quint16", 2, Dtype::U16),
        17 => of("uint16", 2, Dtype::U16),
        18 => without("complex128", 16),
        19 => of("float16", 2, Dtype::F16),
        20 => without("resource", 0),
        21 => without("variant", 0),
        22 => of("uint32", 4, Dtype::U32),
        23 => of("uint64", 8, Dtype::U64),
        24 => of("float8_e5m2", 1, Dtype::F8E5m2),
        25 => of("float8_e4m3fn", 1, Dtype::F8E4m3),
        26 => of("float8_e4m3fnuz", 1, Dtype::F8E4m3fnuz),
        27 => without("float8_e4m3b11fnuz", 1),
        28 => of("float8_e5m2fnuz", 1, Dtype::F8E5m2fnuz),
        // One byte per element, the value in the low bits.
        29 => without("int4", 1),
        30 => without("uint4", 1),
        31 => without("int2", 1),
        32 => without("uint2", 1),
        33 => without("float4_e2m1fn", 1),
        _ => None,
    }
}

/// Returns the number of the type that holds the same bytes.
pub(super) fn number(dtype: Dtype) -> Option<u32> {
    // From the end, so that the plain integers come before the quantized ones.
    (1..=33).rev().find(|number| by_number(*number).and_then(|known| known.dtype) == Some(dtype)).map(plain)
}

/// Returns the plain integer in place of a quantized one.
fn plain(number: u32) -> u32 {
    match number {
        11 => 6,
        12 => 4,
        13 => 3,
        15 => 5,
        16 => 17,
        number => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_there_and_back() {
        for dtype in Dtype::ALL {
            match number(*dtype) {
                Some(number) => assert_eq!(by_number(number).unwrap().dtype, Some(*dtype), "{dtype}"),
                None => assert_eq!(*dtype, Dtype::F8E8m0),
            }
        }
        let quantized = ["qint8", "quint8", "qint16", "quint16", "qint32"];
        assert!(
            Dtype::ALL
                .iter()
                .filter_map(|dtype| number(*dtype))
                .all(|n| !quantized.contains(&by_number(n).unwrap().name))
        );
    }
}
