//! `ckpt cat`: prints a tensor or a value of a checkpoint.

use crate::output::{Exit, Output};
use crate::target;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;
use tch_checkpoint::inspect::{Element, Slice, TensorSlice};
use tch_checkpoint::{Dtype, Error};

/// Prints a tensor, a part of one, or a value
///
/// A tensor is verified completely, as far as its format allows, before any of it is printed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ckpt cat checkpoints/pronounce encoder/bias
  ckpt cat checkpoints/pronounce encoder/weight --slice 0:10,3
  ckpt cat checkpoints/pronounce encoder/weight --format npy > weight.npy
  ckpt cat checkpoints/pronounce learning_rate

Exit codes:
  0  printed
  2  there is no such tensor or value, the slice does not fit it, or it could not be read")]
pub struct Cat {
    /// A checkpoint of any format, or a directory of checkpoints for its latest
    #[arg(value_name = "CHECKPOINT")]
    pub path: PathBuf,
    /// The key of a tensor or of a value, as `ckpt show` prints it
    #[arg(value_name = "KEY")]
    pub key: String,
    /// An index or a range per dimension, as in NumPy: 0:10,3
    #[arg(long, value_name = "SLICE", default_value = "", allow_hyphen_values = true)]
    pub slice: String,
    /// text: a line per row; npy: a file for numpy.load; json: the same as --json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Npy,
    Json,
}

pub fn run(args: &Cat, out: &mut Output) -> Result<Exit, Error> {
    let format = if out.is_json() { Format::Json } else { args.format };
    let slice: Slice = args.slice.parse()?;
    let target = target::open(&args.path, out)?;
    if let Some(value) = target.source().values().get(&args.key) {
        if format == Format::Npy || !args.slice.is_empty() {
            return Err(Error::object(&args.key, "it is a value, not a tensor: it has no slices and no NumPy file"));
        }
        match format {
            Format::Json => out.raw_line(&json!({ "key": args.key, "value": value }).to_string()),
            _ => out.raw_line(&value.to_string()),
        }
        return Ok(Exit::Fine);
    }
    let tensor = target.slice(&args.key, &slice)?;
    match format {
        Format::Text => print(&tensor, out),
        Format::Json => print_json(&tensor, out),
        Format::Npy => print_npy(&tensor, out),
    }
}

/// Stops reading once nothing reads the result.
fn closed(tensor: &TensorSlice<'_>) -> Error {
    Error::object(tensor.key(), "nobody reads the result")
}

/// Passes on the elements while the result can be written.
fn each(
    tensor: &TensorSlice<'_>,
    out: &mut Output,
    mut with: impl FnMut(&mut Output, u64, Element),
) -> Result<Exit, Error> {
    let mut count = 0;
    let read = tensor.for_each(|element| {
        with(out, count, element);
        count += 1;
        if out.has_failed() { Err(closed(tensor)) } else { Ok(()) }
    });
    if out.has_failed() { Ok(Exit::Fine) } else { read.map(|()| Exit::Fine) }
}

/// Prints one line per row, and an empty line between matrices.
fn print(tensor: &TensorSlice<'_>, out: &mut Output) -> Result<Exit, Error> {
    let (mut row, mut matrix) = (1, 1);
    if let [.., columns] = tensor.shape() {
        row = *columns;
    }
    if let [.., rows, columns] = tensor.shape() {
        // For a tensor without elements, these can be any numbers.
        matrix = rows.saturating_mul(*columns);
    }
    let is_matrix = tensor.shape().len() > 2;
    let exit = each(tensor, out, |out, at, element| {
        let before = match at {
            0 => "",
            at if is_matrix && at % matrix == 0 => "\n\n",
            at if at % row == 0 => "\n",
            _ => " ",
        };
        out.raw(format!("{before}{element}").as_bytes());
    })?;
    if tensor.shape().iter().all(|length| *length > 0) {
        out.raw(b"\n");
    }
    Ok(exit)
}

fn print_json(tensor: &TensorSlice<'_>, out: &mut Output) -> Result<Exit, Error> {
    let head = json!({ "dtype": tensor.dtype(), "key": tensor.key(), "shape": tensor.shape() }).to_string();
    // The elements follow inside the same object.
    out.raw_text(head.strip_suffix('}').unwrap_or(&head));
    out.raw(b",\"data\":[");
    let exit = each(tensor, out, |out, at, element| {
        let comma = if at == 0 { "" } else { "," };
        out.raw(format!("{comma}{}", in_json(element)).as_bytes());
    })?;
    out.raw(b"]}\n");
    Ok(exit)
}

/// Writes a number or a boolean; complex numbers are pairs, and numbers that JSON cannot represent are strings.
fn in_json(element: Element) -> String {
    let float = |value: f64, text: String| match value.is_finite() {
        true => text,
        false => format!("\"{text}\""),
    };
    match element {
        Element::Single(value) => float(value.into(), element.to_string()),
        Element::Double(value) => float(value, element.to_string()),
        Element::Complex(re, im) => {
            let [re, im] = [re, im].map(|part| float(part.into(), Element::Single(part).to_string()));
            format!("[{re},{im}]")
        }
        other => other.to_string(),
    }
}

/// Writes a file in version 1.0 of NumPy's format:
/// <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
fn print_npy(tensor: &TensorSlice<'_>, out: &mut Output) -> Result<Exit, Error> {
    let (kind, widened) = match tensor.dtype() {
        Dtype::Bool => ("|b1", false),
        Dtype::U8 => ("|u1", false),
        Dtype::I8 => ("|i1", false),
        Dtype::U16 => ("<u2", false),
        Dtype::I16 => ("<i2", false),
        Dtype::U32 => ("<u4", false),
        Dtype::I32 => ("<i4", false),
        Dtype::U64 => ("<u8", false),
        Dtype::I64 => ("<i8", false),
        Dtype::F16 => ("<f2", false),
        Dtype::F32 => ("<f4", false),
        Dtype::F64 => ("<f8", false),
        Dtype::C64 => ("<c8", false),
        // NumPy has no such types; 32 bits hold all their values.
        _ => ("<f4", true),
    };
    let lengths: String = tensor.shape().iter().map(|length| format!("{length}, ")).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({}), }}", lengths.trim_end());
    // With the 10 bytes before it and the line feed after it, the elements begin at a multiple of 64.
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 11;
    header = format!("{header:padded$}\n");
    let length = u16::try_from(header.len()).map_err(|_| Error::object(tensor.key(), "it has too many dimensions"))?;
    out.raw(b"\x93NUMPY\x01\x00");
    out.raw(&length.to_le_bytes());
    out.raw(header.as_bytes());
    if widened {
        return each(tensor, out, |out, _, element| {
            if let Element::Single(value) = element {
                out.raw(&value.to_le_bytes());
            }
        });
    }
    let read = tensor.for_each_bytes(|bytes| {
        out.raw(bytes);
        if out.has_failed() { Err(closed(tensor)) } else { Ok(()) }
    });
    if out.has_failed() { Ok(Exit::Fine) } else { read.map(|()| Exit::Fine) }
}
