//! Arbitrary bytes as one file of a checkpoint whose other files are intact: the small files that say which files
//! belong together, and members of archives. The fuzz targets `directory` and `archive`, and what must hold of them.

use super::foreign::check;
use super::hostile::Verdict;
use std::fs;
use std::path::{Path, PathBuf};
use tch_checkpoint::internal::{pytorch_archive, tensorflow_table};
use tch_checkpoint::interop;
use tch_checkpoint::interop::tensorflow::CheckpointState;
use tempfile::TempDir;

macro_rules! fixture {
    ($path:literal) => {
        include_bytes!(concat!("../../../tests/fixtures/", $path)).as_slice()
    };
}

/// A checkpoint with one file that is any bytes.
struct Layout {
    /// The first byte of an input for it.
    letter: u8,
    /// The file that is any bytes.
    file: &'static str,
    /// Makes the content of that file.
    make: fn(&[u8]) -> Result<Vec<u8>, String>,
    /// What is opened; empty for the directory itself.
    opened: &'static str,
    /// The other files.
    others: &'static [(&'static str, &'static [u8])],
}

/// The files that say which others belong together.
const DIRECTORIES: &[Layout] = &[
    Layout {
        letter: b'h',
        file: "model.safetensors.index.json",
        make: same,
        opened: "",
        others: &[
            ("model-00001-of-00003.safetensors", fixture!("huggingface/sharded/model-00001-of-00003.safetensors")),
            ("model-00002-of-00003.safetensors", fixture!("huggingface/sharded/model-00002-of-00003.safetensors")),
            ("model-00003-of-00003.safetensors", fixture!("huggingface/sharded/model-00003-of-00003.safetensors")),
        ],
    },
    // The header of the second file has which slice of a tensor it is.
    Layout {
        letter: b'p',
        file: "shard-00002-model-00001-of-00001.safetensors",
        make: same,
        opened: "",
        others: &[(
            "shard-00001-model-00001-of-00001.safetensors",
            fixture!("pytorch/h_dcp/hf_two_ranks/shard-00001-model-00001-of-00001.safetensors"),
        )],
    },
    Layout {
        letter: b'k',
        file: "model.weights.json",
        make: same,
        opened: "model.weights.json",
        others: &[
            ("model_00000.weights.h5", fixture!("keras/a_keras3/sharded/model_00000.weights.h5")),
            ("model_00001.weights.h5", fixture!("keras/a_keras3/sharded/model_00001.weights.h5")),
        ],
    },
    Layout {
        letter: b't',
        file: "checkpoint",
        make: same,
        opened: "",
        others: &[
            ("model.ckpt-7.index", fixture!("tensorflow/f_name_based/model.ckpt-7.index")),
            ("model.ckpt-7.data-00000-of-00001", fixture!("tensorflow/f_name_based/model.ckpt-7.data-00000-of-00001")),
        ],
    },
    // As the entries of the index: else a fuzzer would never get past the checksums.
    Layout {
        letter: b'b',
        file: "model.ckpt-7.index",
        make: |bytes| Ok(tensorflow_table(bytes)),
        opened: "model.ckpt-7",
        others: &[(
            "model.ckpt-7.data-00000-of-00001",
            fixture!("tensorflow/f_name_based/model.ckpt-7.data-00000-of-00001"),
        )],
    },
    Layout {
        letter: b'd',
        file: ".metadata",
        make: same,
        opened: "",
        others: &[("__0_0.distcp", fixture!("pytorch/hostile/dcp_good/__0_0.distcp"))],
    },
    Layout {
        letter: b's',
        file: "model.safetensors.seal.json",
        make: same,
        opened: "model.safetensors",
        others: &[("model.safetensors", fixture!("huggingface/single/model.safetensors"))],
    },
];

/// Members of archives, under their right checksums.
const ARCHIVES: &[Layout] = &[
    Layout {
        letter: b'n',
        file: "arrays.npz",
        make: |bytes| archive(&[("first.npy", bytes), ("second.npy", &ARRAY)]),
        opened: "arrays.npz",
        others: &[],
    },
    Layout {
        letter: b'k',
        file: "model.keras",
        make: |bytes| archive(&[("metadata.json", b"{}"), ("config.json", b"{}"), ("model.weights.h5", bytes)]),
        opened: "model.keras",
        others: &[],
    },
    Layout {
        letter: b's',
        file: "script.pt",
        make: |bytes| {
            let (code, version) = (b"class M(Module):\n  __parameters__ = []\n".as_slice(), b"3\n".as_slice());
            let records = [
                ("x/data.pkl", bytes),
                ("x/code/__torch__.py", code),
                ("x/constants.pkl", b"\x80\x02)."),
                ("x/version", version),
                ("x/data/0", &[1; 24]),
                ("x/data/1", &[2; 8]),
            ];
            archive(&records)
        },
        opened: "script.pt",
        others: &[],
    },
    Layout { letter: b'z', file: "any", make: same, opened: "any", others: &[] },
];

/// Two numbers, as NumPy writes them.
const ARRAY: [u8; 136] = {
    let mut bytes = [b' '; 136];
    let start = *b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
    let mut at = 0;
    while at < start.len() {
        bytes[at] = start[at];
        at += 1;
    }
    bytes[127] = b'\n';
    bytes
};

fn same(bytes: &[u8]) -> Result<Vec<u8>, String> {
    Ok(bytes.to_vec())
}

fn archive(records: &[(&str, &[u8])]) -> Result<Vec<u8>, String> {
    pytorch_archive(records).map_err(|e| e.to_string())
}

/// Checkpoints of several kinds, each with one file that a fuzzer writes.
#[derive(Debug)]
pub struct Layouts {
    root: TempDir,
    known: &'static [Layout],
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.file)
    }
}

impl Layouts {
    /// Indexes of shards, metadata of distributed checkpoints, state files, tables, and seals.
    pub fn directories() -> std::io::Result<Layouts> {
        Layouts::new(DIRECTORIES)
    }

    /// Arrays, weights and pickles in archives, and any file.
    pub fn archives() -> std::io::Result<Layouts> {
        Layouts::new(ARCHIVES)
    }

    fn new(known: &'static [Layout]) -> std::io::Result<Layouts> {
        let root = tempfile::tempdir()?;
        for layout in known {
            let directory = directory_of(root.path(), layout);
            fs::create_dir(&directory)?;
            for (name, bytes) in layout.others {
                fs::write(directory.join(name), bytes)?;
            }
        }
        Ok(Layouts { root, known })
    }

    /// Writes what follows the first byte into the checkpoint of that letter, and opens it.
    pub fn check(&self, bytes: &[u8]) -> Verdict {
        let Some((letter, bytes)) = bytes.split_first() else { return Ok(()) };
        let Some(layout) = self.known.iter().find(|layout| layout.letter == *letter) else { return Ok(()) };
        let directory = directory_of(self.root.path(), layout);
        let file = directory.join(layout.file);
        fs::write(&file, (layout.make)(bytes)?).map_err(|e| format!("{}: {e}", file.display()))?;
        if layout.file == "checkpoint" {
            state(bytes)?;
        }
        match interop::open(directory.join(layout.opened)) {
            Ok(source) => check(&*source),
            Err(_) => Ok(()),
        }
    }
}

fn directory_of(root: &Path, layout: &Layout) -> PathBuf {
    root.join(char::from(layout.letter).to_string())
}

/// A state file that is read comes back from its own text.
fn state(bytes: &[u8]) -> Verdict {
    let Some(state) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<CheckpointState>().ok()) else {
        return Ok(());
    };
    let again = state.to_string().parse::<CheckpointState>();
    // Numbers that are NaN differ from themselves.
    match again {
        Ok(again) if format!("{again:?}") == format!("{state:?}") => Ok(()),
        other => Err(format!("{state:?} is not read again: {other:?}")),
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::corpora::replayed;

    /// What the fuzzers have kept still holds, and each layout opens as it is written by its tool.
    #[test]
    fn the_corpora() {
        for (name, layouts) in
            [("directory", Layouts::directories().unwrap()), ("archive", Layouts::archives().unwrap())]
        {
            let mut opened = Vec::new();
            replayed(name, |bytes| {
                layouts.check(bytes)?;
                let layout = bytes.first().and_then(|letter| layouts.known.iter().find(|one| one.letter == *letter));
                let path = layout.map(|one| directory_of(layouts.root.path(), one).join(one.opened));
                if path.is_some_and(|path| interop::open(path).is_ok()) {
                    opened.extend(bytes.first());
                }
                Ok(())
            });
            for layout in layouts.known {
                assert!(opened.contains(&layout.letter), "{name}: no input opens as {}", layout.file);
            }
        }
    }
}
