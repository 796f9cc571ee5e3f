#![no_main]

use std::sync::LazyLock;
use tch_checkpoint_torture::layouts::Layouts;

/// In the directory for temporary files: put TMPDIR into memory.
static LAYOUTS: LazyLock<Layouts> = LazyLock::new(|| Layouts::directories().expect("a directory for temporary files"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = LAYOUTS.check(bytes) {
        panic!("{what}");
    }
});
