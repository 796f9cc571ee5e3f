//! Tests of reading in pieces, with tensors in memory.

use super::*;
use crate::format::Digest;
use crate::location::Location;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

/// Tensors in memory, with digests.
#[derive(Debug)]
pub(in crate::inspect) struct Bytes {
    specs: BTreeMap<String, TensorSpec>,
    bytes: BTreeMap<String, Vec<u8>>,
    /// A piece of this tensor cannot be read.
    fails: Option<(&'static str, u64)>,
    /// The digest of this tensor is another one.
    damaged: Option<&'static str>,
}

impl Bytes {
    /// A tensor `0` of one dimension.
    pub(in crate::inspect) fn tensor(dtype: Dtype, bytes: Vec<u8>) -> Bytes {
        let spec = TensorSpec::new(dtype, [(bytes.len() / dtype.size()) as u64]);
        let (specs, bytes) = (BTreeMap::from([("0".into(), spec)]), BTreeMap::from([("0".into(), bytes)]));
        Bytes { specs, bytes, fails: None, damaged: None }
    }

    /// Tensors of bytes, of these lengths.
    fn of(lengths: &[u64]) -> Bytes {
        let names = || (0..lengths.len()).map(|i| format!("{i}"));
        let bytes = |length: u64, i: usize| (0..length).map(|at| (at * 7 + at / 1000) as u8 ^ i as u8).collect();
        Bytes {
            specs: names().zip(lengths).map(|(name, length)| (name, TensorSpec::new(Dtype::U8, [*length]))).collect(),
            bytes: names().zip(lengths).enumerate().map(|(i, (name, length))| (name, bytes(*length, i))).collect(),
            fails: None,
            damaged: None,
        }
    }
}

impl TensorSource for Bytes {
    fn format(&self) -> &'static str {
        "bytes"
    }
    fn path(&self) -> &Location {
        static PATH: LazyLock<Location> = LazyLock::new(|| "bytes".into());
        &PATH
    }
    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }
    fn verified_by(&self, _: &str) -> VerifiedBy {
        VerifiedBy::Digest
    }
    fn digest(&self, key: &str) -> Option<Digest> {
        let is_damaged = self.damaged == Some(key);
        self.bytes.get(key).map(|bytes| if is_damaged { Digest::of(b"") } else { Digest::of(bytes) })
    }
    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        self.read_range(key, 0..target.len() as u64, target)
    }
    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        match self.fails {
            Some((of, at)) if of == key && range.contains(&at) => Err(Error::object(key, "it fails")),
            Some((of, at)) if of == "panic" && range.contains(&at) => panic!("as it should"),
            _ => {
                let size = self.specs[key].dtype.size();
                target.copy_from_slice(&self.bytes[key][range.start as usize * size..range.end as usize * size]);
                Ok(())
            }
        }
    }
    fn verify(&self) -> Result<()> {
        Ok(())
    }
}

/// All bytes, in the order of the pieces.
#[derive(Debug, Default, PartialEq)]
struct All(Vec<u8>, usize);

impl Part for All {
    fn append(&mut self, next: All) {
        self.0.extend(next.0);
        self.1 += next.1;
    }
}

fn read(source: &Bytes, threads: usize) -> Result<Vec<(usize, All)>> {
    let wanted: Vec<Wanted<'_, 1>> = source.specs.keys().map(|key| Wanted { key, sources: [source] }).collect();
    fold(&wanted, threads, |_, _, [bytes]| All(bytes.to_vec(), 1), |number, all: All| (number, all))
}

#[test]
fn every_byte_is_read_once_and_in_order() {
    let lengths = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 9 * CHUNK + 5, 3, 20 * CHUNK];
    let source = Bytes::of(&lengths);
    for threads in [0, 1, 2, 3, 7, 20] {
        let found = read(&source, threads).unwrap();
        assert_eq!(found.len(), lengths.len());
        for (number, (found, All(bytes, pieces))) in found.into_iter().enumerate() {
            assert_eq!((found, bytes.len() as u64), (number, lengths[number]));
            assert!(bytes == source.bytes[&number.to_string()], "{number} with {threads} threads");
            assert_eq!(pieces as u64, lengths[number].div_ceil(CHUNK).max(1));
        }
    }
    assert!(read(&Bytes::of(&[]), 4).unwrap().is_empty());
}

/// Of a single tensor, too: a thread that waits for the piece of another one is told.
#[test]
fn the_first_error_ends_all() {
    for threads in [1, 2, 7] {
        for at in [0, 5 * CHUNK, 8 * CHUNK + 4] {
            let mut source = Bytes::of(&[3, 8 * CHUNK + 5, 2 * CHUNK]);
            source.fails = Some(("1", at));
            let error = read(&source, threads).unwrap_err();
            assert!(error.to_string().contains("it fails"), "{error}");
        }
        let mut source = Bytes::of(&[8 * CHUNK, CHUNK]);
        source.damaged = Some("0");
        let error = read(&source, threads).unwrap_err();
        assert!(error.to_string().contains("changed while it was read"), "{error}");
        let wanted = [Wanted { key: "2", sources: [&source as &dyn TensorSource] }];
        let unknown = fold(&wanted, threads, |_, _, _| All::default(), |_, all| all);
        assert!(matches!(unknown, Err(Error::Object { .. })), "{unknown:?}");
    }
}

#[test]
fn a_length_that_no_number_holds_is_an_error() {
    let mut source = Bytes::of(&[3, 0]);
    source.specs.insert("1".into(), TensorSpec::new(Dtype::F32, [1 << 40, 1 << 40]));
    for threads in [1, 3] {
        let error = read(&source, threads).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { bytes: None, .. }), "{error}");
    }
}

#[test]
fn a_panic_ends_all() {
    for at in [0, 5 * CHUNK, 8 * CHUNK + 4] {
        let mut source = Bytes::of(&[8 * CHUNK + 5]);
        source.fails = Some(("panic", at));
        let caught = std::panic::catch_unwind(|| read(&source, 7));
        // In the thread that called, or in another one.
        assert!(caught.is_err() || caught.is_ok_and(|read| read.is_err()), "{at}");
    }
}
