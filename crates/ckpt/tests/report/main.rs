//! `ckpt report`: the page is valid, self-contained and small, shows what is there, and works in a browser.

#[path = "../../../../tests/common/mod.rs"]
mod common;
#[path = "../tool/mod.rs"]
mod tool;

mod chromium;
mod dom;
mod runs;

use chromium::Chromium;
use dom::Dom;
use serde_json::Value as Json;
use std::fs;
use std::path::{Path, PathBuf};
use tool::ckpt;

/// The largest page.
const MAX_BYTES: u64 = 5_000_000;

/// Writes the page of these runs, and returns its path and text.
fn page(dir: &Path, args: &[&str]) -> (PathBuf, String) {
    let (code, out, err) = ckpt(&[&["report", "-o", "page.html"], args].concat(), dir);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.starts_with("page.html: "), "{out}");
    let path = dir.join("page.html");
    let text = fs::read_to_string(&path).unwrap();
    (path, text)
}

#[test]
fn a_page_has_everything_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    runs::eventful(&dir.path().join("run"));
    let (_, text) = page(dir.path(), &["run", "--latest", "3"]);
    let dom = Dom::valid(&text);
    dom.check();
    // All but the random name of the run.
    let outline: Vec<String> =
        dom.outline().lines().map(|line| line.replace(&runs::run_of(dir.path()), "RUN")).collect();
    let golden: Vec<&str> = include_str!("outline.txt").lines().collect();
    assert_eq!(outline, golden, "the structure of the page changed: is that right?");
    let attention = dom.by_id("attention").unwrap();
    assert_eq!(attention.text(), "Needs attention");
    let items = dom.named("li").into_iter().filter(|item| item.is_inside("section")).map(|item| item.text());
    let items: Vec<String> = items.take(6).collect();
    for expected in [
        "Damaged (1): ckpt-40",
        "Damaged, found when the tensors were read (1): ckpt-20",
        "Unhealthy: NaN or infinite values (1): ckpt-60",
        "Tensors with NaN or infinite values (1): decoder/broken",
        "Exploding tensors (1): decoder/exploding",
        "Vanishing tensors (1): decoder/vanishing",
    ] {
        assert!(items.iter().any(|item| item == expected), "{expected:?} is not in {items:?}");
    }
    // What the saves cost: one bar and one row each.
    let of_saves =
        dom.named("table").into_iter().find(|table| table.attribute("class").as_deref() == Some("saves")).unwrap();
    assert_eq!(of_saves.text().matches("ckpt-").count(), 6, "{}", of_saves.text());
    assert_eq!(text.matches(": stalled the training for ").count(), 6);
    // What keeps each one, pins, notes, what is gone.
    for expected in ["pinned: paper", "table 2", "remark: looked at", "it is among the newest 3", "no policy keeps it"]
    {
        assert!(text.contains(expected), "{expected:?} is missing");
    }
    assert!(text.contains("git commit") && text.contains("0123456789abcdef"), "the provenance is missing");
}

#[test]
fn two_runs_are_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    runs::eventful(&dir.path().join("one"));
    runs::steady(&dir.path().join("two"), 5, 3);
    let (_, text) = page(dir.path(), &["one", "two"]);
    let dom = Dom::valid(&text);
    dom.check();
    let headings: Vec<String> = dom.named("h3").iter().map(dom::Element::text).collect();
    assert!(headings.contains(&"Whole checkpoints of run A".to_string()), "{headings:?}");
    assert!(headings.contains(&"Whole checkpoints of run B".to_string()), "{headings:?}");
    // Both have a loss and times, each in one chart; one has an accuracy.
    let lines = dom.named("path").into_iter().filter(|path| {
        let class = path.attribute("class").unwrap_or_default();
        class.starts_with("line")
    });
    assert_eq!(lines.count(), 5);
}

#[test]
fn save_times_of_any_length_have_a_page() {
    use std::time::Duration;
    use tch_checkpoint::SaveFigures;
    use tch_checkpoint::format::Manifest;
    let dir = tempfile::tempdir().unwrap();
    runs::steady(&dir.path().join("run"), 4, 2);
    let mut most = SaveFigures::default();
    (most.bytes_written, most.bytes_linked) = (u64::MAX, u64::MAX);
    let mut none = SaveFigures::default();
    let longest = Duration::from_nanos(u64::MAX);
    (most.stall, most.total, none.waited) = (longest, longest, longest);
    for (step, figures) in [(10, None), (20, Some(most)), (30, Some(none))] {
        let file = dir.path().join(format!("run/ckpt-{step}/manifest.json"));
        let mut manifest = Manifest::from_bytes(&fs::read(&file).unwrap()).unwrap();
        manifest.figures = figures;
        fs::write(&file, manifest.to_bytes().unwrap()).unwrap();
    }
    let (_, text) = page(dir.path(), &["run"]);
    Dom::valid(&text).check();
    assert!(text.contains("1 checkpoint does not record what the save cost"), "the oldest one");
    assert!(text.contains("5120000 h") && text.contains("16.0 EiB"));
    assert!(!text.contains("height=\"-"), "a bar has a height");
}

#[test]
fn names_from_files_never_become_markup() {
    let dir = tempfile::tempdir().unwrap();
    runs::hostile(&dir.path().join("run"));
    let (_, text) = page(dir.path(), &["run"]);
    let dom = Dom::valid(&text);
    dom.check();
    assert_eq!(dom.named("script").len(), 2);
    assert!(dom.named("img").is_empty() && dom.named("b").is_empty());
    assert!(text.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(!text.contains('\u{202e}') && !text.contains('\u{1b}'));
    assert!(text.len() < 200_000, "{} bytes: long names are shortened", text.len());
    let Some(mut browser) = browser() else { return };
    browser.load(&dir.path().join("page.html"));
    assert_eq!(browser.complaints(), [] as [&str; 0]);
    assert_eq!(browser.eval("typeof hacked"), "undefined");
}

#[test]
fn an_empty_directory_and_one_without_tensors_have_a_page() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    Dom::valid(&page(dir.path(), &["empty"]).1).check();
    runs::steady(&dir.path().join("run"), 3, 2);
    let (_, text) = page(dir.path(), &["run", "--samples", "0"]);
    Dom::valid(&text).check();
    assert!(text.contains("No tensor was read."));
    let (code, _, err) = ckpt(&["report", "nowhere"], dir.path());
    assert_eq!(code, Some(2), "{err}");
    assert!(!dir.path().join("report.html").exists());
    let (code, _, err) = ckpt(&["report", "run", "-o", "nowhere/page.html"], dir.path());
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("nowhere/page.html"), "{err}");
}

#[test]
fn json_has_what_the_page_shows() {
    let dir = tempfile::tempdir().unwrap();
    runs::steady(&dir.path().join("run"), 4, 2);
    let (code, out, _) = ckpt(&["report", "--json", "run"], dir.path());
    assert_eq!(code, Some(0));
    let document: Json = serde_json::from_str(&out).unwrap();
    let run = &document[0];
    assert_eq!((&run["directory"], &run["latest"]), (&"run".into(), &"ckpt-40".into()));
    assert_eq!(run["checkpoints"].as_array().unwrap().len(), 4);
    assert_eq!(run["tensors"][0]["points"].as_array().unwrap().len(), 4);
    let figures = &run["checkpoints"][0]["figures"];
    assert!(figures["stall_ns"].as_u64() > Some(0) && figures["bytes_written"].as_u64() > Some(0), "{figures}");
    assert_eq!((&figures["stall_ns"], &figures["waited_ns"]), (&figures["total_ns"], &0.into()));
    assert_eq!(run["tensors"][0]["trend"], "steady");
    assert!(!dir.path().join("report.html").exists(), "the document replaces the page");
}

/// In full with `REPORT_FULL=1 cargo test-core --test report`.
#[test]
fn two_hundred_checkpoints_of_a_thousand_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let is_full = std::env::var_os("REPORT_FULL").is_some();
    let (checkpoints, tensors) = if is_full { (200, 1000) } else { (20, 400) };
    runs::steady(&dir.path().join("run"), checkpoints, tensors);
    let (path, text) = page(dir.path(), &["run"]);
    let bytes = fs::metadata(&path).unwrap().len();
    assert!(bytes <= MAX_BYTES, "{bytes} bytes");
    Dom::valid(&text).check();
    assert_eq!(text.matches("<tbody id=\"tensor-").count(), tensors, "no tensor is left out");
    let Some(mut browser) = browser() else { return };
    browser.show(1280, false);
    let took = browser.load(&path);
    println!("{bytes} bytes, open in {took:?}");
    assert_eq!(browser.complaints(), [] as [&str; 0]);
    let shown = "[...document.querySelectorAll('#tensor-table > tbody')].filter(row => row.offsetHeight > 0).length";
    assert_eq!(browser.eval(shown), 100);
    let text = "document.getElementById('shown').textContent";
    assert_eq!(browser.eval(text), format!("100 of {tensors}"));
    browser.eval("document.getElementById('all').click()");
    assert_eq!(browser.eval(shown), tensors);
    assert_eq!(browser.eval(text), format!("{tensors} of {tensors}"));
    // Details that are built when they are opened are markup like all else.
    let details = browser.eval("document.querySelector('#more-0 > td').firstChild.data");
    Dom::valid(&format!("<!DOCTYPE html><title>Details</title>{}", details.as_str().unwrap()));
    browser.eval("document.querySelector('[aria-controls=more-0]').click()");
    assert!(browser.eval("document.querySelectorAll('#more-0 path.ridge').length").as_u64() > Some(1));
    assert_eq!(browser.complaints(), [] as [&str; 0]);
}

/// Starts Chromium, or says that the machine has none.
fn browser() -> Option<Chromium> {
    let browser = Chromium::start();
    if browser.is_none() {
        eprintln!("SKIPPED: the page in a browser: Chromium is not installed (apt-get install chromium)");
    }
    browser
}

#[test]
fn the_controls_work_in_a_browser() {
    let Some(mut browser) = browser() else { return };
    let dir = tempfile::tempdir().unwrap();
    runs::eventful(&dir.path().join("run"));
    let (path, _) = page(dir.path(), &["run"]);
    for (width, dark) in [(1280, false), (1280, true), (390, false), (390, true)] {
        browser.show(width, dark);
        browser.load(&path);
        assert_eq!(browser.complaints(), [] as [&str; 0]);
        let wide = browser.eval("document.documentElement.scrollWidth");
        assert!(wide.as_u64() <= Some(width.into()), "the page is {wide} wide in a window of {width}");
        let background = "getComputedStyle(document.body).backgroundColor";
        let before = browser.eval(background);
        browser.eval("document.getElementById('theme').click()");
        assert_ne!(browser.eval(background), before, "the colours stay");
        let pressed = browser.eval("document.getElementById('theme').getAttribute('aria-pressed')");
        assert_eq!(pressed, (!dark).to_string());
    }
    let shown = "[...document.querySelectorAll('#tensor-table > tbody')].filter(row => !row.hidden)\
                 .map(row => row.querySelector('.name').textContent).join()";
    let set = |id: &str, value: &str, event: &str| {
        format!(
            "(() => {{ const e = document.getElementById('{id}'); e.{value}; e.dispatchEvent(new Event('{event}')) }})()"
        )
    };
    assert_eq!(browser.eval(shown), "decoder/broken,decoder/exploding,decoder/vanishing,encoder/weight");
    browser.eval(&set("filter", "value = 'WEIGHT'", "input"));
    assert_eq!(browser.eval(shown), "encoder/weight");
    assert_eq!(browser.eval("document.getElementById('shown').textContent"), "1 of 4");
    browser.eval(&set("filter", "value = ''", "input"));
    browser.eval(&set("flagged", "checked = true", "change"));
    assert_eq!(browser.eval(shown), "decoder/broken,decoder/exploding,decoder/vanishing");
    browser.eval(&set("flagged", "checked = false", "change"));
    browser.eval(&set("sort", "value = 'name'", "change"));
    assert_eq!(browser.eval(shown), "decoder/broken,decoder/exploding,decoder/vanishing,encoder/weight");
    browser.eval(&set("sort", "value = 'norm'", "change"));
    assert_eq!(browser.eval(shown), "decoder/exploding,encoder/weight,decoder/broken,decoder/vanishing");
    // Details, with the keyboard alone.
    let details = "getComputedStyle(document.getElementById('more-1')).display";
    assert_eq!(browser.eval(details), "none");
    browser.eval("document.querySelector('[aria-controls=more-1]').focus()");
    browser.press("Enter", 13, "\r");
    assert_eq!(browser.eval(details), "table-row");
    assert_eq!(browser.eval("document.activeElement.getAttribute('aria-expanded')"), "true");
    browser.press("Enter", 13, "\r");
    assert_eq!(browser.eval(details), "none");
    // From the top, the first stop leads to the content, and the next ones are in the order of the page.
    browser.load(&path);
    let mut stops = Vec::new();
    for _ in 0..4 {
        browser.press("Tab", 9, "");
        stops.push(browser.eval("document.activeElement.textContent"));
    }
    assert_eq!(stops, ["Skip to the content", "Dark colours", "Needs attention", "At a glance"]);
}

#[test]
fn the_page_is_complete_without_its_script() {
    let Some(mut browser) = browser() else { return };
    let dir = tempfile::tempdir().unwrap();
    runs::eventful(&dir.path().join("run"));
    let (path, _) = page(dir.path(), &["run"]);
    browser.call("Emulation.setScriptExecutionDisabled", serde_json::json!({"value": true}));
    browser.load(&path);
    assert_eq!(browser.eval("getComputedStyle(document.getElementById('more-1')).display"), "table-row");
    assert_eq!(browser.eval("getComputedStyle(document.querySelector('.controls')).display"), "none");
}
