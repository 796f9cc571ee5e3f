//! The bounds of SECURITY.md: what a hostile file can cost. Memory is counted by the allocator; time is limited by work
//! that is counted, or by a bound far above what the right answer takes.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tch_checkpoint::format::{Digest, FormatError, Index, Manifest, SavedModelInfo};
use tch_checkpoint::{Checkpoint, CheckpointReader, Counter, Value, list_checkpoints, verify_checkpoint};

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Counts what is allocated, and the most of it at a time.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn more(bytes: usize) {
    let now = NOW.fetch_add(bytes, Ordering::SeqCst) + bytes;
    PEAK.fetch_max(now, Ordering::SeqCst);
}

// SAFETY: every call is the system allocator's, with the arguments as they came.
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

/// What SECURITY.md promises: this many bytes of memory for each byte of input, and so many beside.
const TIMES: usize = 64;
const BESIDE: usize = 32 << 20;

/// Tests that count memory take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work`, which must need no more memory than `input` bytes allow, and no more than some seconds.
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

/// The bytes between a right first and a right last line.
fn sealed(format: &str, body: &str) -> Vec<u8> {
    let mut text = format!("{{\"format\":\"{format}\",\"version\":1,\n{body}\n");
    let digest = Digest::of(text.as_bytes());
    let _ = writeln!(text, "\"xxh3_128\":\"{digest}\"}}");
    text.into_bytes()
}

const COMMIT: &str =
    r#""commit":{"sequence":1,"run":"0123456789abcdef0123456789abcdef","saved_at":"2026-11-22T10:11:12Z"},"#;

/// A manifest without tensors, with these values.
fn with_values(values: &str) -> Vec<u8> {
    let body = format!(
        "\"step\":null,\"save_counter\":null,\"files\":{{}},\"tensors\":{{}},\"values\":{{{values}}},\"metrics\":{{}},{COMMIT}"
    );
    sealed("tch-checkpoint", &body)
}

/// A checkpoint of this manifest alone.
fn checkpoint_of(dir: &Path, manifest: &[u8]) -> PathBuf {
    let path = dir.join("ckpt-1");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("manifest.json"), manifest).unwrap();
    path
}

/// `count` times `part`, with commas between.
fn list(part: &str, count: usize) -> String {
    vec![part; count].join(",")
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
        for bytes in [300_000, 3_000_000] {
            let text = with_values(&format!("\"v\":[{}]", list(part, bytes / (part.len() + 1))));
            let read = bounded(part, text.len(), || Manifest::from_bytes(&text));
            if let Err(reason) = read {
                let reason = reason.to_string();
                assert!(part.contains('{') && reason.contains("tensor"), "{part}: {reason}");
            }
            // What is a hint or a note elsewhere is held to the same.
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
    let mut tracked = Checkpoint::new().track("0", &Value::new(0u8))?.track("step", &step)?;
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
        bounded("list", text.len(), || list_checkpoints(dir.path()))?;
        bounded("verify", text.len(), || verify_checkpoint(&path));
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
            tracked = tracked.track(&"z".repeat(150 + n), &Counter::new(0))?;
            tracked = tracked.track(&long(n)[..190], &Counter::new(0))?;
        }
        let error = bounded("restore", text.len(), || tracked.restore(&path)).err().ok_or("it was restored")?;
        let started = Instant::now();
        let message = bounded("message", 0, || error.to_string());
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert!(message.len() < 20_000, "{} bytes", message.len());
    }
    // What a value is, and what serde says of it, is quoted in part.
    let huge = "y".repeat(3_000_000);
    let text = with_values(&format!("\"a\":\"{huge}\",\"b\":\"{huge}\",\"c\":{{\"{huge}\":1}}"));
    let path = checkpoint_of(dir.path(), &text);
    let a = Checkpoint::new()
        .track("a", &Counter::new(0))?
        .track("b", &Value::new(0u8))?
        .track("c", &Value::new(Some(0u8)))?;
    let mut a = a;
    let message = a.restore(&path).err().ok_or("it was restored")?.to_string();
    assert!(
        message.len() < 10_000 && message.contains("\"a\"") && message.contains("\"c\""),
        "{} bytes",
        message.len()
    );
    // Errors of the formats quote what is not right.
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
    // A checkpoint of such a number is not what the next ones stand behind.
    let dir = tempfile::tempdir()?;
    checkpoint_of(dir.path(), &with(u64::MAX));
    let mut saved = Checkpoint::new().track("step", &Counter::new(7))?;
    let path = saved.save(dir.path().join("other"))?;
    assert_eq!(tch_checkpoint::latest_checkpoint(dir.path())?, Some(path.clone()));
    assert_eq!(CheckpointReader::open(&path)?.manifest().sequence, 1);
    Ok(())
}
