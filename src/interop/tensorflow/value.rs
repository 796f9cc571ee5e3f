//! Values as tensors, as far as TensorFlow can represent them.

use super::strings;
use super::types::{self, STRING};
use crate::dtype::Dtype;
use crate::graph::decode;
use ciborium::Value;

/// The bytes of a tensor, and how they are described.
pub(super) struct Encoded {
    pub dtype: u32,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
    /// The checksum of strings, which is not one of their bytes.
    pub crc: Option<u32>,
}

/// A number, boolean or text, or a list of such (or of lists of one length), as a tensor.
pub(super) fn encode(value: &serde_json::Value) -> Option<Encoded> {
    let value: Value = decode(value).ok()?;
    let mut shape = Vec::new();
    let mut level: Vec<&Value> = vec![&value];
    while let Some(Value::Array(first)) = level.first() {
        let length = first.len();
        let lists: Option<Vec<&Vec<Value>>> = level.iter().map(|value| value.as_array()).collect();
        let lists = lists.filter(|lists| lists.iter().all(|list| list.len() == length))?;
        shape.push(length as u64);
        level = lists.into_iter().flatten().collect();
    }
    if level.is_empty() {
        return None;
    }
    let (dtype, bytes) = if let Some(all) = each(&level, Value::as_bool) {
        (Dtype::Bool, all.into_iter().map(u8::from).collect())
    } else if let Some(all) = each(&level, |value| i64::try_from(value.as_integer()?).ok()) {
        (Dtype::I64, all.into_iter().flat_map(i64::to_le_bytes).collect())
    } else if let Some(all) = each(&level, |value| u64::try_from(value.as_integer()?).ok()) {
        (Dtype::U64, all.into_iter().flat_map(u64::to_le_bytes).collect())
    } else if let Some(all) = each(&level, float) {
        (Dtype::F64, all.into_iter().flat_map(f64::to_le_bytes).collect())
    } else {
        let texts = each(&level, text)?;
        let (bytes, crc) = strings::encode(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
        return Some(Encoded { dtype: STRING, shape, bytes, crc: Some(crc) });
    };
    Some(Encoded { dtype: types::number(dtype)?, shape, bytes, crc: None })
}

/// Returns all of `level`, if `of` has something for each.
fn each<T>(level: &[&Value], of: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    level.iter().map(|value| of(value)).collect()
}

/// Returns a number that a float represents exactly.
fn float(value: &Value) -> Option<f64> {
    let Some(integer) = value.as_integer() else { return value.as_float() };
    let float = i128::from(integer) as f64;
    (float as i128 == i128::from(integer)).then_some(float)
}

/// Returns the bytes of a text, or of what [`strings::to_json`] makes of bytes that are no text.
fn text(value: &Value) -> Option<Vec<u8>> {
    if let Some(text) = value.as_text() {
        return Some(text.as_bytes().to_vec());
    }
    let [(key, hex)] = value.as_map()?.as_slice() else { return None };
    let hex = hex.as_text().filter(|_| key.as_text() == Some("hex"))?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    hex.chunks(2).map(|pair| Some((digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_become_tensors() {
        let shape = |value| encode(&value).map(|encoded| (encoded.dtype, encoded.shape, encoded.bytes.len()));
        assert_eq!(shape(json!(7)), Some((9, vec![], 8)));
        assert_eq!(shape(json!(u64::MAX)), Some((23, vec![], 8)));
        assert_eq!(shape(json!([1, 2.5])), Some((2, vec![2], 16)));
        assert_eq!(shape(json!(true)), Some((10, vec![], 1)));
        assert_eq!(shape(json!([["a", { "hex": "ff00" }]])), Some((7, vec![1, 2], 2 + 4 + 3)));
        // Integers that a float does not represent stay integers, or are left out.
        assert_eq!(shape(json!([u64::MAX, 1u64 << 53])), Some((23, vec![2], 16)));
        for [a, b] in
            [[json!(u64::MAX), json!(0.5)], [json!(-1), json!(u64::MAX)], [json!((1u64 << 53) + 1), json!(0.5)]]
        {
            assert_eq!(shape(json!([a, b])), None);
        }
        assert_eq!(shape(json!({ "$cbor": "f97c00" })), Some((2, vec![], 8)), "an infinity");
        assert_eq!(shape(json!({ "$cbor": "81f97e00" })), Some((2, vec![1], 8)), "a list with a NaN");
        assert_eq!(shape(json!({ "$cbor": "zz" })), None);
        for nothing in [json!(null), json!({}), json!([]), json!([1, "a"]), json!([[1], [1, 2]]), json!({ "hex": "f" })]
        {
            assert_eq!(shape(nothing), None);
        }
    }
}
