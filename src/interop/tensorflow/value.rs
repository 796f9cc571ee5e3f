//! Values as tensors, as far as TensorFlow can represent them.

use super::strings;
use super::types::{self, STRING};
use crate::dtype::Dtype;
use serde_json::Value;

/// The bytes of a tensor, and how they are described.
pub(super) struct Encoded {
    pub dtype: u32,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
    /// The checksum of strings, which is not one of their bytes.
    pub crc: Option<u32>,
}

/// A number, boolean or text, or a list of such (or of lists of one length), as a tensor.
pub(super) fn encode(value: &Value) -> Option<Encoded> {
    let mut shape = Vec::new();
    let mut level: Vec<&Value> = vec![value];
    while let Some(Value::Array(first)) = level.first() {
        let length = first.len();
        let lists: Option<Vec<&Vec<Value>>> = level.iter().map(|value| value.as_array()).collect();
        let lists = lists.filter(|lists| lists.iter().all(|list| list.len() == length))?;
        shape.push(length as u64);
        level = lists.into_iter().flatten().collect();
    }
    let all = |is: fn(&Value) -> bool| !level.is_empty() && level.iter().all(|value| is(value));
    let (dtype, bytes) = if all(Value::is_boolean) {
        (Dtype::Bool, level.iter().map(|value| u8::from(value.as_bool() == Some(true))).collect())
    } else if all(Value::is_i64) {
        (Dtype::I64, level.iter().filter_map(|value| value.as_i64()).flat_map(i64::to_le_bytes).collect())
    } else if all(Value::is_u64) {
        (Dtype::U64, level.iter().filter_map(|value| value.as_u64()).flat_map(u64::to_le_bytes).collect())
    } else if all(Value::is_number) {
        (Dtype::F64, level.iter().filter_map(|value| value.as_f64()).flat_map(f64::to_le_bytes).collect())
    } else {
        let texts: Option<Vec<Vec<u8>>> = level.iter().map(|value| text(value)).collect();
        let texts = texts.filter(|texts| !texts.is_empty())?;
        let (bytes, crc) = strings::encode(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
        return Some(Encoded { dtype: STRING, shape, bytes, crc: Some(crc) });
    };
    Some(Encoded { dtype: types::number(dtype)?, shape, bytes, crc: None })
}

/// Returns the bytes of a text, or of what [`strings::to_json`] makes of bytes that are no text.
fn text(value: &Value) -> Option<Vec<u8>> {
    if let Some(text) = value.as_str() {
        return Some(text.as_bytes().to_vec());
    }
    let object = value.as_object().filter(|object| object.len() == 1)?;
    let hex = object.get("hex")?.as_str()?.as_bytes();
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
        for nothing in [json!(null), json!({}), json!([]), json!([1, "a"]), json!([[1], [1, 2]]), json!({ "hex": "f" })]
        {
            assert_eq!(shape(nothing), None);
        }
    }
}
