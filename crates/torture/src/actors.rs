//! A second process that does random lawful and unlawful things in and around a directory, while a manager saves into it,
//! rotates, and is restarted.
//!
//! What must hold: no checkpoint that was acknowledged, and that the actor did not touch, is lost or wrong; nothing of
//! others is changed; what the actor did destroy is reported, never restored as if it were right.

use super::random::Random;
use super::run::{Run, Setup, restore};
use super::system::System;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;
use tch_checkpoint::CheckpointManager;
use tch_checkpoint::internal::before_aside;
use tch_checkpoint::{Error, Result};

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct ActorReport {
    /// What the actor did.
    pub operations: u64,
    /// Saves that were acknowledged.
    pub saved: u64,
    /// Saves that failed with an error.
    pub refused: u64,
    /// Times that a manager was opened and restored.
    pub restarts: u64,
    /// Acknowledged checkpoints that were looked at and were right.
    pub right: u64,
    /// Those that had left the numbering: a run went on from another one.
    pub aside: u64,
    /// Those that the actor had destroyed, and of which that was said.
    pub reported: u64,
    /// What broke a promise.
    pub violations: Vec<String>,
}

const KEEP: usize = 3;
/// Operations between two looks.
const BATCH: u64 = 100;

fn setup() -> Setup {
    Setup { components: 3, frozen: 1, bytes: 20_000, keep: Some(KEEP), ..Setup::default() }
}

/// The actor: does what its standard input asks for, in the directory `run` below `folder`, and says on its standard
/// output what it is about to destroy (`touch NAME`, `inode NUMBER`), what it saw go wrong, and when it is done.
pub fn actor_child(folder: &Path, seed: u64) -> io::Result<()> {
    let mut actor = Actor {
        run: folder.join("run"),
        outside: folder.join("outside"),
        random: Random::new(seed),
        seen: Vec::new(),
        made: 0,
    };
    fs::create_dir_all(&actor.outside)?;
    for line in io::stdin().lock().lines() {
        let count: u64 = line?.trim().parse().unwrap_or(0);
        for _ in 0..count {
            // What another removed meanwhile is no matter.
            let _ = actor.act();
        }
        actor.look_at_seen();
        say("done")?;
    }
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush())
}

struct Actor {
    run: PathBuf,
    outside: PathBuf,
    random: Random,
    /// Files that were opened, and what was in them.
    seen: Vec<(File, PathBuf, Vec<u8>)>,
    made: u64,
}

fn names(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| wanted(name));
    names.sort();
    names
}

/// The checkpoint's name that a name of ours stands for.
fn bare(name: &str) -> &str {
    let marked = [".tmp-", ".trash-"].iter().find_map(|mark| name.strip_prefix(mark));
    marked.and_then(|rest| rest.rsplit_once('-')).map_or(name, |(name, _)| name)
}

impl Actor {
    fn one_of(&mut self, names: Vec<String>) -> io::Result<String> {
        if names.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let at = self.random.below(names.len());
        Ok(names[at].clone())
    }

    fn checkpoint(&mut self) -> io::Result<String> {
        self.one_of(names(&self.run, |name| name.starts_with("ckpt-")))
    }

    /// A file of a checkpoint, or of one that is being written or removed.
    fn file(&mut self) -> io::Result<(String, PathBuf)> {
        let wanted =
            |name: &str| name.starts_with("ckpt-") || name.starts_with(".tmp-ckpt") || name.starts_with(".trash-");
        let folder = self.one_of(names(&self.run, wanted))?;
        let path = self.run.join(&folder);
        // What a link leads to is an archive.
        if !fs::symlink_metadata(&path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let file = self.one_of(names(&path, |_| true))?;
        Ok((folder, path.join(file)))
    }

    /// A new name of the user's own.
    fn mine(&mut self) -> String {
        self.made += 1;
        format!("mine-{}-{}", std::process::id(), self.made)
    }

    fn act(&mut self) -> io::Result<()> {
        match self.random.below(40) {
            0..=9 => self.open(),
            10..=13 => self.archive(),
            14 | 15 => self.note(),
            16..=18 => {
                let (_, path) = self.file()?;
                fs::set_permissions(path, fs::Permissions::from_mode([0o600, 0o644, 0o666][self.random.below(3)]))
            }
            19 | 20 => {
                let (_, path) = self.file()?;
                File::open(path)?.set_modified(std::time::SystemTime::now() - Duration::from_secs(5))
            }
            21 | 22 => {
                let _ = tch_checkpoint::list_checkpoints(&self.run);
                Ok(())
            }
            23 => {
                let name = self.checkpoint()?;
                say(&format!("touch {name}"))?;
                fs::remove_dir_all(self.run.join(name))
            }
            24 | 25 => self.archive_behind_a_link(),
            26 | 27 => self.damage(),
            28 | 29 => self.remove_file(),
            30 | 31 => self.rename_directory(),
            32 => self.replace_directory(),
            33 => fs::remove_file(self.run.join(".lock")),
            34 => fs::write(self.run.join("checkpoint.json"), "{"),
            35 => fs::remove_file(self.run.join("checkpoint.json")),
            36 | 37 => self.take_a_name(),
            38 => {
                let name = self.one_of(names(&self.run, |name| name.starts_with(".trash-")))?;
                fs::remove_dir_all(self.run.join(name))
            }
            _ => {
                std::thread::sleep(Duration::from_micros(self.random.below(2000) as u64));
                Ok(())
            }
        }
    }

    /// Opens a file and looks at it again later: an open file never changes, unless this process changes it.
    fn open(&mut self) -> io::Result<()> {
        let (folder, path) = self.file()?;
        let file = File::open(&path)?;
        // What is being written changes.
        if folder.starts_with(".tmp-") {
            return Ok(());
        }
        let mut bytes = vec![0; file.metadata()?.len() as usize];
        file.read_exact_at(&mut bytes, 0)?;
        self.seen.push((file, path, bytes));
        if self.seen.len() > 50 {
            self.look_at_seen();
        }
        Ok(())
    }

    fn look_at_seen(&mut self) {
        for (file, path, before) in self.seen.drain(..) {
            let mut now = vec![0; before.len()];
            if file.read_exact_at(&mut now, 0).is_err() || now != before {
                let _ = say(&format!("VIOLATION: {} changed while it was open", path.display()));
            }
        }
    }

    /// Copies a checkpoint, or gives its files second names.
    fn archive(&mut self) -> io::Result<()> {
        let (name, by_links) = (self.checkpoint()?, self.random.one_in(2));
        let mine = self.mine();
        let to = self.outside.join(mine);
        fs::create_dir(&to)?;
        for file in names(&self.run.join(&name), |_| true) {
            let (from, to) = (self.run.join(&name).join(&file), to.join(&file));
            if by_links { fs::hard_link(from, to)? } else { fs::copy(from, to).map(drop)? }
        }
        self.keep(&to, &name)
    }

    /// Notes an archive that must stay as it is, if it is whole.
    fn keep(&mut self, path: &Path, name: &str) -> io::Result<()> {
        match tch_checkpoint::verify_checkpoint(path).is_intact() {
            true => say(&format!("keep {name} {}", path.display())),
            false => fs::remove_dir_all(path),
        }
    }

    fn archive_behind_a_link(&mut self) -> io::Result<()> {
        let name = self.checkpoint()?;
        let mine = self.mine();
        let (path, to) = (self.run.join(&name), self.outside.join(mine));
        if fs::symlink_metadata(&path)?.is_symlink() {
            return fs::remove_file(path);
        }
        say(&format!("touch {name}"))?;
        fs::rename(&path, &to)?;
        let _ = symlink(&to, &path);
        self.keep(&to, &name)
    }

    /// Writes its own file, somewhere.
    fn note(&mut self) -> io::Result<()> {
        let inside = if self.random.one_in(2) { self.run.clone() } else { self.outside.clone() };
        let path = inside.join(self.mine());
        fs::write(&path, "mine")?;
        say(&format!("mine {}", path.display()))
    }

    fn damage(&mut self) -> io::Result<()> {
        let (folder, path) = self.file()?;
        // A hole in the list of what was seen: this process changes it.
        self.look_at_seen();
        let file = fs::OpenOptions::new().write(true).open(path)?;
        let metadata = file.metadata()?;
        say(&format!("inode {}", metadata.ino()))?;
        say(&format!("touch {}", bare(&folder)))?;
        match self.random.one_in(2) {
            true => file.set_len(metadata.len() / 2),
            false => file.write_all_at(&[0xAA; 3], self.random.below(metadata.len().max(1) as usize) as u64),
        }
    }

    fn remove_file(&mut self) -> io::Result<()> {
        let (folder, path) = self.file()?;
        say(&format!("touch {}", bare(&folder)))?;
        fs::remove_file(path)
    }

    /// Renames the directory, and after a moment back.
    fn rename_directory(&mut self) -> io::Result<()> {
        let aside = self.run.with_extension("aside");
        fs::rename(&self.run, &aside)?;
        std::thread::sleep(Duration::from_micros(self.random.below(3000) as u64));
        self.put_back(&aside)
    }

    /// Renames the directory back. A manager that was opened meanwhile has made a new one: that goes.
    fn put_back(&mut self, aside: &Path) -> io::Result<()> {
        while let Err(e) = fs::rename(aside, &self.run) {
            let mine = self.mine();
            let made = self.outside.join(mine);
            fs::rename(&self.run, &made).map_err(|_| e)?;
            names(&made, |_| true).iter().try_for_each(|name| say(&format!("touch {name}")))?;
            // The manager may still write into it.
            let _ = fs::remove_dir_all(&made);
        }
        Ok(())
    }

    /// Puts a directory of its own in the place of the other for a moment.
    fn replace_directory(&mut self) -> io::Result<()> {
        let mine = self.mine();
        let (aside, own) = (self.run.with_extension("aside"), self.outside.join(mine));
        fs::create_dir_all(own.join("ckpt-1"))?;
        fs::write(own.join("ckpt-1/mine"), "mine")?;
        fs::rename(&self.run, &aside)?;
        let put = fs::rename(&own, &self.run);
        std::thread::sleep(Duration::from_micros(self.random.below(3000) as u64));
        if put.is_ok() {
            fs::rename(&self.run, &own)?;
        }
        self.put_back(&aside)?;
        let found = names(&own, |_| true);
        // A manager that was opened meanwhile was opened there, and saves there; one that was opened before does not.
        let opened = found.iter().any(|name| name == ".lock");
        if !opened && found != ["ckpt-1"] || names(&own.join("ckpt-1"), |_| true) != ["mine"] {
            say(&format!("VIOLATION: a directory of another's holds {found:?}"))?;
        }
        found.iter().try_for_each(|name| say(&format!("touch {name}")))?;
        fs::remove_dir_all(&own)
    }

    /// Takes a name that a checkpoint is going to have.
    fn take_a_name(&mut self) -> io::Result<()> {
        let numbers =
            names(&self.run, |_| true).iter().filter_map(|name| name.strip_prefix("ckpt-")?.parse::<u64>().ok()).max();
        let path = self.run.join(format!("ckpt-{}", numbers.unwrap_or(0) + 2 + self.random.below(5) as u64));
        match self.random.below(3) {
            0 => fs::write(&path, "mine")?,
            1 => {
                fs::create_dir(&path)?;
                fs::write(path.join("notes"), "mine")?;
            }
            _ => {
                // The trainer, as its user would, removes a link that keeps it from starting.
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                say(&format!("touch {name}"))?;
                return symlink("/nowhere", &path).and_then(|()| fs::remove_file(&path));
            }
        }
        say(&format!("mine {}", path.display()))
    }
}

/// What the actor has said so far.
#[derive(Default)]
struct Said {
    touched: BTreeSet<String>,
    inodes: BTreeSet<u64>,
    /// Its archives: of which checkpoint.
    kept: BTreeMap<PathBuf, String>,
    mine: BTreeSet<PathBuf>,
}

impl Said {
    fn take(&mut self, line: &str, report: &mut ActorReport) {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("touch", name) => drop(self.touched.insert(name.to_string())),
            ("inode", number) => self.inodes.extend(number.parse::<u64>()),
            ("keep", rest) => {
                self.kept.extend(rest.split_once(' ').map(|(name, path)| (path.into(), name.to_string())))
            }
            ("mine", path) => drop(self.mine.insert(path.into())),
            _ if line.contains("VIOLATION") => report.violations.push(line.to_string()),
            _ => {}
        }
    }

    /// Whether a file that was written into is among those in `path`.
    fn has_damaged(&self, path: &Path) -> bool {
        let inode = |file: &String| fs::metadata(path.join(file)).map(|metadata| metadata.ino());
        names(path, |_| true).iter().any(|file| inode(file).is_ok_and(|inode| self.inodes.contains(&inode)))
    }

    /// Forgets the numbers of files that are not there any more: others get them.
    fn forget(&mut self, root: &Path) {
        let files = |name: String| {
            let folder = root.join(name);
            names(&folder, |_| true).into_iter().map(move |file| folder.join(file))
        };
        let files = names(root, |_| true).into_iter().flat_map(files);
        let there: BTreeSet<u64> = files.filter_map(|file| Some(fs::metadata(file).ok()?.ino())).collect();
        self.inodes.retain(|inode| there.contains(inode));
    }

    /// Whether the actor had a hand in what is at `path`, called `name`.
    fn is_touched(&self, name: &str, path: &Path) -> bool {
        self.touched.contains(name) || self.has_damaged(path)
    }
}

/// Lets the actor that `command` starts, given folder and seed, do so many things while a manager works.
pub fn actors(
    scratch: &Path,
    operations: u64,
    seed: u64,
    command: impl FnOnce(&Path, u64) -> Command,
) -> io::Result<ActorReport> {
    let mut report = ActorReport::default();
    fs::create_dir_all(scratch)?;
    let folder = scratch.canonicalize()?;
    let mut child = command(&folder, seed).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the actor has no input and output"));
    };
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(output).lines().map_while(io::Result::ok).try_for_each(|line| sender.send(line))
    });
    let mut trainer = Trainer::new(&folder.join("run"), !seed);
    let mut said = Said::default();
    while report.operations < operations && report.violations.len() < 20 {
        writeln!(orders, "{BATCH}")?;
        let mut done = false;
        while !done {
            trainer.act(&mut report);
            for line in lines.try_iter() {
                // The test harness puts its own words before the first.
                done |= line.ends_with("done");
                said.take(&line, &mut report);
            }
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("the actor is gone: {status}")));
            }
        }
        report.operations += BATCH;
        trainer.look(&mut said, &mut report);
    }
    drop(orders);
    child.wait()?;
    Ok(report)
}

/// The process that trains and saves.
struct Trainer {
    run: Run,
    root: PathBuf,
    manager: Option<CheckpointManager>,
    random: Random,
    step: i64,
    acknowledged: Vec<i64>,
    /// Of these, what rotation may not have removed yet: a step that leaves this list for another never comes back to it.
    due: Vec<i64>,
}

impl Trainer {
    fn new(root: &Path, seed: u64) -> Trainer {
        let (run, root, random) = (Run::new(&setup()), root.to_path_buf(), Random::new(seed));
        Trainer { run, root, manager: None, random, step: 0, acknowledged: Vec::new(), due: Vec::new() }
    }

    fn act(&mut self, report: &mut ActorReport) {
        if self.random.one_in(25) {
            self.manager = None;
        }
        if self.manager.is_none() && !self.restart(report) {
            return report.refused += 1;
        }
        let Some(manager) = &mut self.manager else { return };
        self.step += 1;
        self.run.set(self.step);
        match manager.save_at(self.step) {
            Ok(_) => {
                report.saved += 1;
                self.acknowledged.push(self.step);
                self.due.push(self.step);
                let rotated = self.due.len().saturating_sub(KEEP);
                self.due.drain(..rotated);
            }
            Err(error) => {
                report.refused += 1;
                if matches!(error, Error::Moved { .. }) && self.random.one_in(4) {
                    self.manager = None;
                }
            }
        }
    }

    /// Opens a manager, and restores what there is.
    fn restart(&mut self, report: &mut ActorReport) -> bool {
        self.run = Run::new(&setup());
        let opened = self.run.checkpoint(Arc::new(System::default())).and_then(|checkpoint| {
            CheckpointManager::builder(checkpoint, &self.root).max_to_keep(KEEP).fresh_start().open()
        });
        let mut manager = match opened {
            Ok(manager) => manager,
            Err(_) => return false,
        };
        match restore(&mut manager) {
            Ok(started) => {
                let step = started.restored.and_then(|status| status.step()).map(|step| step as i64);
                if let Some(step) = step.filter(|step| !self.run.is_at(*step)) {
                    report.violations.push(format!("step {step} was restored, and the values are not its own"));
                }
                report.restarts += 1;
                self.step = self.step.max(step.unwrap_or(0));
                self.manager = Some(manager);
                true
            }
            // What a user would do.
            Err(Error::Link { path, .. }) if path.parent() == Some(&self.root) => {
                let _ = fs::remove_file(path);
                false
            }
            // And here: the one with the higher number.
            Err(Error::Undecided { first, second }) => {
                let number = |path: &Path| path.to_str()?.rsplit_once("ckpt-")?.1.parse::<i64>().ok();
                let older = if number(&first) < number(&second) { first } else { second };
                self.acknowledged.retain(|step| Some(*step) != number(&older));
                let _ = manager.pass_over(older);
                false
            }
            Err(e) => {
                log::debug!("not restored: {e}");
                false
            }
        }
    }

    /// What is wrong with a checkpoint.
    fn wrong(&self, path: &Path, step: i64) -> Result<()> {
        if let Some(problem) = tch_checkpoint::verify_checkpoint(path).problems.into_iter().next() {
            return Err(problem);
        }
        let run = Run::new(&setup());
        run.checkpoint(Arc::new(System::default()))?.restore(path)?;
        let reason = format!("it does not hold step {step}");
        if run.is_at(step) { Ok(()) } else { Err(Error::Object { name: "checkpoint".into(), reason }) }
    }

    /// Looks at everything, while the actor does nothing.
    fn look(&mut self, said: &mut Said, report: &mut ActorReport) {
        let mut broken = |what: String| report.violations.push(what);
        for path in &said.mine {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_mine = |path: &Path| fs::read(path).is_ok_and(|bytes| bytes == b"mine");
            if !said.touched.contains(&name) && !is_mine(path) && !is_mine(&path.join("notes")) {
                broken(format!("{} is not as it was put there", path.display()));
            }
        }
        for (path, name) in std::mem::take(&mut said.kept) {
            let step = name.strip_prefix("ckpt-").and_then(|step| step.parse().ok()).unwrap_or(-1);
            if let Err(e) = self.wrong(&path, step).or_else(|e| if said.has_damaged(&path) { Ok(()) } else { Err(e) }) {
                broken(format!("the archive {} of {name}: {e}", path.display()));
            }
            let _ = fs::remove_dir_all(path);
        }
        let listed = self.manager.iter().flat_map(CheckpointManager::checkpoints);
        let listed = listed.filter_map(|path| path.to_str()?.rsplit_once("ckpt-")?.1.parse().ok());
        let newest = self.due.iter().copied();
        let steps: BTreeSet<i64> = listed.chain(newest).filter(|step| self.acknowledged.contains(step)).collect();
        let mut best = None;
        for step in steps {
            let name = format!("ckpt-{step}");
            // Or out of the numbering, where it stays until it is tidied away.
            let aside = |other: &str| before_aside(other).is_some_and(|(_, before)| before == name);
            let now = names(&self.root, aside).into_iter().next().unwrap_or_else(|| name.clone());
            let moved = now != name;
            report.aside += u64::from(moved);
            let path = self.root.join(now);
            match (said.is_touched(&name, &path), self.wrong(&path, step)) {
                (false, Ok(())) => {
                    report.right += 1;
                    best = best.max(Some(step).filter(|_| !moved));
                }
                (false, Err(e)) => report.violations.push(format!("{name} was acknowledged and not touched: {e}")),
                (true, Err(Error::Object { reason, .. })) => {
                    report.violations.push(format!("{name} was touched, and nothing says so: {reason}"));
                }
                (true, Err(_)) => report.reported += 1,
                (true, Ok(())) => {}
            }
        }
        match tch_checkpoint::latest_checkpoint(&self.root) {
            Ok(latest) => {
                let step = latest.and_then(|path| path.to_str()?.rsplit_once("ckpt-")?.1.parse::<i64>().ok());
                if step < best {
                    report.violations.push(format!("the latest is {step:?}, {best:?} is there, whole, and newer"));
                }
            }
            // A link in the place of the newest; or what decided between two chains was destroyed, and both are named.
            Err(Error::Link { .. } | Error::Undecided { .. }) => {}
            Err(e) => report.violations.push(format!("nothing tells the latest: {e}")),
        }
        said.forget(&self.root);
        self.tidy();
    }

    /// What a user would do now and then.
    fn tidy(&mut self) {
        for name in names(&self.root, |name| before_aside(name).is_some()) {
            let step = before_aside(&name).and_then(|(_, name)| name.strip_prefix("ckpt-")?.parse::<i64>().ok());
            self.acknowledged.retain(|acknowledged| Some(*acknowledged) != step);
            let _ = fs::remove_dir_all(self.root.join(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: &str = "TORTURE_ACTOR";

    /// Not a test of its own: the second process of [`an_actor_beside_a_manager_costs_nothing_that_was_acknowledged`].
    #[test]
    fn child() {
        let Ok(order) = std::env::var(CHILD) else { return };
        if let Some((seed, folder)) = order.split_once(' ') {
            actor_child(Path::new(folder), seed.parse().unwrap()).unwrap();
        }
    }

    /// A few seconds; the long run is `torture actors`.
    #[test]
    #[cfg_attr(libtorch, ignore = "the second process would load libtorch; it runs without libtorch")]
    fn an_actor_beside_a_manager_costs_nothing_that_was_acknowledged() {
        let this = std::env::current_exe().unwrap();
        let (mut saved, mut right, mut reported, mut restarts) = (0, 0, 0, 0);
        // How much the two processes get done depends on what else the machine does.
        for seed in 1..=6 {
            let scratch = tempfile::tempdir().unwrap();
            let report = actors(scratch.path(), 2000, seed, |folder, seed| {
                let mut command = Command::new(&this);
                command.args(["--exact", "actors::tests::child", "--nocapture"]);
                command.env(CHILD, format!("{seed} {}", folder.display()));
                command
            });
            let report = report.unwrap();
            println!("{report:?}");
            assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
            saved += report.saved;
            right += report.right;
            reported += report.reported;
            restarts += report.restarts;
            if saved > 50 && right > 20 && reported > 0 && restarts > 3 {
                return;
            }
        }
        panic!("too little happened: {saved} saved, {right} right, {reported} reported, {restarts} restarts");
    }
}
