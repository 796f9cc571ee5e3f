//! From TensorFlow's keys to names, and back.

use crate::name;

/// The attribute of a variable.
pub(super) const VARIABLE_VALUE: &str = "VARIABLE_VALUE";
/// What stands before the name of an attribute.
const ATTRIBUTES: &str = ".ATTRIBUTES";

/// Returns the names that a key of TensorFlow is made of, without what marks a variable:
/// `model/l..1/kernel/.ATTRIBUTES/VARIABLE_VALUE` is `model`, `l.1`, `kernel`.
pub(super) fn path(key: &str) -> Vec<String> {
    let mut parts: Vec<&str> = key.split('/').collect();
    if let [.., ATTRIBUTES, attribute] = parts[..] {
        parts.truncate(parts.len() - 2);
        if attribute != VARIABLE_VALUE {
            parts.push(attribute);
        }
    }
    parts.into_iter().map(unescape).collect()
}

/// Returns the names that a name-based checkpoint's key is made of: nothing is escaped there.
pub(super) fn plain_path(key: &str) -> Vec<String> {
    key.split('/').map(str::to_string).collect()
}

/// Returns the key for a path of names: an empty name, which keys cannot have, is written as a point.
pub(super) fn key<S: AsRef<str>>(path: impl IntoIterator<Item = S>) -> String {
    let path =
        path.into_iter().map(|name| if name.as_ref().is_empty() { ".".into() } else { name.as_ref().to_string() });
    let key = name::key(path.collect::<Vec<String>>());
    if key.is_empty() { ".".into() } else { key }
}

/// Undoes [`escape`]. Names that mark structure, such as `.OPTIMIZER_SLOT`, stay as they are.
fn unescape(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('.') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(tail) = rest.strip_prefix('.') {
            plain.push('.');
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix('S') {
            plain.push('/');
            rest = tail;
        } else {
            plain.push('.');
        }
    }
    plain + rest
}

/// Returns a name as TensorFlow writes it in keys.
pub(super) fn escape(name: &str) -> String {
    name.replace('.', "..").replace('/', ".S")
}

/// Returns the key of the variable at a path of names.
pub(super) fn variable_key(path: &[String]) -> String {
    let names: Vec<String> = path.iter().map(|name| escape(name)).collect();
    format!("{}/{ATTRIBUTES}/{VARIABLE_VALUE}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_names() {
        for (tensorflow, ours) in [
            ("model/layer/kernel/.ATTRIBUTES/VARIABLE_VALUE", "model/layer/kernel"),
            ("x..y/.ATTRIBUTES/VARIABLE_VALUE", "x.y"),
            ("p.Sq..r.Ss/.ATTRIBUTES/VARIABLE_VALUE", "p%2Fq.r%2Fs"),
            ("..S/.ATTRIBUTES/VARIABLE_VALUE", ".S"),
            (".S/.ATTRIBUTES/VARIABLE_VALUE", "%2F"),
            ("dict//.ATTRIBUTES/VARIABLE_VALUE", "dict/."),
            ("state/.ATTRIBUTES/py_state", "state/py_state"),
            ("k/.OPTIMIZER_SLOT/opt/m/.ATTRIBUTES/VARIABLE_VALUE", "k/.OPTIMIZER_SLOT/opt/m"),
            ("enc/w", "enc/w"),
            ("50%", "50%25"),
            ("", "."),
        ] {
            assert_eq!(key(path(tensorflow)), ours, "{tensorflow}");
        }
        for names in [&["a.b", "c/d"][..], &[".S", "/"], &["é ü", "..", "S"]] {
            let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            assert_eq!(path(&variable_key(&names)), names);
        }
    }
}
