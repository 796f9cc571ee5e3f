//! The bounds of SECURITY.md: the cost of a hostile file. The allocator counts memory; time is limited by counting
//! work, or by a bound far above the normal duration.

mod common;

use common::documents::{BESIDE, COMMIT, TIMES, checkpoint_of, checkpoint_with, list, sealed, with_values};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tch_checkpoint::format::{FormatError, Index, Manifest, SavedModelInfo};
use tch_checkpoint::{
    Checkpoint, CheckpointDirectory, CheckpointReader, Counter, Error, Location, Value, list_checkpoints,
    verify_checkpoint,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Counts the allocated bytes, and their maximum at any time.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn more(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::SeqCst) + bytes;
    PEAK.fetch_max(now, Ordering::SeqCst);
}

// SAFETY: every call passes its arguments to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        more(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::SeqCst);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match size.checked_sub(layout.size()) {
            Some(grown) => more(grown),
            None => drop(NOW.fetch_sub(layout.size() - size, Ordering::SeqCst)),
        }
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests that count memory take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work`, which must need no more memory than `input` bytes allow, and at most some seconds.
fn bounded<T>(what: &str, input: usize, work: impl FnOnce() -> T) -> T {
    let before = NOW.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let started = Instant::now();
    let result = work();
    let (peak, took) = (PEAK.load(Ordering::SeqCst) - before, started.elapsed());
    assert!(peak <= TIMES * input + BESIDE, "{what}: {input} bytes took {peak} bytes of memory");
    assert!(took < Duration::from_secs(20), "{what}: {input} bytes took {took:?}");
    result
}

#[test]
fn values_take_memory_in_proportion_to_their_text() {
    let _turn = turn();
    let parts = [
        r#"{"":0}"#,
        r#"{"a":0}"#,
        "{}",
        "[]",
        "[0]",
        "[[]]",
        "0",
        "\"\"",
        "\"a\"",
        r#"{"":{"":0}}"#,
        r#"{"":[0]}"#,
        r#"{"a":0,"b":1}"#,
        "0.5",
        "null",
        r#"{"":""}"#,
    ];
    for part in parts {
        for bytes in [200_000, 2_000_000] {
            let text = with_values(&format!("\"v\":[{}]", list(part, bytes / (part.len() + 1))));
            let read = bounded(part, text.len(), || Manifest::from_bytes(&text));
            if let Err(reason) = read {
                let reason = reason.to_string();
                assert!(part.contains('{') && reason.contains("tensor"), "{part}: {reason}");
            }
            // The same applies to files that are only hints or notes.
            let info = format!(
                r#"{{"format":"tch-checkpoint-saved-model","version":1,"device":"cpu","signatures":{{}},"variables":{{}},"metadata":{{"v":[{}]}}}}"#,
                list(part, bytes / (part.len() + 1))
            );
            let _ = bounded(part, info.len(), || SavedModelInfo::from_bytes(info.as_bytes()));
        }
    }
}

/// Keys with `count` names below each of `roots` different ones.
fn deep_keys(roots: usize, count: usize) -> String {
    let tail = vec!["a"; count - 1].join("/");
    let keys: Vec<String> = (0..roots).map(|n| format!("\"{n}/{tail}\":0")).collect();
    keys.join(",")
}

/// On a thread with little stack, as a program's own may be.
fn on_a_small_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

#[test]
fn keys_nest_as_deep_as_objects_may_and_no_deeper() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let step = Counter::new(0);
    let mut tracked = Checkpoint::new().track("0", Value::new(0u8))?.track("step", &step)?;
    for (roots, names) in
        [(1, 65), (1, 66), (1, 10_000), (1, 1_000_000), (100, 65), (30_000, 65), (30_000, 2), (5, 60_000)]
    {
        let text = with_values(&format!("{},\"step\":7", deep_keys(roots, names)));
        let read = bounded("keys", text.len(), || on_a_small_stack(|| Manifest::from_bytes(&text)));
        assert_eq!(read.is_ok(), names == 2 || names == 65 && roots < 30_000, "{roots} {names}: {:?}", read.err());
        let path = checkpoint_of(dir.path(), &text);
        let restored = bounded("restore", text.len(), || on_a_small_stack(|| tracked.restore(&path).map(drop)));
        let message = restored.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            message.contains(if read.is_ok() { "\"0\" is not in the checkpoint" } else { "manifest.json" }),
            "{message}"
        );
        assert!(message.len() < 5_000, "{message}");
        let _ = bounded("list", text.len(), || list_checkpoints(dir.path()))?;
        let _ = bounded("verify", text.len(), || verify_checkpoint(&path));
    }
    Ok(())
}

#[test]
fn messages_are_short_and_hints_are_quick() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    // Names of the longest kind, almost alike.
    let long = |n: usize| format!("{n:06}{}", "x".repeat(249));
    let name = |n: usize, parts: usize| vec![long(n); parts].join("/");
    for (count, parts) in [(4_000, 1), (200, 20), (60, 65)] {
        let values: Vec<String> =
            (0..count).map(|n| format!("\"{}\":\"{}\"", name(n, parts), "y".repeat(300))).collect();
        let text = with_values(&values.join(","));
        let path = checkpoint_of(dir.path(), &text);
        let mut tracked = Checkpoint::new();
        for n in 0..20 {
            tracked = tracked.track(&"z".repeat(150 + n), Counter::new(0))?;
            tracked = tracked.track(&long(n)[..190], Counter::new(0))?;
        }
        let error = bounded("restore", text.len(), || tracked.restore(&path)).err().ok_or("it was restored")?;
        let started = Instant::now();
        let message = bounded("message", 0, || error.to_string());
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert!(message.len() < 20_000, "{} bytes", message.len());
    }
    // Of a value, and of serde's message about it, only a part is quoted.
    let huge = "y".repeat(3_000_000);
    let text = with_values(&format!("\"a\":\"{huge}\",\"b\":\"{huge}\",\"c\":{{\"{huge}\":1}}"));
    let path = checkpoint_of(dir.path(), &text);
    let a = Checkpoint::new()
        .track("a", Counter::new(0))?
        .track("b", Value::new(0u8))?
        .track("c", Value::new(Some(0u8)))?;
    let mut a = a;
    let message = a.restore(&path).err().ok_or("it was restored")?.to_string();
    assert!(
        message.len() < 10_000 && message.contains("\"a\"") && message.contains("\"c\""),
        "{} bytes",
        message.len()
    );
    // Errors of the formats quote what is wrong.
    let body = |what: &str| {
        format!(
            "{what}\"step\":null,\"save_counter\":null,\"files\":{{}},\"tensors\":{{}},\"values\":{{}},\"metrics\":{{}},{COMMIT}"
        )
    };
    for wrong in [
        sealed("tch-checkpoint", &body(&format!("\"{huge}\":1,"))),
        with_values(&format!("\"{huge}\":1")),
        with_values(&format!("\"a\":{{\"{huge}\":1,\"{huge}\":1}}")),
        sealed("tch-checkpoint", &body("").replace("\"files\":{}", &format!("\"files\":{{\"{huge}\":{{\"bytes\":9,\"header\":{{\"bytes\":9,\"xxh3_128\":\"00000000000000000000000000000000\"}}}}}}"))),
    ] {
        let message = Manifest::from_bytes(&wrong).err().ok_or("it was read")?.to_string();
        assert!(message.len() < 3_000, "{} bytes: {}", message.len(), &message[..200]);
    }
    Ok(())
}

/// What is too large for a value is refused at the save, and the error says what to do.
#[test]
fn values_that_could_not_be_read_are_refused_when_they_are_saved() -> Outcome {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Nested(Option<f64>, Vec<Nested>);
    #[derive(Clone, serde::Serialize, serde::Deserialize)]
    struct Small {
        a: u8,
    }
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let nested = |number: f64, levels: usize| {
        Value::new((0..levels).fold(Nested(Some(number), vec![]), |inner, _| Nested(None, vec![inner])))
    };
    let refused = |name: &str, checkpoint: Checkpoint| {
        let mut checkpoint = checkpoint;
        let error = checkpoint.save(dir.path().join(name)).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("track it as a tensor"), "{name}: {error}");
        assert_eq!((checkpoint.save_counter(), dir.path().join(format!("{name}-1")).exists()), (0, false));
    };
    refused("json", Checkpoint::new().track("v", nested(1.0, 200))?);
    refused("cbor", Checkpoint::new().track("v", nested(f64::NAN, 300))?);
    refused("small", Checkpoint::new().track("v", Value::new(vec![Small { a: 1 }; 1_000_000]))?);
    // The same quantity of numbers is accepted.
    let numbers = Value::new(vec![1u8; 1_000_000]);
    let path = Checkpoint::new().track("v", &numbers)?.write(dir.path().join("numbers"))?;
    numbers.set(vec![]);
    Checkpoint::new().track("v", &numbers)?.read(path)?;
    assert_eq!(numbers.get().len(), 1_000_000);
    Ok(())
}

#[test]
fn the_counter_of_saves_does_not_wrap() -> Outcome {
    let dir = tempfile::tempdir()?;
    let counted = |counter: u64| {
        let text = String::from_utf8(with_values("")).unwrap();
        let text = text.replace("\"save_counter\":null", &format!("\"save_counter\":{counter}"));
        let body: Vec<&str> = text.lines().skip(1).filter(|line| !line.starts_with("\"xxh3")).collect();
        sealed("tch-checkpoint", &body.join("\n"))
    };
    let path = checkpoint_of(dir.path(), &counted(u64::MAX));
    let step = Counter::new(0);
    let mut checkpoint = Checkpoint::new();
    checkpoint.restore(&path)?;
    let mut checkpoint = checkpoint.track("step", &step)?;
    let error = checkpoint.save(dir.path().join("next")).err().ok_or("it was saved")?.to_string();
    assert!(error.contains("counter"), "{error}");
    let mut manager = tch_checkpoint::CheckpointManager::builder(checkpoint, dir.path().join("run")).open()?;
    let error = manager.save().err().ok_or("it was saved")?.to_string();
    assert!(error.contains("counter"), "{error}");
    let names: Vec<_> = fs::read_dir(dir.path())?.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("--")), "{names:?}");
    Ok(())
}

#[test]
fn numbers_of_saves_end_far_from_where_arithmetic_does() -> Outcome {
    let with = |sequence: u64| {
        let text = String::from_utf8(with_values("")).unwrap();
        let text = text.replace("\"sequence\":1", &format!("\"sequence\":{sequence}"));
        let body: Vec<&str> = text.lines().skip(1).filter(|line| !line.starts_with("\"xxh3")).collect();
        sealed("tch-checkpoint", &body.join("\n"))
    };
    assert!(Manifest::from_bytes(&with((1 << 63) - 1)).is_ok());
    for sequence in [(1 << 63) + 1, u64::MAX - 1, u64::MAX] {
        let refused = Manifest::from_bytes(&with(sequence));
        assert!(matches!(&refused, Err(FormatError::Damaged(reason)) if reason.contains("sequence")), "{refused:?}");
        let entry = r#"{"name":"ckpt-1","sequence":SEQ,"run":"0123456789abcdef0123456789abcdef","step":null,"saved_at":"2026-11-22T10:11:12Z","bytes":0,"metrics":{},"preserved":false}"#;
        let body = format!(
            "\"latest\":null,\n\"last_preserved\":null,\n\"checkpoints\":[{}],",
            entry.replace("SEQ", &sequence.to_string())
        );
        assert!(Index::from_bytes(&sealed("tch-checkpoint-index", &body)).is_err());
        assert!(Index::from_bytes(&sealed("tch-checkpoint-index", &body.replace(&sequence.to_string(), "9"))).is_ok());
    }
    // A checkpoint with such a number does not determine the numbers of the next ones.
    let dir = tempfile::tempdir()?;
    checkpoint_of(dir.path(), &with(u64::MAX));
    let mut saved = Checkpoint::new().track("step", Counter::new(7))?;
    let path = saved.save(dir.path().join("other"))?;
    assert_eq!(tch_checkpoint::latest_checkpoint(dir.path())?, Some(path.clone()));
    assert_eq!(CheckpointReader::open(&path)?.manifest().sequence, 1);
    Ok(())
}

#[test]
fn a_directory_is_listed_in_time_in_proportion() -> Outcome {
    let _turn = turn();
    // The names of the checkpoints, of as many links, and whether a link may be the newest.
    for (checkpoint, link, may_be) in
        [("ckpt-#", "ckpt-1000#", true), ("run#-1", "run#-2", true), ("ckpt-#", "other#-1", false)]
    {
        let time = |count: usize| -> Result<f64, Box<dyn std::error::Error>> {
            let dir = tempfile::tempdir()?;
            let mut manifest = Manifest::from_bytes(&with_values(""))?;
            let mut entries = Vec::new();
            for n in 1..=count {
                let path = |name: &str| dir.path().join(name.replace('#', &n.to_string()));
                manifest.sequence = n as u64;
                fs::create_dir(path(checkpoint))?;
                fs::write(path(checkpoint).join("manifest.json"), manifest.to_bytes()?)?;
                std::os::unix::fs::symlink("nowhere", path(link))?;
                let (name, run) = (checkpoint.replace('#', &n.to_string()), &manifest.run);
                entries.push(format!(
                    r#"{{"name":"{name}","sequence":{n},"run":"{run}","step":null,"saved_at":"2026-11-22T10:11:12Z","bytes":0,"metrics":{{}},"preserved":false}}"#
                ));
            }
            let body = format!("\"latest\":null,\"last_preserved\":null,\"checkpoints\":[{}],", entries.join(","));
            fs::write(dir.path().join("checkpoint.json"), sealed("tch-checkpoint-index", &body))?;
            let start = thread_time();
            let listing = list_checkpoints(dir.path())?;
            let newest = CheckpointDirectory::new(dir.path()).latest();
            let time = thread_time() - start;
            assert_eq!((listing.checkpoints.len(), listing.links.len()), (count, count));
            assert_eq!(matches!(newest, Err(Error::Link { .. })), may_be, "{newest:?}");
            Ok(time)
        };
        let (few, many) = (time(100)?, time(1_000)?);
        assert!(many < few * 40.0, "100 {link} in {few:.3} s, 1,000 in {many:.3} s");
    }
    Ok(())
}

/// The time of the processor that this thread has used, in seconds: how busy the machine is does not matter.
fn thread_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The number of bytes that this process has read from files.
fn bytes_read() -> u64 {
    let counts = fs::read_to_string("/proc/self/io").unwrap();
    counts.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// Writes a checkpoint of one tensor of 4 MiB under 3,001 keys.
fn checkpoint_of_many_keys(dir: &Path) -> Result<Location, Box<dyn std::error::Error>> {
    checkpoint_with(dir, |manifest| {
        let record = manifest.tensors["model"].clone();
        manifest.tensors.extend((0..3000).map(|n| (format!("tied/{n}"), record.clone())));
    })
}

#[test]
fn bytes_under_many_keys_are_read_once() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let path = checkpoint_of_many_keys(dir.path())?;
    let before = bytes_read();
    let found = verify_checkpoint(&path);
    assert!(found.is_intact(), "{found:?}");
    let read = bytes_read() - before;
    assert!(read < 2 * (4 << 20) + (4 << 20), "{read} bytes were read");
    Ok(())
}

/// Runs `work`, which must read no more than `most` bytes from files.
#[cfg(feature = "tensorflow")]
fn reads<T>(what: &str, most: u64, work: impl FnOnce() -> tch_checkpoint::Result<T>) -> tch_checkpoint::Result<T> {
    let before = bytes_read();
    let result = work()?;
    let read = bytes_read() - before;
    assert!(read <= most, "{what}: {read} bytes were read, {most} are allowed");
    Ok(result)
}

#[cfg(feature = "tensorflow")]
#[test]
fn bytes_under_many_keys_are_sealed_salvaged_and_converted_once() -> Outcome {
    use tch_checkpoint::TensorSource as _;
    use tch_checkpoint::interop::{self, pytorch, tensorflow};
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let path = checkpoint_of_many_keys(dir.path())?;
    let most = 24 << 20;
    let ours = interop::open(&path)?;
    reads("a checkpoint", most, || ours.verify())?;
    reads("merged", most, || tch_checkpoint::map::Merged::new([&*ours])?.verify())?;
    reads("salvaged", most, || tch_checkpoint::inspect::salvage(&path, dir.path().join("salvaged")))?;
    let export = dir.path().join("export-1");
    reads("TensorFlow", most, || tensorflow::write(&*ours, &export, &tensorflow::WriteOptions::default()))?;
    let file = dir.path().join("x.pt");
    reads("PyTorch", most, || pytorch::write(&*ours, &file, &pytorch::WriteOptions::default()))?;
    reads("sealed", most, || interop::seal(&file))?;
    reads("a sealed file", most, || interop::open(&file)?.verify())?;
    Ok(())
}

/// The names of both files pair each tensor of one with each tensor of the other.
#[cfg(all(feature = "pytorch", feature = "tensorflow"))]
#[test]
fn a_comparison_reads_no_more_for_many_names() -> Outcome {
    use common::Memory;
    use tch_checkpoint::inspect::{DiffOptions, Target, diff, diff_with};
    use tch_checkpoint::interop::{self, pytorch};
    const COUNT: usize = 40;
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let written = |name: &str, named: &dyn Fn(usize, usize) -> usize| -> Result<_, Box<dyn std::error::Error>> {
        let mut ours = Checkpoint::new();
        for n in 0..COUNT {
            ours.track_mut(&format!("t{n}"), Memory::seeded(1 << 14, n as u64))?;
        }
        let path = ours.write(dir.path().join(name))?;
        let manifest_file = path.join("manifest.json");
        let mut manifest = Manifest::from_bytes(&fs::read(&manifest_file)?).map_err(|e| e.to_string())?;
        for (i, j) in (0..COUNT).flat_map(|i| (0..COUNT).map(move |j| (i, j))) {
            let record = manifest.tensors[&format!("t{}", named(i, j))].clone();
            manifest.tensors.insert(format!("names/{i}_{j}"), record);
        }
        fs::write(&manifest_file, manifest.to_bytes()?)?;
        let file = dir.path().join(format!("{name}.pt"));
        pytorch::write(&*interop::open(&path)?, &file, &pytorch::WriteOptions::default())?;
        Ok((path, file))
    };
    let ((_, a), (own, b)) = (written("a", &|i, _| i)?, written("b", &|_, j| j)?);
    let bytes = fs::metadata(&a)?.len() + fs::metadata(&b)?.len();
    // With and without digests of the second.
    for b in [b.as_path(), &own] {
        let (a, b) = (Target::open(&a)?, Target::open(b)?);
        let found = reads("diff", 6 * bytes, || diff(&a, &b))?;
        assert_eq!((found.equal_tensors, found.differences.len()), (2 * COUNT, COUNT * COUNT - COUNT));
        let measured = found.differences.iter().filter(|entry| entry.elements.is_some()).count();
        assert!((COUNT..COUNT * COUNT / 2).contains(&measured), "{measured}");
        let close = DiffOptions::new().tolerance(1e-6);
        let error = reads("tolerance", 6 * bytes, || Ok(diff_with(&a, a.source(), &b, &close).map(drop)))?;
        let error = error.err().ok_or("it was compared")?;
        assert!(matches!(error, tch_checkpoint::Error::Unsupported { .. }), "{error}");
    }
    Ok(())
}

/// A zip archive of records that are deflated (as one block that is stored) and have no checksum.
#[cfg(feature = "pytorch")]
fn deflated(records: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let (mut bytes, mut directory, mut count) = (Vec::new(), Vec::new(), 0u16);
    for (name, record) in records {
        let length = record.len() as u16;
        let packed = [&[1], length.to_le_bytes().as_slice(), &(!length).to_le_bytes(), &record].concat();
        let fields = [
            &[20, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            (packed.len() as u32).to_le_bytes().as_slice(),
            &(record.len() as u32).to_le_bytes(),
            &(name.len() as u16).to_le_bytes(),
            &[0, 0],
        ]
        .concat();
        let offset = bytes.len() as u32;
        directory.extend(
            [b"PK\x01\x02\x14\0", fields.as_slice(), &[0; 10], &offset.to_le_bytes(), name.as_bytes()].concat(),
        );
        bytes.extend([b"PK\x03\x04", fields.as_slice(), name.as_bytes(), &packed].concat());
        count += 1;
    }
    let (start, length, count) = (bytes.len() as u32, directory.len() as u32, count.to_le_bytes());
    bytes.append(&mut directory);
    let end = [count.as_slice(), &count, &length.to_le_bytes(), &start.to_le_bytes(), &[0, 0]].concat();
    bytes.extend([b"PK\x05\x06\0\0\0\0", end.as_slice()].concat());
    bytes
}

#[cfg(feature = "pytorch")]
#[test]
fn deflated_records_keep_no_memory() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("arrays.npz");
    let array = |n: u8| {
        let header = format!("{:<117}\n", "{'descr': '|u1', 'fortran_order': False, 'shape': (9,), }");
        [b"\x93NUMPY\x01\0\x76\0", header.as_bytes(), &[n; 9]].concat()
    };
    let bytes = deflated((0..5_000).map(|n| (format!("{n}.npy"), array(n as u8))));
    fs::write(&path, &bytes)?;
    let mut element = [0];
    let source = bounded("npz", bytes.len(), || -> tch_checkpoint::Result<_> {
        let source = tch_checkpoint::interop::open(&path)?;
        // A part of each, so that its reader is not at the end.
        (0..5_000).try_for_each(|n| source.read_range(&n.to_string(), 0..1, &mut element))?;
        Ok(source)
    })?;
    assert_eq!(source.tensors().len(), 5_000);
    for n in [4_999, 7, 4_998] {
        let mut elements = [0; 9];
        source.read_range(&n.to_string(), 0..9, &mut elements)?;
        assert_eq!(elements, [n as u8; 9]);
    }
    Ok(())
}

#[cfg(feature = "pytorch")]
#[test]
fn entries_of_tar_files_are_read_once() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("old.pt");
    let member = |name: &str, content: &[u8]| {
        let mut header = [0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..262].copy_from_slice(b"ustar");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
        [header.as_slice(), content, &padding].concat()
    };
    let tensor = [b"\x80\x02(K\0NK\0t.".as_slice(), &[0; 16]].concat();
    let tensors = [b"\x80\x02M\x20\x4e.".as_slice(), &tensor.repeat(20_000)].concat();
    let storage = [b"\x80\x02(K\0K\0ctorch\nByteStorage\nt.".as_slice(), &7u64.to_le_bytes(), &[0; 7]].concat();
    let storages = [b"\x80\x02K\x01.".as_slice(), &storage, b"\x80\x02]."].concat();
    let members = [("tensors", tensors.as_slice()), ("storages", &storages), ("pickle", b"\x80\x02}.")];
    let mut bytes = members.map(|(name, content)| member(name, content)).concat();
    bytes.resize(bytes.len() + 1024, 0);
    fs::write(&path, &bytes)?;
    let before = bytes_read();
    bounded("tar", bytes.len(), || tch_checkpoint::interop::open(&path).map(drop))?;
    let read = bytes_read() - before;
    assert!(read < 4 * bytes.len() as u64, "{read} bytes were read");
    Ok(())
}

/// Bytes that are in two pieces of a tensor, or in tensors that differ elsewhere, would be read for the digest of each.
#[test]
fn pieces_are_shared_by_whole_tensors_only() -> Outcome {
    let dir = tempfile::tempdir()?;
    let piece = |manifest: &Manifest, start: u64, rows: u64| {
        let mut piece = manifest.tensors["model"].pieces[0].clone();
        piece.slice = Some(vec![[start, rows]]);
        piece
    };
    let twice = checkpoint_with(dir.path(), |manifest| {
        let both = [0, 1].map(|n| piece(manifest, n << 20, 1 << 20)).to_vec();
        let mut record = manifest.tensors["model"].clone();
        (record.spec.shape, record.pieces) = (vec![2 << 20], both);
        manifest.tensors.insert("twice".into(), record);
    });
    assert!(twice.is_err(), "{twice:?}");
    Ok(())
}

/// Entries with keys of their own: `count` of `entry`, in which `#` stands for a number.
fn entries(entry: &str, count: usize) -> String {
    let entries: Vec<String> = (0..count).map(|n| entry.replace('#', &format!("{n:x}"))).collect();
    entries.join(",")
}

#[test]
fn every_reader_takes_memory_in_proportion() {
    let _turn = turn();
    let run = "0123456789abcdef0123456789abcdef";
    let manifest = |files: &str, tensors: &str, metrics: &str| {
        let body = format!(
            "\"step\":null,\"save_counter\":null,\"files\":{{{files}}},\"tensors\":{{{tensors}}},\"values\":{{}},\"metrics\":{{{metrics}}},{COMMIT}"
        );
        sealed("tch-checkpoint", &body)
    };
    let digest = "\"xxh3_128\":\"00000000000000000000000000000000\"";
    let ones = list("1", 60);
    let tensor = |pieces: &str| format!("\"#\":{{\"dtype\":\"U8\",\"shape\":[{ones}],{digest},\"pieces\":[{pieces}]}}");
    let piece = "{\"file\":\"a\",\"name\":\"\",\"begin\":0,\"end\":0}";
    let sliced = format!("{{\"file\":\"a\",\"name\":\"\",\"begin\":0,\"end\":0,\"slice\":[{}]}}", list("[0,0]", 500));
    for text in [
        manifest("", "", &entries("\"#\":0", 150_000)),
        manifest("", "", &list("\"\":0", 200_000)),
        manifest(
            &entries(&format!("\"#.safetensors\":{{\"bytes\":10,\"header\":{{\"bytes\":10,{digest}}}}}"), 20_000),
            "",
            "",
        ),
        manifest("", &entries(&tensor(""), 10_000), ""),
        manifest("", &entries(&tensor(piece), 10_000), ""),
        manifest("", &tensor(&list(piece, 50_000)), ""),
        manifest("", &tensor(&list(&sliced, 500)), ""),
    ] {
        let _ = bounded("manifest", text.len(), || Manifest::from_bytes(&text));
    }
    let entry = format!(
        "{{\"name\":\"#\",\"sequence\":1,\"run\":\"{run}\",\"step\":null,\"saved_at\":\"2026-11-22T10:11:12Z\",\"bytes\":0,\"metrics\":{{\"\":0}},\"preserved\":false}}"
    );
    let index = sealed(
        "tch-checkpoint-index",
        &format!("\"latest\":null,\"last_preserved\":null,\"checkpoints\":[{}],", entries(&entry, 20_000)),
    );
    assert!(bounded("index", index.len(), || Index::from_bytes(&index)).is_ok());
    let shape = format!("\"#\":{{\"dtype\":\"U8\",\"shape\":[{ones}],\"data_offsets\":[0,0]}}");
    for json in [
        format!("{{\"__metadata__\":{{{}}}}}", entries("\"#\":\"\"", 150_000)),
        format!("{{{}}}", entries(&shape, 10_000)),
        format!("{{{}}}", list("\"\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}", 20_000)),
        format!("{{\"a\":{}", "[".repeat(1_000_000)),
        format!("{{\"a\":{}", "{\"a\":".repeat(300_000)),
    ] {
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());
        let _ = bounded("header", header.len(), || {
            on_a_small_stack(|| tch_checkpoint::format::safetensors::parse_header(&header, header.len() as u64))
        });
    }
    // Nesting in any place.
    for open in ["[", "{\"a\":"] {
        let deep = open.repeat(300_000);
        let texts = [
            with_values(&format!("\"v\":{deep}")),
            sealed("tch-checkpoint", &deep),
            sealed("tch-checkpoint", &format!("\"extra\":{deep}")),
            sealed("tch-checkpoint-index", &format!("\"latest\":{deep}")),
        ];
        for text in texts {
            let refused = |text: &[u8]| (Manifest::from_bytes(text).is_err(), Index::from_bytes(text).is_err());
            assert_eq!(bounded("deep", text.len(), || on_a_small_stack(|| refused(&text))), (true, true));
        }
        let info = format!(r#"{{"format":"tch-checkpoint-saved-model","version":1,"metadata":{deep}"#);
        assert!(on_a_small_stack(|| SavedModelInfo::from_bytes(info.as_bytes())).is_err());
    }
}

/// Texts in CBOR form that promise more than they have, or nest.
#[test]
fn hostile_cbor_costs_in_proportion() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let huge = "7fffffffffffffff";
    let texts = [
        "81".repeat(2_000_000),
        "a1".repeat(1_000_000),
        "c0".repeat(1_000_000),
        "9f".repeat(1_000_000),
        format!("9b{huge}{}", "00".repeat(100)),
        format!("bb{huge}{}", "00".repeat(100)),
        format!("5b{huge}{}", "00".repeat(100)),
        format!("7b{huge}{}", "61".repeat(100)),
        format!("9b{huge}{}", "80".repeat(1_000_000)),
        format!("9f{}ff", "a0".repeat(1_000_000)),
        "0".repeat(3_000_001),
    ];
    for text in texts {
        let manifest = with_values(&format!("\"v\":{{\"$cbor\":\"{text}\"}}"));
        let path = checkpoint_of(dir.path(), &manifest);
        let tracked: [Checkpoint; 5] = [
            Checkpoint::new().track("v", Value::new(vec![0u8]))?,
            Checkpoint::new().track("v", Value::new(String::new()))?,
            Checkpoint::new().track("v", Value::new(std::collections::BTreeMap::<u64, u64>::new()))?,
            Checkpoint::new().track("v", Value::new(serde_json::Value::Null))?,
            Checkpoint::new().track("v", Value::new(Vec::<Vec<u8>>::new()))?,
        ];
        for mut checkpoint in tracked {
            let restored = bounded("cbor", manifest.len(), || checkpoint.read(&path).map(drop));
            let message = restored.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(message.len() < 3_000, "{message}");
        }
    }
    Ok(())
}

#[cfg(feature = "huggingface")]
#[test]
fn seals_take_memory_in_proportion_to_their_length() -> Outcome {
    let _turn = turn();
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.safetensors");
    let header = br#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.push(7);
    fs::write(&path, bytes)?;
    let seal = tch_checkpoint::interop::seal(&path)?;
    let sound = fs::read_to_string(&seal)?;
    let (digest, count) = ("0".repeat(32), 200_000);
    let entries: Vec<String> =
        (0..count / 50).map(|n| format!(r#""{n}":{{"dtype":"U8","shape":[],"digest":"{digest}"}}"#)).collect();
    let nested = "[".repeat(count);
    for (what, text) in [
        ("a shape", sound.replace("[1]", &format!("[{}]", list("1", count)))),
        ("entries", sound.replace(r#""w":"#, &format!("{},\"w\":", entries.join(",")))),
        ("one key", sound.replace(r#""w":"#, &format!("\"{}\":", "w".repeat(count)))),
        ("a format", sound.replace("safetensors", &"s".repeat(count))),
        ("nesting", sound.replace("[1]", &nested)),
        ("numbers", format!("[{}]", list("0", count))),
    ] {
        assert_ne!(text, sound, "{what}");
        fs::write(&seal, &text)?;
        let opened = bounded(what, text.len(), || tch_checkpoint::interop::open(&path).map(drop));
        let error = opened.err().map(|error| error.to_string());
        assert!(what == "a format" || error.is_some_and(|error| error.len() < 4_000), "{what}");
    }
    Ok(())
}
