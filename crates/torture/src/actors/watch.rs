//! A program that the system asks before a file is opened, and that has it open itself meanwhile: virus scanners and
//! the like (fanotify(7)). Only root may.

use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Watch(Arc<Fanotify>);

impl Watch {
    /// `None` where the user may not, or the system cannot.
    pub(super) fn new() -> Option<Watch> {
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC;
        let group = Arc::new(Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC).ok()?);
        let answering = group.clone();
        std::thread::spawn(move || {
            while let Ok(events) = answering.read_events() {
                for event in &events {
                    std::thread::sleep(Duration::from_micros(100));
                    if let Some(file) = event.fd() {
                        let _ = answering.write_response(FanotifyResponse::new(file, Response::FAN_ALLOW));
                    }
                }
                // The files stay open for a moment.
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        Some(Watch(group))
    }

    /// From now on it is asked before a file of this directory is opened.
    pub(super) fn add(&self, directory: &Path) -> bool {
        let what = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_EVENT_ON_CHILD;
        self.0.mark(MarkFlags::FAN_MARK_ADD, what, nix::fcntl::AT_FDCWD, Some(directory)).is_ok()
    }
}
