//! What `--json` prints, compared with `docs/ckpt.schema.json`.

use jsonschema::Validator;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::LazyLock;

/// One validator per command.
static COMMANDS: LazyLock<BTreeMap<String, Validator>> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/ckpt.schema.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let options = jsonschema::options().should_validate_formats(true);
    options.build(&schema).expect("docs/ckpt.schema.json is a schema");
    let name = |branch: &Value| branch["$ref"].as_str().unwrap().strip_prefix("#/$defs/").unwrap().to_string();
    let names = schema["anyOf"].as_array().unwrap().iter().map(name);
    let of = |name: String| {
        let one = json!({ "$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": format!("#/$defs/{name}") });
        let options = jsonschema::options().should_validate_formats(true);
        (name, options.build(&one).unwrap())
    };
    names.map(of).collect()
});

/// The definition of a command that failed.
const FAILURE: &str = "failure";

/// Returns the commands that the schema describes.
pub fn commands() -> impl Iterator<Item = &'static str> {
    COMMANDS.keys().map(String::as_str).filter(|name| *name != FAILURE)
}

/// Returns the document if it is what the schema says of the command.
pub fn document(command: &str, text: &str) -> Value {
    let Unique(document) = serde_json::from_str(text).unwrap_or_else(|e| panic!("{command}: {e}: {text}"));
    let is_failure = document.as_object().is_some_and(|object| object.len() == 1 && object.contains_key("error"));
    let name = if is_failure { FAILURE } else { command };
    let validator = COMMANDS.get(name).unwrap_or_else(|| panic!("docs/ckpt.schema.json has no definition of {name}"));
    let wrong: Vec<String> =
        validator.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(
        wrong.is_empty(),
        "{command}: what is printed is not what docs/ckpt.schema.json has:\n{}",
        wrong.join("\n")
    );
    document
}

/// A value in which no key stands twice.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unique, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(Unique(item)) = access.next_element()? {
                    items.push(item);
                }
                Ok(items.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
                let mut object = Map::new();
                while let Some((key, Unique(value))) = access.next_entry::<String, Unique>()? {
                    if object.insert(key.clone(), value).is_some() {
                        return Err(A::Error::custom(format!("the key {key:?} stands there twice")));
                    }
                }
                Ok(object.into())
            }
        }
        deserializer.deserialize_any(Parts).map(Unique)
    }
}
