//! The functions that make tensors from storages.

use super::pickle::{Arena, Id, Node, Span, Step, TensorRef};
use super::types::{StorageType, TorchType};

/// The most dimensions that are read; torch has 64.
const MAX_RANK: usize = 64;

/// The most marks of a tensor; torch has two.
const MAX_MARKS: usize = 16;

/// A function that makes a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rebuild {
    /// `_rebuild_tensor`: storage, offset, size, stride.
    First,
    /// `_rebuild_tensor_v2`: also whether it requires a gradient, hooks, and marks.
    Second,
    /// `_rebuild_tensor_v3`: also a dtype before the marks, over an untyped storage.
    Third,
    /// `_rebuild_parameter` and `_rebuild_parameter_with_state`: around a tensor.
    Parameter,
    /// `_rebuild_from_type_v2`: function, class, arguments, attributes.
    FromType,
}

pub(super) fn named(module: &str, name: &str) -> Option<Rebuild> {
    Some(match (module, name) {
        ("torch._utils", "_rebuild_tensor") => Rebuild::First,
        ("torch._utils", "_rebuild_tensor_v2") => Rebuild::Second,
        ("torch._utils", "_rebuild_tensor_v3") => Rebuild::Third,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Rebuild::Parameter,
        ("torch._tensor" | "torch.tensor", "_rebuild_from_type_v2") => Rebuild::FromType,
        _ => return None,
    })
}

pub(super) fn call(arena: &mut Arena, rebuild: Rebuild, args: &[Id]) -> Step<Id> {
    match (rebuild, args) {
        (Rebuild::First, [storage, offset, size, stride]) => {
            tensor(arena, *storage, [*offset, *size, *stride], None, None)
        }
        (Rebuild::Second, [storage, offset, size, stride, _, _, marks @ ..]) if marks.len() <= 1 => {
            tensor(arena, *storage, [*offset, *size, *stride], None, marks.first().copied())
        }
        (Rebuild::Third, [storage, offset, size, stride, _, _, dtype, marks @ ..]) if marks.len() <= 1 => {
            let &Node::Dtype(dtype) = arena.node(*dtype) else { return Err("its dtype is none".into()) };
            tensor(arena, *storage, [*offset, *size, *stride], Some(dtype), marks.first().copied())
        }
        (Rebuild::Parameter, [inner, _, _] | [inner, _, _, _]) => match arena.node(*inner) {
            Node::Tensor(_) | Node::Unreadable(_) | Node::Refused(_) => Ok(*inner),
            _ => Err("what it wraps is no tensor".into()),
        },
        (Rebuild::FromType, &[function, class, inner, _]) => from_type(arena, function, class, inner),
        _ => Err("it has another number of arguments".into()),
    }
}

/// A tensor with attributes, which are not read. A subclass of `Tensor` may mean anything by its elements.
fn from_type(arena: &mut Arena, function: Id, class: Id, inner: Id) -> Step<Id> {
    match arena.node(class) {
        &Node::Refused(place) => return arena.add(Node::Refused(place)),
        Node::Global(place) => {
            let class = arena.globals.get(*place as usize).ok_or("its class is none")?;
            let is_plain =
                matches!((&*class.module, &*class.name), ("torch", "Tensor") | ("torch.nn.parameter", "Parameter"));
            if !is_plain {
                return Err(format!("the class {} is no tensor", class.text()).into());
            }
        }
        _ => return Err("its class is none".into()),
    }
    let rebuild = match arena.node(function) {
        &Node::Refused(place) => return arena.add(Node::Refused(place)),
        Node::Global(place) => {
            arena.globals.get(*place as usize).and_then(|global| named(&global.module, &global.name))
        }
        _ => None,
    };
    let args =
        arena.tuple(inner).filter(|args| args.len() <= 16).map(<[Id]>::to_vec).ok_or("its arguments are not right")?;
    match rebuild {
        // Only one level: a function that wraps another of these would recurse.
        Some(rebuild) if rebuild != Rebuild::FromType => call(arena, rebuild, &args),
        _ => {
            let name = match arena.node(function) {
                Node::Global(place) => arena.globals.get(*place as usize).map(super::pickle::Global::text),
                _ => None,
            };
            let reason = format!("it is made by {}, which safetensors cannot hold", name.unwrap_or_default());
            arena.add_charged(Node::Unreadable(reason.into()))
        }
    }
}

/// A node for all of a storage.
pub(super) fn whole_storage(arena: &mut Arena, storage: u32) -> Step<Id> {
    let elements = arena.storages.get(storage as usize).map_or(0, |storage| storage.elements);
    span(arena, Span { storage, begin: 0, elements })
}

/// A node for a part of a storage: `(key, offset, elements)`.
pub(super) fn storage_view(arena: &mut Arena, storage: u32, view: Id) -> Step<Id> {
    let number = |id: Id| arena.int(id).and_then(|value| u64::try_from(value).ok());
    let (begin, elements) = match arena.tuple(view) {
        Some(&[_, begin, elements]) => (number(begin), number(elements)),
        _ => (None, None),
    };
    let (Some(begin), Some(elements)) = (begin, elements) else {
        return Err("the view of a storage is not right".into());
    };
    let whole = arena.storages.get(storage as usize).map_or(0, |storage| storage.elements);
    if begin.checked_add(elements).is_none_or(|end| end > whole) {
        return Err("the view of a storage is outside of it".into());
    }
    span(arena, Span { storage, begin, elements })
}

fn span(arena: &mut Arena, span: Span) -> Step<Id> {
    let place = u32::try_from(arena.spans.len()).map_err(|_| "it has too many storages")?;
    arena.charge(24);
    arena.spans.push(span);
    arena.add(Node::Storage(place))
}

/// Returns a list of lengths, none of them negative.
fn lengths(arena: &Arena, id: Id, what: &str) -> Step<Vec<u64>> {
    let items = arena.items(id).ok_or_else(|| format!("its {what} is no tuple"))?;
    if items.len() > MAX_RANK {
        return Err(format!("it has {} dimensions, at most {MAX_RANK} are read", items.len()).into());
    }
    let lengths = items.iter().map(|&item| arena.int(item).and_then(|length| u64::try_from(length).ok()));
    lengths.collect::<Option<_>>().ok_or_else(|| format!("its {what} has what is no length").into())
}

fn tensor(
    arena: &mut Arena,
    storage: Id,
    [offset, size, stride]: [Id; 3],
    dtype: Option<TorchType>,
    marks: Option<Id>,
) -> Step<Id> {
    let span = match arena.node(storage) {
        Node::Storage(place) => arena.spans.get(*place as usize).copied(),
        &Node::Refused(place) => return arena.add(Node::Refused(place)),
        _ => None,
    };
    let span = span.ok_or("its storage is none")?;
    let kind = arena.storages.get(span.storage as usize).map(|storage| storage.kind).ok_or("its storage is none")?;
    let dtype = match (kind, dtype) {
        (StorageType::Of(own), None) => own,
        (_, Some(dtype)) => dtype,
        (StorageType::Untyped, None) => return Err("neither it nor its storage has a dtype".into()),
    };
    let offset = arena.int(offset).and_then(|offset| u64::try_from(offset).ok()).ok_or("its offset is not right")?;
    let (shape, stride) = (lengths(arena, size, "size")?, lengths(arena, stride, "stride")?);
    if shape.len() != stride.len() {
        return Err(format!("it has {} sizes and {} strides", shape.len(), stride.len()).into());
    }
    let (mut conj, mut neg) = (false, false);
    let marks = marks.and_then(|marks| arena.dict(marks)).unwrap_or_default();
    if marks.len() > MAX_MARKS {
        return Err(format!("it has {} marks, at most {MAX_MARKS} are read", marks.len()).into());
    }
    for &(mark, value) in marks {
        let value = match (arena.text(mark), arena.node(value)) {
            (Some("conj"), &Node::Bool(value)) => {
                conj = value;
                continue;
            }
            (Some("neg"), &Node::Bool(value)) => {
                neg = value;
                continue;
            }
            (name, _) => name.unwrap_or("?").to_string(),
        };
        return Err(format!("the mark {value:?} is not known").into());
    }
    check_bounds(&shape, &stride, offset, span.elements, kind.size(), dtype.size())?;
    // Offsets count elements of the tensor's type from the first byte of the span.
    let begin = span.begin * kind.size();
    if begin % dtype.size() != 0 {
        return Err("it starts inside an element of its storage".into());
    }
    let offset = offset + begin / dtype.size();
    let place = u32::try_from(arena.tensors.len()).map_err(|_| "it has too many tensors")?;
    arena.charge(96 + 16 * shape.len() as u64);
    arena.tensors.push(TensorRef { storage: span.storage, dtype, offset, shape, stride, conj, neg });
    arena.add(Node::Tensor(place))
}

/// Every element is inside the storage.
pub(super) fn check_bounds(
    shape: &[u64],
    stride: &[u64],
    offset: u64,
    elements: u64,
    unit: u64,
    size: u64,
) -> Step<()> {
    let mut count = Some(1u64);
    let mut last = u128::from(offset);
    let mut is_empty = false;
    for (&length, &stride) in shape.iter().zip(stride) {
        is_empty |= length == 0;
        count = count.and_then(|count| count.checked_mul(length.max(1)));
        last = last.saturating_add(u128::from(length.saturating_sub(1)) * u128::from(stride));
    }
    if count.and_then(|count| count.checked_mul(size)).is_none_or(|bytes| bytes > i64::MAX as u64) {
        return Err("it would have more bytes than there can be".into());
    }
    let bytes = u128::from(elements) * u128::from(unit);
    if !is_empty && (last + 1) * u128::from(size) > bytes {
        return Err(format!(
            "its size {shape:?} and stride {stride:?} at {offset} lead beyond its storage of {bytes} bytes"
        )
        .into());
    }
    if is_empty && offset > i64::MAX as u64 / size {
        return Err("its offset is not right".into());
    }
    Ok(())
}
