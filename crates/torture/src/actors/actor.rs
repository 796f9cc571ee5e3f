//! The second process, with its lawful and unlawful operations.

use super::others::{self, LEFT_TO_DIE, save_some};
use super::watch::Watch;
use super::{bare, names};
use crate::random::Random;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tch_checkpoint::internal::hold_lease;

/// The actor: does what its standard input asks for, in the directory `run` below `directory`, and says on its standard
/// output what it is about to destroy (`touch NAME`, `inode NUMBER`), what it saw go wrong, and when it is done.
///
/// # Errors
/// When it cannot make its directory, or is not spoken to.
pub fn actor_child(directory: &Path, seed: u64) -> io::Result<()> {
    if std::env::var_os(LEFT_TO_DIE).is_some() {
        others::save_until_killed(&directory.join("run"));
        return Ok(());
    }
    let mut actor = Actor {
        run: directory.join("run"),
        outside: directory.join("outside"),
        random: Random::new(seed),
        seen: Vec::new(),
        leases: Vec::new(),
        watch: Watch::new(),
        made: 0,
    };
    fs::create_dir_all(&actor.outside)?;
    for line in io::stdin().lock().lines() {
        let count: u64 = line?.trim().parse().unwrap_or(0);
        for _ in 0..count {
            // It does not matter if another process has removed it meanwhile.
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
    /// Files on which it has a lease.
    leases: Vec<File>,
    /// Whether the user may watch what other processes open.
    watch: Option<Watch>,
    made: u64,
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
        let directory = self.one_of(names(&self.run, wanted))?;
        let path = self.run.join(&directory);
        // What a link leads to is an archive.
        if !fs::symlink_metadata(&path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let file = self.one_of(names(&path, |_| true))?;
        Ok((directory, path.join(file)))
    }

    /// A new name chosen by the user.
    fn mine(&mut self) -> String {
        self.made += 1;
        format!("mine-{}-{}", std::process::id(), self.made)
    }

    fn act(&mut self) -> io::Result<()> {
        match self.random.below(48) {
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
            39..=41 => self.lease(),
            42 | 43 => self.watch(),
            44 => self.another_manager(),
            45 => self.a_manager_that_is_killed(),
            _ => {
                std::thread::sleep(Duration::from_micros(self.random.below(2000) as u64));
                Ok(())
            }
        }
    }

    /// Opens a file and examines it again later: an open file never changes, unless this process changes it.
    fn open(&mut self) -> io::Result<()> {
        let (directory, path) = self.file()?;
        let file = File::open(&path)?;
        // Files that are being written change.
        if directory.starts_with(".tmp-") {
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

    /// Takes a lease on a file, or gives those back that it has.
    fn lease(&mut self) -> io::Result<()> {
        if self.leases.len() > self.random.below(4) {
            self.leases.clear();
            return Ok(());
        }
        let (_, path) = self.file()?;
        let file = File::open(path)?;
        if hold_lease(&file) {
            self.leases.push(file);
            say("did lease")?;
        }
        Ok(())
    }

    /// Lets itself be asked before anyone opens a file of a directory, as virus scanners do.
    fn watch(&mut self) -> io::Result<()> {
        let directory = self.one_of(names(&self.run, |name| name.starts_with("ckpt-") || name.starts_with('.')))?;
        let path = self.run.join(directory);
        match &self.watch {
            Some(watch) if fs::symlink_metadata(&path)?.is_dir() && watch.add(&path) => say("did watch"),
            _ => Ok(()),
        }
    }

    /// Saves under another name into the same directory, while the trainer makes room.
    fn another_manager(&mut self) -> io::Result<()> {
        say("others")?;
        self.leases.clear();
        let saves = 1 + self.random.below(3) as u64;
        // A save that failed must not exist; nothing else is required.
        let _ = save_some(&self.run, "other", saves, |step| {
            let _ = say(&format!("saved other {step}"));
        });
        say("thanks")
    }

    /// The same by a process that is killed in the middle.
    fn a_manager_that_is_killed(&mut self) -> io::Result<()> {
        say("others")?;
        self.leases.clear();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(std::env::args().skip(1)).env(LEFT_TO_DIE, "").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        std::thread::sleep(Duration::from_micros(self.random.below(80_000) as u64));
        child.kill()?;
        if let Some(output) = child.stdout.take() {
            let lines = BufReader::new(output).lines().map_while(io::Result::ok);
            let steps = lines.filter_map(|line| line.rsplit_once("saved ")?.1.parse::<u64>().ok());
            steps.collect::<Vec<_>>().iter().try_for_each(|step| say(&format!("saved killed {step}")))?;
        }
        child.wait()?;
        say("did kill")?;
        say("thanks")
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
        Actor::keep(&to, &name, if by_links { "links" } else { "copies" })
    }

    /// Notes an archive that must stay as it is, if it is whole.
    fn keep(path: &Path, name: &str, of: &str) -> io::Result<()> {
        match tch_checkpoint::verify_checkpoint(path).is_intact() {
            true => say(&format!("keep {of} {name} {}", path.display())),
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
        Actor::keep(&to, &name, "copies")
    }

    /// Writes its own file, somewhere.
    fn note(&mut self) -> io::Result<()> {
        let inside = if self.random.one_in(2) { self.run.clone() } else { self.outside.clone() };
        let path = inside.join(self.mine());
        fs::write(&path, "mine")?;
        say(&format!("mine {}", path.display()))
    }

    fn damage(&mut self) -> io::Result<()> {
        let (directory, path) = self.file()?;
        // A hole in the list of what was seen: this process changes it. Its own leases would make it wait.
        self.look_at_seen();
        self.leases.clear();
        let file = fs::OpenOptions::new().write(true).open(path)?;
        let metadata = file.metadata()?;
        say(&format!("inode {}", metadata.ino()))?;
        say(&format!("touch {}", bare(&directory)))?;
        match self.random.one_in(2) {
            true => file.set_len(metadata.len() / 2),
            false => file.write_all_at(&[0xAA; 3], self.random.below(metadata.len().max(1) as usize) as u64),
        }
    }

    fn remove_file(&mut self) -> io::Result<()> {
        let (directory, path) = self.file()?;
        say(&format!("touch {}", bare(&directory)))?;
        fs::remove_file(path)
    }

    /// Renames the directory, and renames it back after a moment.
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
