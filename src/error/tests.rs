use super::*;
use std::error::Error as _;

/// As `anyhow` prints an error: each of the chain once.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

fn failing_device() -> io::Error {
    io::Error::from_raw_os_error(5)
}

#[test]
fn what_cannot_be_read_now_is_not_damage_and_names_the_way_on() {
    // EIO, ENOTCONN, ESTALE, EHOSTDOWN, ENODEV, EREMOTEIO, EACCES, EMFILE, ETIMEDOUT, ENXIO, EBADMSG
    for errno in [5, 107, 116, 112, 19, 121, 13, 24, 110, 6, 74] {
        let error = Error::io("open", "run/ckpt-3/manifest.json", io::Error::from_raw_os_error(errno));
        assert!(!error.is_damaged() && error.to_string().contains("CheckpointManager::pass_over"), "{error}");
    }
    for action in ["write", "read the file", "open the file"] {
        let error = Error::io(action, "run/ckpt-3", io::Error::from_raw_os_error(5));
        assert!(!error.to_string().contains("pass_over"), "{error}");
    }
}

#[test]
fn a_file_that_is_no_checkpoint_is_not_told_to_be_saved_otherwise() {
    let error = |action| Error::io(action, "out/model.pt", rustix::io::Errno::INVAL.into()).to_string();
    assert!(error("sync").contains("Durability::ProcessCrash"), "{}", error("sync"));
    let text = error("sync the file");
    assert!(text.contains("another one") && !text.contains("Durability"), "{text}");
}

#[test]
fn every_source_is_printed_once() {
    let io = || Error::io("write", "run/ckpt-3", failing_device());
    let answer = failing_device().to_string();
    let half = Error::PartlyRestored { path: "run/ckpt-3".into(), source: Box::new(io()) };
    let thread = Error::Thread { task: "write the checkpoint", source: failing_device() };
    for error in [io(), half, thread] {
        for text in [chain(&error), format!("{error:#}")] {
            assert_eq!(text.matches(&answer).count(), 1, "{text}");
            assert_eq!(text.matches("see the system's log").count(), usize::from(!text.contains("thread")), "{text}");
        }
        assert!(!error.to_string().contains(&answer), "{error}");
    }
    assert!(format!("{:#}", io()).starts_with(&format!("cannot write run/ckpt-3: {answer}; the device")), "{:#}", io());
}

#[test]
fn what_an_object_answers_is_printed_once_and_kept() {
    let plain = Error::object("model/w", "it is on no device");
    assert_eq!(format!("{plain:#}"), "model/w: it is on no device");
    assert!(plain.source().is_none());
    let nested = Error::object("model/w", Error::io("read", "vocabulary", failing_device()));
    let text = chain(&nested);
    assert!(text.starts_with("model/w: cannot read vocabulary"), "{text}");
    assert_eq!(text.matches("Input/output error").count(), 1, "{text}");
    assert!(matches!(&nested, Error::Object { reason, .. } if reason.downcast_ref::<Error>().is_some()));
}

#[test]
fn a_panic_has_its_message() {
    let panic = std::panic::catch_unwind(|| panic!("no tensor {}", 7)).unwrap_err();
    let text = Error::panicked("copy the state", &*panic).to_string();
    assert!(text.contains("copy the state") && text.contains("no tensor 7"), "{text}");
    let panic = std::panic::catch_unwind(|| panic!("plain")).unwrap_err();
    assert!(Error::panicked("copy the state", &*panic).to_string().contains("plain"));
}

#[test]
fn what_a_script_asks() {
    let of = |errno| Error::io("open", "run", io::Error::from_raw_os_error(errno));
    for (error, [damaged, not_found, locked, no_space, transient]) in [
        (Error::damaged("run/ckpt-3", "a byte differs"), [true, false, false, false, false]),
        (Error::not_found("run/ckpt-3", "nothing"), [false, true, false, false, false]),
        (Error::removed("run/ckpt-3"), [false, true, false, false, false]),
        (Error::locked("run", "process 7"), [false, false, true, false, false]),
        (of(28), [false, false, false, true, false]),
        (of(122), [false, false, false, true, false]),
        (of(110), [false, false, false, false, true]),
        (of(116), [false, false, false, false, true]),
        (of(13), [false, false, false, false, false]),
        (Error::InvalidArgument("no".into()), [false, false, false, false, false]),
    ] {
        let found =
            [error.is_damaged(), error.is_not_found(), error.is_locked(), error.is_no_space(), error.is_transient()];
        assert_eq!(found, [damaged, not_found, locked, no_space, transient], "{error:?}");
        let half = Error::PartlyRestored { path: "run".into(), source: Box::new(error) };
        assert_eq!([half.is_damaged(), half.is_not_found(), half.is_transient()], [damaged, not_found, transient]);
    }
}

#[test]
fn how_much_is_needed_is_said_where_it_is_known() {
    let text = |needed, free| Error::NoSpace { path: "run".into(), needed, free }.to_string();
    assert!(text(0, None).starts_with("no space left for run; free some space"), "{}", text(0, None));
    assert!(text(0, Some(5)).starts_with("no space left for run: 5 bytes are free; "), "{}", text(0, Some(5)));
    assert!(text(9, None).starts_with("no space left for run: 9 bytes are needed; "), "{}", text(9, None));
    assert!(text(9, Some(5)).starts_with("no space left for run: 9 bytes are needed, 5 are free; "));
}
