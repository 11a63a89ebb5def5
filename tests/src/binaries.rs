//! The programs under test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace")
}

/// Where the running program was built to, `target/<profile>`.
fn profile_dir() -> PathBuf {
    let executable = std::env::current_exe().expect("the path of this program");
    let dir = executable.parent().expect("a program is in a folder");
    // Tests are one level deeper than other programs.
    let dir = if dir.file_name() == Some(OsStr::new("deps")) { dir.parent() } else { Some(dir) };
    dir.expect("deps is in a folder").to_path_buf()
}

/// The target directory that the running program was built in.
pub fn target_dir() -> PathBuf {
    profile_dir().parent().expect("the profile's folder is in the target directory").to_path_buf()
}

/// The programs that tests run, and their crates.
const PROGRAMS: [&str; 4] = ["ringmq-broker", "ringmq-namesrv", "ringmq", "ringmq-perf"];
const CRATES: [&str; 2] = ["ringmq", "ringmq-tools"];

/// One of the programs above, built like the running one. The first call builds them all.
pub fn binary(name: &str) -> PathBuf {
    assert!(PROGRAMS.contains(&name), "{name} is not one of {PROGRAMS:?}");
    static BUILT: OnceLock<bool> = OnceLock::new();
    assert!(BUILT.get_or_init(build), "the programs under test do not build");
    profile_dir().join(name)
}

fn build() -> bool {
    let profile = match profile_dir().file_name().and_then(OsStr::to_str) {
        Some("debug") => "dev".to_owned(),
        Some(other) => other.to_owned(),
        None => panic!("{} is no folder of a profile", profile_dir().display()),
    };
    eprintln!("building the programs under test, {}, with the profile {profile}", PROGRAMS.join(", "));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--profile", &profile]);
    CRATES.iter().for_each(|name| _ = command.args(["-p", name]));
    PROGRAMS.iter().for_each(|name| _ = command.args(["--bin", name]));
    command.arg("--manifest-path").arg(workspace().join("Cargo.toml")).arg("--target-dir").arg(target_dir());
    command.stdin(Stdio::null()).status().expect("cargo can be run").success()
}
