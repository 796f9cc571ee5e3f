//! Datatypes and dataspaces.

use super::metadata::{Cursor, Metadata};
use crate::dtype::Dtype;
use crate::error::Result;

/// HDF5's own limit.
const MAX_RANK: usize = 32;

/// What an element is.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::interop::keras) enum Kind {
    /// A number, of which each `unit` bytes are in big-endian order if `big`.
    Number { dtype: Dtype, unit: usize, big: bool },
    /// Opaque bytes. Keras writes bfloat16 in this form, and records it in an attribute.
    Opaque,
    /// Text that is padded to the element's size.
    FixedText,
    /// Text elsewhere in the file.
    Text,
    /// What cannot be held, and why.
    Other(String),
}

/// The type of elements.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::interop::keras) struct Type {
    pub kind: Kind,
    /// Bytes of an element.
    pub size: u64,
}

impl Type {
    pub(super) fn parse(metadata: &Metadata<'_>, bytes: &[u8]) -> Result<Type> {
        parse(&mut metadata.cursor(bytes), 0)
    }
}

fn other(reason: impl Into<String>) -> Kind {
    Kind::Other(reason.into())
}

/// A type at the cursor. Types nest no deeper than an element of a compound or an enumeration.
fn parse(cursor: &mut Cursor<'_, '_, '_>, depth: usize) -> Result<Type> {
    let first = cursor.u8()?;
    let flags = u32::from_le_bytes([cursor.u8()?, cursor.u8()?, cursor.u8()?, 0]);
    let size = u64::from(cursor.u32()?);
    let big = flags & 1 == 1;
    let kind = match first & 0x0f {
        0 => {
            let (offset, precision) = (cursor.u16()?, cursor.u16()?);
            let whole = offset == 0 && u64::from(precision) == 8 * size;
            let dtype = match (size, flags & 8 != 0) {
                (1, false) => Some(Dtype::U8),
                (1, true) => Some(Dtype::I8),
                (2, false) => Some(Dtype::U16),
                (2, true) => Some(Dtype::I16),
                (4, false) => Some(Dtype::U32),
                (4, true) => Some(Dtype::I32),
                (8, false) => Some(Dtype::U64),
                (8, true) => Some(Dtype::I64),
                _ => None,
            };
            match dtype.filter(|_| whole) {
                Some(dtype) => Kind::Number { dtype, unit: size as usize, big },
                None => other(format!("an integer of {precision} bits in {size} bytes")),
            }
        }
        1 => {
            let (offset, precision) = (cursor.u16()?, cursor.u16()?);
            let exponent = (cursor.u8()?, cursor.u8()?);
            let mantissa = (cursor.u8()?, cursor.u8()?);
            let bias = cursor.u32()?;
            let sign = flags >> 8 & 0xff;
            let dtype = match (size, exponent, mantissa, bias, sign) {
                (2, (10, 5), (0, 10), 15, 15) => Some(Dtype::F16),
                (2, (7, 8), (0, 7), 127, 15) => Some(Dtype::BF16),
                (4, (23, 8), (0, 23), 127, 31) => Some(Dtype::F32),
                (8, (52, 11), (0, 52), 1023, 63) => Some(Dtype::F64),
                _ => None,
            };
            // Bit 6 is the order of the VAX; the mantissa's leading bit is not stored.
            let plain = offset == 0 && u64::from(precision) == 8 * size && flags & 0x40 == 0 && flags >> 4 & 3 == 2;
            match dtype.filter(|_| plain) {
                Some(dtype) => Kind::Number { dtype, unit: size as usize, big },
                None => other(format!("a float of {size} bytes that this crate has no type for")),
            }
        }
        3 => Kind::FixedText,
        5 => Kind::Opaque,
        6 if depth == 0 => complex(cursor, first >> 4, flags & 0xffff, size)?,
        8 if depth == 0 => boolean(cursor, flags & 0xffff, size)?,
        9 if flags & 0xf == 1 => Kind::Text,
        class => other(format!("elements of HDF5 class {class}, which are no numbers")),
    };
    Ok(Type { kind, size })
}

/// A compound: h5py writes complex numbers so, with the members `r` and `i`.
fn complex(cursor: &mut Cursor<'_, '_, '_>, version: u8, members: u32, size: u64) -> Result<Kind> {
    let compound = || Ok(other("a compound that is no complex number"));
    if members != 2 || version > 2 {
        return compound();
    }
    let mut parts = Vec::new();
    for _ in 0..members {
        let name = cursor.name(8)?.to_vec();
        let offset = u64::from(cursor.u32()?);
        if version == 1 {
            let dimensions = cursor.u8()?;
            cursor.skip(27)?;
            if dimensions != 0 {
                return compound();
            }
        }
        parts.push((name, offset, parse(cursor, 1)?));
    }
    let [(r, 0, real), (i, half, imaginary)] = &parts[..] else {
        return compound();
    };
    match &real.kind {
        Kind::Number { dtype, unit, big } if r == b"r" && i == b"i" && real == imaginary && 2 * half == size => {
            match dtype {
                Dtype::F32 if *half == 4 => Ok(Kind::Number { dtype: Dtype::C64, unit: *unit, big: *big }),
                dtype => Ok(other(format!("complex numbers of two {dtype}, which this crate has no type for"))),
            }
        }
        _ => compound(),
    }
}

/// An enumeration: h5py writes booleans so, with the names FALSE and TRUE.
fn boolean(cursor: &mut Cursor<'_, '_, '_>, members: u32, size: u64) -> Result<Kind> {
    let enumeration = || Ok(other("an enumeration that is no boolean"));
    let base = parse(cursor, 1)?;
    if members != 2 || size != 1 || base.size != 1 {
        return enumeration();
    }
    let names = [cursor.name(8)?, cursor.name(8)?];
    let values = [cursor.u8()?, cursor.u8()?];
    if names == [&b"FALSE"[..], b"TRUE"] && values == [0, 1] {
        return Ok(Kind::Number { dtype: Dtype::Bool, unit: 1, big: false });
    }
    enumeration()
}

/// Returns the lengths of a dataspace; `None` where it has no elements at all, not even one.
pub(super) fn shape(metadata: &Metadata<'_>, bytes: &[u8]) -> Result<Option<Vec<u64>>> {
    let mut cursor = metadata.cursor(bytes);
    let (version, rank, _flags) = (cursor.u8()?, usize::from(cursor.u8()?), cursor.u8()?);
    if rank > MAX_RANK {
        return Err(metadata.damaged(format!("a dataset has {rank} dimensions")));
    }
    let null = match version {
        1 => cursor.skip(5).map(|()| false)?,
        2 => cursor.u8()? == 2,
        _ => return Err(metadata.unsupported(format!("version {version} of a dataspace"))),
    };
    let shape: Result<Vec<u64>> = (0..rank).map(|_| cursor.u64()).collect();
    Ok(Some(shape?).filter(|_| !null))
}
