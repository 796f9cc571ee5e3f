//! Arbitrary bytes as files of other tools and parts of them: the fuzz targets of `fuzz/`, and what must hold of them.

use super::hostile::Verdict;
use super::random::Random;
use tch_checkpoint::TensorSource;
use tch_checkpoint::format::Digest;
use tch_checkpoint::internal::{open_keras, open_pytorch, parse_tensorflow, pytorch_archive};
use tch_checkpoint::interop::ReadOptions;

/// The maximum length of a tensor that is read.
const LONG: u64 = 1 << 20;

/// Checks that tensors can be read in whole and in parts, with the same bytes, and with the digest that is given for
/// them.
pub(crate) fn check(source: &dyn TensorSource) -> Verdict {
    for (key, spec) in source.tensors() {
        let bytes = spec.bytes().ok_or_else(|| format!("{key:?} has no length"))?;
        if bytes > LONG {
            continue;
        }
        let mut whole = vec![0; bytes as usize];
        if source.read(key, &mut whole).is_err() {
            continue;
        }
        if source.digest(key).is_some_and(|digest| digest != Digest::of(&whole)) {
            return Err(format!("{key:?} is read, and has another digest"));
        }
        let count = bytes / spec.dtype.size() as u64;
        let middle = count / 2;
        let mut parts = vec![0; bytes as usize];
        let (first, second) = parts.split_at_mut(middle as usize * spec.dtype.size());
        source.read_range(key, 0..middle, first).map_err(|e| format!("{key:?}: {e}"))?;
        source.read_range(key, middle..count, second).map_err(|e| format!("{key:?}: {e}"))?;
        if parts != whole {
            return Err(format!("{key:?} is something else when it is read in two parts"));
        }
        let first = source.first_alias(key);
        if first > key.as_str() || source.tensors().get(first) != Some(spec) {
            return Err(format!("{key:?} is the same as {first:?}"));
        }
    }
    let order = source.order();
    if order.len() != source.tensors().len() || !order.iter().all(|key| source.tensors().contains_key(*key)) {
        return Err("the order of the file is not that of its tensors".to_string());
    }
    // May succeed or fail, and must not panic.
    let _ = source.verify();
    Ok(())
}

/// Opens the bytes as a file: a zip archive, a stream, a tar file.
pub fn file(bytes: &[u8]) -> Verdict {
    for options in [ReadOptions::default(), ReadOptions::default().unknown_objects(true)] {
        if let Ok(source) = open_pytorch(bytes.to_vec(), &options) {
            check(&*source)?;
        }
    }
    Ok(())
}

/// Opens an archive of either kind, with some storages, that has these bytes as its pickle.
pub fn pickle(bytes: &[u8]) -> Verdict {
    for is_script in [false, true] {
        let mut records: Vec<(&str, &[u8])> = vec![("x/data.pkl", bytes)];
        if is_script {
            records.push(("x/constants.pkl", b"\x80\x02)."));
        }
        records.extend([("x/data/0", [1; 24].as_slice()), ("x/data/1", &[2; 8]), ("x/data/2", &[])]);
        let archive = pytorch_archive(&records).map_err(|e| e.to_string())?;
        file(&archive)?;
    }
    Ok(())
}

/// Parses the bytes as the parts of a TensorFlow bundle: a table and messages.
pub fn bundle(bytes: &[u8]) -> Verdict {
    parse_tensorflow(bytes);
    Ok(())
}

/// Opens the bytes as an HDF5 file.
pub fn hdf5(bytes: &[u8]) -> Verdict {
    match open_keras(bytes, &ReadOptions::default()) {
        Ok(source) => check(&*source),
        Err(_) => Ok(()),
    }
}

/// Changes `bytes` in a few random places.
pub fn mutate(bytes: &mut Vec<u8>, seed: u64) {
    const TELLING: [u8; 16] =
        [0, 1, 0x7f, 0x80, 0xff, b'(', b'.', b'R', b'b', b'Q', b'q', b'h', b't', b'u', 0x8a, b'}'];
    let mut random = Random::new(seed);
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = TELLING[random.below(TELLING.len())],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, TELLING[random.below(TELLING.len())]),
            4 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, part);
            }
            _ => {
                let end = (at + 1 + random.below(8)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::corpora::replayed;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    fn fixtures() -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pytorch");
        let directories = ["d_views", "e_objects", "f_refused", "hostile", "c_dtypes"];
        let list = |directory: &str| fs::read_dir(root.join(directory)).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> = directories.iter().flat_map(|directory| list(directory)).collect();
        files.retain(|path| {
            path.is_file() && path.extension().is_none_or(|extension| extension != "json" && extension != "md")
        });
        files.sort();
        files
    }

    /// The time that a test takes.
    const TIME: Duration = Duration::from_secs(4);

    #[test]
    fn mutated_files_neither_panic_nor_hang() {
        let files: Vec<Vec<u8>> = fixtures().iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(files.len() > 80);
        let begin = Instant::now();
        let mut seed = 0;
        while begin.elapsed() < TIME {
            for original in &files {
                let mut bytes = original.clone();
                seed += 1;
                mutate(&mut bytes, seed);
                assert_eq!(file(&bytes), Ok(()), "seed {seed}");
            }
        }
    }

    /// Mutated archives would fail at the checksum, so that the unpickler is not reached.
    #[test]
    fn mutated_pickles_neither_panic_nor_hang() {
        let pickles: Vec<Vec<u8>> =
            fixtures().iter().filter_map(|path| tch_checkpoint::internal::pickle_of(path).ok()).collect();
        assert!(pickles.len() > 50);
        let begin = Instant::now();
        let mut seed = 1 << 40;
        while begin.elapsed() < TIME {
            for original in &pickles {
                let mut bytes = original.clone();
                seed += 1;
                mutate(&mut bytes, seed);
                assert_eq!(pickle(&bytes), Ok(()), "seed {seed}");
            }
        }
    }

    /// One second per format.
    #[test]
    fn mutated_bundles_and_hdf5_files_neither_panic_nor_hang() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        type Target = fn(&[u8]) -> Verdict;
        let targets: [(&[&str], Target); 2] = [
            (
                &[
                    "tensorflow/f_name_based/model.ckpt-7.index",
                    "tensorflow/a_seq2seq_gru/checkpoint",
                    "tensorflow/g_keras2_weights/saved_model/variables/variables.data-00000-of-00001",
                ],
                bundle,
            ),
            (
                &["keras/c_hdf5/features.h5", "keras/hostile/fletcher_wrong.h5", "keras/hostile/soft_link_cycle.h5"],
                hdf5,
            ),
        ];
        for (files, target) in targets {
            let originals: Vec<Vec<u8>> = files.iter().map(|file| fs::read(root.join(file)).unwrap()).collect();
            let begin = Instant::now();
            let mut seed = 1 << 50;
            while begin.elapsed() < Duration::from_secs(1) {
                for original in &originals {
                    let mut bytes = original.clone();
                    seed += 1;
                    mutate(&mut bytes, seed);
                    assert_eq!(target(&bytes), Ok(()), "seed {seed}");
                }
            }
        }
    }

    /// Replays the corpora.
    #[test]
    fn the_corpora() {
        replayed("torch_file", file);
        replayed("pickle", pickle);
        replayed("bundle", bundle);
        replayed("hdf5", hdf5);
    }
}
