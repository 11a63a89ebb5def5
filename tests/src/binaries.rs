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

/// A program of the workspace (`ringmq-broker`, `ringmq` …), built like the running one. The first call builds them all.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(build);
    let path = profile_dir().join(name);
    assert!(path.is_file(), "{} is not there: is it a program of ringmq or ringmq-tools?", path.display());
    path
}

fn build() {
    let profile = match profile_dir().file_name().and_then(OsStr::to_str) {
        Some("debug") => "dev".to_owned(),
        Some(other) => other.to_owned(),
        None => panic!("{} is no folder of a profile", profile_dir().display()),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    eprintln!(
        "building the programs under test: cargo build --bins -p ringmq -p ringmq-tools --profile {profile}"
    );
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--bins", "-p", "ringmq", "-p", "ringmq-tools", "--profile", &profile])
        .arg("--manifest-path")
        .arg(workspace().join("Cargo.toml"))
        .arg("--target-dir")
        .arg(target_dir())
        .stdin(Stdio::null())
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "the programs under test do not build");
}
