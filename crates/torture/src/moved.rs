//! On the simulated disk: directories that are renamed and replaced, file systems that cannot do what is asked.

use super::check::ROOT;
use super::crash::empty_disk;
use super::faults::{Fault, FaultDisk, Only, Plan};
use super::run::{Run, Setup, restore};
use super::sim::SimDisk;
use rustix::io::Errno;
use std::path::Path;
use std::sync::Arc;
use tch_checkpoint::CheckpointDirectory;
use tch_checkpoint::CheckpointManager;
use tch_checkpoint::Durability;
use tch_checkpoint::Error;
use tch_checkpoint::SaveOptions;
use tch_checkpoint::internal::Disk;

fn numbered(disk: &SimDisk, root: &str) -> Vec<String> {
    let mut names = disk.names(Path::new(root));
    names.retain(|name| name.starts_with("ckpt-"));
    names.sort();
    names
}

#[test]
fn a_manager_notices_that_its_directory_was_renamed_or_replaced() {
    let setup = Setup::default();
    let disk = SimDisk::new(empty_disk(&setup), 0);
    let run = Run::new(&setup);
    let mut manager = run.open(Arc::new(disk.clone()), Path::new(ROOT)).unwrap();
    let save = |manager: &mut CheckpointManager, step| {
        run.set(step);
        manager.save_at(step)
    };
    for step in 1..=2 {
        save(&mut manager, step).unwrap();
    }
    disk.rename(ROOT, "/data/elsewhere");
    assert!(matches!(save(&mut manager, 3), Err(Error::Moved { .. })));
    // Another run starts there.
    let other = Run::new(&setup);
    let mut second = other.open(Arc::new(disk.clone()), Path::new(ROOT)).unwrap();
    other.set(1);
    second.save_at(1).unwrap();
    assert!(matches!(save(&mut manager, 3), Err(Error::Moved { .. })));
    drop(second);
    assert_eq!(numbered(&disk, ROOT), ["ckpt-1"]);
    assert_eq!(numbered(&disk, "/data/elsewhere"), ["ckpt-1", "ckpt-2"]);
    disk.rename(ROOT, "/data/second");
    disk.rename("/data/elsewhere", ROOT);
    save(&mut manager, 3).unwrap();
    save(&mut manager, 4).unwrap();
    assert_eq!(numbered(&disk, ROOT), ["ckpt-3", "ckpt-4"]);
    assert_eq!(numbered(&disk, "/data/second"), ["ckpt-1"]);
    drop(manager);
    assert!(disk.outrages().is_empty(), "{:?}", disk.outrages());
    assert_eq!(disk.holders(), 1);
}

#[test]
fn a_checkpoint_that_became_a_link_is_neither_removed_nor_followed() {
    let setup = Setup::default();
    let disk = SimDisk::new(empty_disk(&setup), 0);
    let run = Run::new(&setup);
    let mut manager = run.open(Arc::new(disk.clone()), Path::new(ROOT)).unwrap();
    for step in 1..=4 {
        run.set(step);
        manager.save_at(step).unwrap();
        if step == 2 {
            disk.rename(&format!("{ROOT}/ckpt-1"), "/data/archived");
            disk.link(ROOT, "ckpt-1", "/data/archived");
        }
    }
    drop(manager);
    assert_eq!(disk.names(Path::new("/data/archived")).len(), 3);
    let run = Run::new(&setup);
    let mut manager = run.open(Arc::new(disk.clone()), Path::new(ROOT)).unwrap();
    restore(&mut manager).unwrap();
    assert!(run.is_at(4));
    run.checkpoint(Arc::new(disk.clone())).unwrap().restore(format!("{ROOT}/ckpt-1")).unwrap();
    assert!(run.is_at(1));
}

/// What opening and saving says where these operations fail with this number, and what it says with the remedy.
fn with(only: Only, errno: Errno, remedy: fn(SaveOptions) -> SaveOptions) -> (String, Result<(), String>) {
    let save = |remedy: fn(SaveOptions) -> SaveOptions| {
        let setup = Setup::default();
        let disk = SimDisk::new(empty_disk(&setup), 0);
        let plan = Plan::of(only, Fault::Errno(errno.raw_os_error()), &[0], true);
        let shared: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(disk), plan));
        let run = Run::new(&setup);
        let mut checkpoint = run.checkpoint(shared).unwrap();
        checkpoint.save_with(format!("{ROOT}/ckpt"), &remedy(run.options())).map(drop).map_err(|e| e.to_string())
    };
    (save(|options| options).err().unwrap_or_default(), save(remedy))
}

#[test]
fn each_lack_of_the_file_system_has_a_remedy_that_is_named_and_works() {
    for errno in [Errno::NOSYS, Errno::NOLCK, Errno::NOTSUP, Errno::INVAL] {
        let (error, remedied) = with(Only::Locks, errno, SaveOptions::without_lock);
        assert!(error.contains("without_lock"), "{error}");
        remedied.unwrap();
    }
    for errno in [Errno::NOTSUP, Errno::INVAL] {
        let (error, remedied) = with(Only::Syncs, errno, |options| options.durability(Durability::ProcessCrash));
        assert!(error.contains("Durability::ProcessCrash"), "{error}");
        remedied.unwrap();
    }
}

#[test]
fn pins_and_removals_need_no_sync_where_there_is_none() {
    for errno in [Errno::NOTSUP, Errno::INVAL, Errno::IO] {
        let setup = Setup::default();
        let disk = SimDisk::new(empty_disk(&setup), 0);
        let run = Run::new(&setup);
        let mut manager = run.open(Arc::new(disk.clone()), Path::new(ROOT)).unwrap();
        for step in 1..=3 {
            run.set(step);
            manager.save_at(step).unwrap();
        }
        drop(manager);
        let plan = Plan::of(Only::Syncs, Fault::Errno(errno.raw_os_error()), &[0], true);
        let shared: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(disk.clone()), plan));
        let storage = Arc::new(tch_checkpoint::repository::Posix::new(shared));
        let beside = CheckpointDirectory::in_storage(storage, ROOT);
        let newest = beside.latest().unwrap().unwrap();
        let all = beside.pin(&newest, "keep", "").and_then(|()| beside.add_metrics(&newest, [("loss", 0.5)]));
        let all = all.and_then(|()| beside.unpin(&newest, "keep")).and_then(|_| beside.delete(&newest));
        match errno {
            // That is no lack, but an error.
            Errno::IO => assert!(matches!(all, Err(Error::Io { .. })), "{all:?}"),
            _ => {
                all.unwrap();
                assert!(!numbered(&disk, ROOT).contains(&newest.name));
            }
        }
    }
}

#[test]
fn without_a_sync_of_the_parent_nothing_is_refused() {
    let setup = Setup::default();
    let disk = SimDisk::new(empty_disk(&setup), 0);
    // The first sync is that of the parent: a squashfs, say.
    let plan = Plan::of(Only::Syncs, Fault::Errno(Errno::INVAL.raw_os_error()), &[0], false);
    let shared: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(disk), plan));
    let run = Run::new(&setup);
    run.checkpoint(shared).unwrap().save_with(format!("{ROOT}/ckpt"), &run.options()).unwrap();
}

#[test]
fn what_a_distant_file_system_could_not_take_is_an_error_without_durability_too() {
    for remote in [false, true] {
        let setup = Setup { durability: Durability::ProcessCrash, ..Setup::default() };
        let disk = SimDisk::new(empty_disk(&setup), 0);
        if remote {
            disk.be_remote();
        }
        let plan = Plan::of(Only::Syncs, Fault::Errno(Errno::NOSPC.raw_os_error()), &[0], true);
        let shared: Arc<dyn Disk> = Arc::new(FaultDisk::new(Arc::new(disk), plan));
        let run = Run::new(&setup);
        let saved = run.checkpoint(shared).unwrap().save_with(format!("{ROOT}/ckpt"), &run.options());
        assert_eq!(matches!(saved, Err(Error::NoSpace { .. })), remote, "{saved:?}");
    }
}
