//! A test that runs again in a process of its own.

use std::path::Path;
use std::process::Command;

/// The variable of the environment with the directory of the child. It is set in the child only.
pub const CHILD: &str = "TCH_CHECKPOINT_TEST_CHILD";

/// Runs `script` in a shell: `CHILD` in it is the command that runs `test` of this program alone, and `DIRECTORY` is
/// `dir`. A script that mounts runs in namespaces of users and mounts of its own. Returns what it printed, or `None`
/// if there are no such namespaces here.
pub fn again(test: &str, dir: &Path, script: &str) -> Option<String> {
    let this = std::env::current_exe().unwrap();
    let child = format!("\"{}\" --exact {test} --nocapture", this.display());
    let script = script.replace("CHILD", &child).replace("DIRECTORY", &dir.display().to_string());
    let mounts = script.contains("mount");
    let mut command = Command::new(if mounts { "unshare" } else { "env" });
    if mounts {
        command.args(["-r", "-m"]);
    }
    let output = match command.args(["sh", "-c", &script]).env(CHILD, dir).output() {
        Ok(output) => output,
        Err(e) if mounts => {
            println!("SKIPPED: no user and mount namespace: {e}");
            return None;
        }
        Err(e) => panic!("sh: {e}"),
    };
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if mounts && (text.contains("NOT MOUNTED") || text.contains("unshare")) {
        println!("SKIPPED: no user and mount namespace: {text}");
        return None;
    }
    assert!(output.status.success(), "{}: {text}", output.status);
    Some(text)
}
