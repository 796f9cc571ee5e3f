//! `torture stamp`.

use std::path::Path;
use tch_checkpoint_torture::stamp;

pub(crate) fn run(scratch: &Path, saves: u64, seed: u64) -> bool {
    let both = stamp(&scratch.join("right"), saves, seed, false)
        .and_then(|right| Ok((right, stamp(&scratch.join("careless"), saves.div_ceil(20), seed, true)?)));
    let _ = std::fs::remove_dir_all(scratch);
    match both {
        Ok((right, careless)) => {
            println!("stamp: {} saves, {} mixed", right.saves, right.mixed);
            println!("stamp, past the gate: {} saves, {} mixed", careless.saves, careless.mixed);
            right.examples.iter().for_each(|example| println!("{example}"));
            right.saves == saves && right.mixed == 0 && careless.mixed > 0
        }
        Err(e) => {
            println!("stamp: cannot be run: {e}");
            false
        }
    }
}
