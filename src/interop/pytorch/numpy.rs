//! Arrays, scalars and dtypes of numpy in a pickle.

use super::pickle::{Arena, ArrayRef, Global, Id, Node, Step};
use super::types::NumpyDtype;

/// What a global of numpy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// `_reconstruct`: an empty array, that gets its state later.
    Reconstruct,
    Scalar,
    Dtype,
    /// The class itself, as an argument.
    Ndarray,
    /// `numpy._core.numeric._frombuffer`, protocol 5.
    FromBuffer,
}

pub(super) fn part(module: &str, name: &str) -> Option<Part> {
    Some(match (module, name) {
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Part::Reconstruct,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Part::Scalar,
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Part::FromBuffer,
        ("numpy", "dtype") => Part::Dtype,
        ("numpy", "ndarray") => Part::Ndarray,
        _ => return None,
    })
}

pub(super) fn call(arena: &mut Arena, part: Part, args: &[Id]) -> Step<Id> {
    match (part, args) {
        (Part::Reconstruct, [_, _, _]) => {
            let dtype = NumpyDtype { kind: b'?', size: 0, big_endian: false };
            array(arena, ArrayRef { dtype, shape: vec![0], fortran: false, data: [].into() })
        }
        (Part::Dtype, [name, ..]) => {
            let name = arena.text(*name).ok_or("its name is no text")?;
            match NumpyDtype::parse(name) {
                Some(dtype) if dtype.torch_type().is_some() => arena.add(Node::NumpyDtype(dtype)),
                _ => {
                    // Objects are pickles themselves; texts and records are no numbers.
                    let name = format!("numpy dtype {name}");
                    refused(arena, name)
                }
            }
        }
        (Part::Scalar, &[dtype, data]) => filled(arena, dtype, data, Vec::new(), false),
        (Part::FromBuffer, &[data, dtype, shape, order]) => {
            let shape = lengths(arena, shape)?;
            let fortran = arena.text(order) == Some("F");
            filled(arena, dtype, data, shape, fortran)
        }
        _ => Err("its arguments are not right".into()),
    }
}

/// Something that is refused by a name which is no global of the pickle.
fn refused(arena: &mut Arena, name: String) -> Step<Id> {
    let place = u32::try_from(arena.globals.len()).map_err(|_| "it has too many globals")?;
    let offset = arena.globals.last().map_or(0, |global| global.offset);
    arena.charge(64 + name.len() as u64);
    arena.globals.push(Global { module: "".into(), name: name.into(), offset, allowed: false });
    arena.add(Node::Refused(place))
}

fn lengths(arena: &Arena, shape: Id) -> Step<Vec<u64>> {
    let items = arena.items(shape).filter(|items| items.len() <= 64).ok_or("its shape is no tuple, or too long")?;
    let lengths = items.iter().map(|&item| arena.int(item).and_then(|length| u64::try_from(length).ok()));
    lengths.collect::<Option<_>>().ok_or_else(|| "its shape has what is no length".into())
}

/// An array with its elements.
fn filled(arena: &mut Arena, dtype: Id, data: Id, shape: Vec<u64>, fortran: bool) -> Step<Id> {
    let dtype = match arena.node(dtype) {
        Node::NumpyDtype(dtype) => *dtype,
        &Node::Refused(place) => return arena.add(Node::Refused(place)),
        _ => return Err("its dtype is none".into()),
    };
    let Node::Bytes(data) = arena.node(data) else { return Err("its elements are no bytes".into()) };
    let bytes = shape.iter().try_fold(u64::from(dtype.size), |bytes, &length| bytes.checked_mul(length));
    if bytes != Some(data.len() as u64) {
        return Err(format!("an array of shape {shape:?} cannot have {} bytes", data.len()).into());
    }
    let data = data.as_ref().into();
    array(arena, ArrayRef { dtype, shape, fortran, data })
}

fn array(arena: &mut Arena, array: ArrayRef) -> Step<Id> {
    let place = u32::try_from(arena.arrays.len()).map_err(|_| "it has too many arrays")?;
    arena.charge(96 + 8 * array.shape.len() as u64 + array.data.len() as u64);
    arena.arrays.push(array);
    arena.add(Node::Array(place))
}

/// Gives an array its shape, dtype and elements, or a dtype its order of bytes.
pub(super) fn build(arena: &mut Arena, object: Id, state: Id) -> Step<()> {
    let state = arena.tuple(state).ok_or("the state of a numpy object is no tuple")?;
    match (arena.node(object), state) {
        (&Node::NumpyDtype(dtype), [_, order, ..]) => {
            let big_endian = match arena.text(*order) {
                Some(">") => true,
                Some("<" | "|" | "=") => false,
                _ => return Err("the order of bytes of a numpy dtype is not right".into()),
            };
            if let Some(node) = arena.node_mut(object) {
                *node = Node::NumpyDtype(NumpyDtype { big_endian, ..dtype });
            }
            Ok(())
        }
        (&Node::Array(place), &[_, shape, dtype, fortran, data]) => {
            let shape = lengths(arena, shape)?;
            let fortran = matches!(arena.node(fortran), Node::Bool(true));
            let made = filled(arena, dtype, data, shape, fortran)?;
            match *arena.node(made) {
                Node::Array(new) => {
                    let last = arena.arrays.pop().filter(|_| new as usize == arena.arrays.len());
                    if let (Some(slot), Some(last)) = (arena.arrays.get_mut(place as usize), last) {
                        *slot = last;
                    }
                }
                Node::Refused(global) => {
                    if let Some(node) = arena.node_mut(object) {
                        *node = Node::Refused(global);
                    }
                }
                _ => {}
            }
            if let Some(node) = arena.node_mut(made) {
                *node = Node::None;
            }
            Ok(())
        }
        _ => Err("the state of a numpy object is not right".into()),
    }
}
