//! Determines whether anything else has a file open. Only a lease can answer that (fcntl(2), "Leases").

use std::fs::File;

/// Returns `true` if nothing else, in this process or another, has the file open or mapped. Requests a write lease,
/// which the system grants only then, and releases it.
///
/// If another process opens the file while the lease is held, the system sends this one a signal: by default SIGIO,
/// which ends a process without a handler. SIGURG, which is ignored by default, is set instead. A real-time signal
/// would not do: the system sends SIGIO when the queue of those is full.
#[cfg(target_os = "linux")]
pub(super) fn is_ours_alone(file: &File) -> bool {
    set_lease(file, libc::F_WRLCK) && set_lease(file, libc::F_UNLCK)
}

/// Takes a read lease on a file that is open for reading only, and holds it until the file is closed. Opening the file
/// for writing then blocks, or fails with `EWOULDBLOCK`. For tests.
#[must_use]
pub fn hold_lease(file: &File) -> bool {
    #[cfg(target_os = "linux")]
    return set_lease(file, libc::F_RDLCK);
    #[cfg(not(target_os = "linux"))]
    return false;
}

/// Returns `true` if the system granted the lease.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "there is no safe wrapper of F_SETSIG and F_SETLEASE")]
fn set_lease(file: &File, kind: libc::c_int) -> bool {
    use std::os::fd::AsRawFd;
    /// From the kernel's `asm-generic/fcntl.h`; the same number on every architecture that Rust's `std` runs on.
    const F_SETSIG: libc::c_int = 10;
    let fd = file.as_raw_fd();
    // SAFETY: the calls take the descriptor of an open file and an integer, and touch no memory of ours.
    unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) == 0 && libc::fcntl(fd, libc::F_SETLEASE, kind) == 0 }
}

/// Other systems cannot answer this.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_ours_alone(_: &File) -> bool {
    false
}
