//! Changes by others: the user, other processes, the clock.

use super::state::NAMES;
use super::{History, Verdict};
use std::fs;
use tch_checkpoint::CheckpointDirectory;

impl History {
    pub(super) fn remove_by_hand(&mut self) -> Verdict {
        let count = self.line().own.len();
        if count == 0 {
            return Ok(());
        }
        let at = self.random.below(count);
        let number = self.line().own[at].number;
        self.tell(format!("{number} is removed by hand"));
        let path = self.path(number);
        let _ = fs::remove_dir_all(path);
        self.line().removed(at);
        Ok(())
    }

    /// Flips one bit of a tensor.
    pub(super) fn damage(&mut self) -> Verdict {
        let Some(at) = self.line().own.iter().rposition(|made| made.is_whole()) else { return Ok(()) };
        let number = self.line().own[at].number;
        self.tell(format!("{number} is damaged"));
        let file = self.path(number).join("tensor.safetensors");
        let mut bytes = fs::read(&file).map_err(|e| e.to_string())?;
        if let Some(last) = bytes.last_mut() {
            *last ^= 0x80;
        }
        // As a new file: others may share this one.
        fs::remove_file(&file).and_then(|()| fs::write(&file, bytes)).map_err(|e| e.to_string())?;
        self.line().own[at].is_damaged = true;
        self.close()
    }

    pub(super) fn copy_in(&mut self) -> Verdict {
        // A permanent one is told from the own ones by the index alone.
        let is_permanent = self.indexed[0] && self.random.one_in(3);
        let from = if is_permanent { 1057 } else { 1058 + self.random.below(2) };
        let number = 100 + self.random.below(3) as u64;
        let name = format!("{}-{number}", NAMES[0]);
        // The number of one that was removed by hand is still that one's.
        let own = &self.lines[0].own;
        if own.is_empty() || own.iter().any(|made| made.number == number) || self.dir.join(&name).exists() {
            return Ok(());
        }
        self.tell(format!("{name} is copied in{}", if is_permanent { ", permanent" } else { "" }));
        self.needs_index |= is_permanent;
        let (from, to) = (self.foreign.join(format!("ckpt-{from}")), self.dir.join(&name));
        fs::create_dir(&to).map_err(|e| e.to_string())?;
        for entry in fs::read_dir(from).map_err(|e| e.to_string())?.flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).map_err(|e| e.to_string())?;
        }
        self.copied.push(name);
        Ok(())
    }

    /// Another process pins or unpins a checkpoint.
    pub(super) fn pin(&mut self) -> Verdict {
        let Some(at) = self.any_there() else { return Ok(()) };
        let made = self.line().own[at].clone();
        let name = format!("{}-{}", NAMES[self.name], made.number);
        self.tell(format!("{name} is {}", if made.pinned { "unpinned" } else { "pinned" }));
        let beside = CheckpointDirectory::new(&self.dir);
        let done = match made.pinned {
            true => beside.unpin(&name, "p").map(|was_pinned| was_pinned == made.pinned),
            false => beside.pin(&name, "p", "").map(|()| true),
        };
        self.line().own[at].pinned = !made.pinned;
        match done {
            Ok(true) => Ok(()),
            other => Err(format!("{name} is not pinned or unpinned: {other:?}")),
        }
    }

    /// Another process adds a metric.
    pub(super) fn evaluate(&mut self) -> Verdict {
        let Some(at) = self.any_there() else { return Ok(()) };
        let (number, value) = (self.line().own[at].number, self.random.below(9) as f64);
        let name = format!("{}-{number}", NAMES[self.name]);
        self.tell(format!("{name} gets the metric {value}"));
        let added = CheckpointDirectory::new(&self.dir).add_metrics(&name, [("m0", value)]);
        self.line().own[at].metrics.insert("m0".to_string(), value);
        added.map_err(|e| format!("{name} gets no metric: {e}"))
    }

    fn any_there(&mut self) -> Option<usize> {
        let there = self.line().own.iter().enumerate().filter(|(_, made)| made.there).map(|(at, _)| at);
        let there: Vec<usize> = there.collect();
        (!there.is_empty()).then(|| there[self.random.below(there.len())])
    }

    /// Loses the index, moves the clock, leaves a staging directory, or takes a name.
    pub(super) fn somebody(&mut self) -> Verdict {
        match self.random.below(4) {
            0 if self.needs_index => {}
            0 => {
                self.tell("the index is lost");
                let _ = fs::remove_file(self.dir.join("checkpoint.json"));
                self.indexed = [false; 2];
            }
            1 => {
                let hours = [-1_000_000, -5, 1, 2, 50, 1_000_000][self.random.below(6)];
                self.tell(format!("the clock goes {hours} hours"));
                self.turn_clock(hours * 3600);
            }
            2 => {
                self.tell("a process died");
                self.manager = None;
                let left = self.dir.join(".tmp-ckpt-9-0123456789abcdef0123456789abcdef");
                let _ = fs::create_dir(&left);
                return fs::write(left.join("manifest.json"), "{").map_err(|e| e.to_string());
            }
            _ => {
                let number = self.line().last_step.unwrap_or(0) + 1;
                let path = self.path(number);
                if !path.exists() {
                    self.tell(format!("{number} is a file"));
                    fs::write(path, "mine").map_err(|e| e.to_string())?;
                }
            }
        }
        Ok(())
    }
}
