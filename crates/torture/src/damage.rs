//! Damage: every changed, missing, added or swapped byte is found before an object is touched, and the checkpoint
//! before it is restored.

use super::check::ROOT;
use super::crash::{empty_disk, program};
use super::random::Random;
use super::run::{Run, Setup, restore};
use super::sim::{Content, Files, Id, Name, Node, SimDisk, TOP};
use std::path::Path;
use std::sync::Arc;
use tch_checkpoint::internal::Disk;

/// The result of [`damage`].
#[derive(Debug, Clone, Default)]
pub struct DamageReport {
    /// The number of single bits flipped in a small checkpoint.
    pub bits: u64,
    /// The number of random single bits flipped in a larger one.
    pub random_bits: u64,
    /// The number of truncations, extensions, zeroed blocks, swapped and missing files.
    pub others: u64,
    /// Damage that was not found, or not handled correctly.
    pub violations: Vec<String>,
}

/// Damages the newest of three checkpoints in every way. `thin` of 1 flips every bit of the small one.
#[must_use]
pub fn damage(thin: usize, random_flips: u64, seed: u64) -> DamageReport {
    let mut report = DamageReport::default();
    let small = Case::new(24);
    for (name, id) in small.newest() {
        let bits = small.bytes(id).len() * 8;
        for bit in (0..bits).step_by(thin.max(1)) {
            small.check(id, flipped(small.bytes(id), bit), &format!("bit {bit} of {name}"), &mut report);
            report.bits += 1;
        }
    }
    others(&small, &mut report);
    let mut random = Random::new(seed);
    let large = Case::new(100_000);
    let files = large.newest();
    for _ in 0..random_flips {
        let (name, id) = &files[random.below(files.len())];
        let bit = random.below(large.bytes(*id).len() * 8);
        large.check(*id, flipped(large.bytes(*id), bit), &format!("bit {bit} of the large {name}"), &mut report);
        report.random_bits += 1;
    }
    report
}

fn flipped(bytes: &[u8], bit: usize) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    Some(bytes)
}

fn others(case: &Case, report: &mut DamageReport) {
    let files = case.newest();
    let older = case.files_of("ckpt-2");
    for (name, id) in &files {
        let bytes = case.bytes(*id);
        let n = bytes.len();
        let mut damaged: Vec<(String, Option<Vec<u8>>)> = vec![("missing".into(), None)];
        let cuts = (0..n).step_by(97).chain([0, 1, 7, 8, n - 1]);
        damaged.extend(cuts.map(|length| (format!("cut to {length}"), Some(bytes[..length].to_vec()))));
        for more in [1, 8, 4096] {
            damaged.push((format!("{more} zeros longer"), Some([bytes, &vec![0; more]].concat())));
            damaged.push((format!("{more} of its bytes longer"), Some([bytes, &bytes[..more.min(n)]].concat())));
        }
        for block in [1, 8, 64, 512, 4096] {
            for at in (0..n).step_by(block.max(n / 40)) {
                let mut zeroed = bytes.to_vec();
                zeroed[at..(at + block).min(n)].fill(0);
                if zeroed != bytes {
                    damaged.push((format!("{block} zeros at {at}"), Some(zeroed)));
                }
            }
        }
        for (other, swapped) in files.iter().chain(&older) {
            if case.bytes(*swapped) != bytes {
                damaged.push((format!("with the bytes of {other}"), Some(case.bytes(*swapped).to_vec())));
            }
        }
        for (what, bytes) in damaged {
            // The whole manifest of an older checkpoint says of itself which step it is; its files are not these.
            case.check(*id, bytes, &format!("{name}, {what}"), report);
            report.others += 1;
        }
    }
}

/// Returns a disk with three checkpoints.
struct Case {
    setup: Setup,
    files: Files,
}

impl Case {
    fn new(bytes: usize) -> Case {
        let setup = Setup { bytes, keep: Some(3), ..Setup::default() };
        let disk = SimDisk::new(empty_disk(&setup), 0);
        program(&disk, Arc::new(disk.clone()), &setup, 3);
        Case { setup, files: disk.files() }
    }

    fn files_of(&self, checkpoint: &str) -> Vec<(String, Id)> {
        let path = ["data", "run", checkpoint];
        let directory = path.iter().try_fold(TOP, |id, part| self.files.find(id, &Name::new(part))).unwrap_or(TOP);
        self.files.entries(directory).iter().map(|(name, id)| (format!("{checkpoint}/{}", name.text), *id)).collect()
    }

    fn newest(&self) -> Vec<(String, Id)> {
        self.files_of("ckpt-3")
    }

    fn bytes(&self, id: Id) -> &[u8] {
        self.files.content(id).map(|content| content.bytes.as_slice()).unwrap_or_default()
    }

    /// Returns the disk with other bytes in a file, or without the file.
    fn check(&self, id: Id, bytes: Option<Vec<u8>>, context: &str, report: &mut DamageReport) {
        let mut files = self.files.clone();
        match bytes {
            Some(bytes) => files.nodes[id] = Node::File(Content::new(bytes)),
            None => {
                for node in &mut files.nodes {
                    if let Node::Directory(entries) = node {
                        entries.retain(|(_, other)| *other != id);
                    }
                }
            }
        }
        let mut broken = |what: String| {
            if report.violations.len() < 100 {
                report.violations.push(format!("{context}: {what}"));
            }
        };
        let disk = SimDisk::new(files, 0);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let newest = Path::new(ROOT).join("ckpt-3");
        let run = Run::new(&self.setup);
        let restored = run.checkpoint(shared.clone()).and_then(|mut checkpoint| {
            checkpoint.restore_with(&newest, &tch_checkpoint::RestoreOptions::new().threads(1)).map(|_| ())
        });
        if restored.is_ok() || !run.is_untouched() {
            broken(format!("{restored:?}, objects untouched: {}", run.is_untouched()));
        }
        let run = Run::new(&self.setup);
        match run.open(shared, Path::new(ROOT)).and_then(|mut manager| restore(&mut manager)) {
            Ok(started) if run.is_at(2) && started.passed_over.len() == 1 => {
                let passed = &started.passed_over[0];
                if !disk.has(&passed.path) || disk.has(&newest) {
                    broken(format!("it should be aside, as {}", passed.path.display()));
                }
            }
            Ok(started) => broken(format!("restored {:?}, passed over {:?}", started.restored, started.passed_over)),
            Err(e) => broken(format!("nothing was restored: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_found_and_the_one_before_restored() {
        let report = damage(41, 300, 1);
        println!("{report:?}");
        assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
    }
}
