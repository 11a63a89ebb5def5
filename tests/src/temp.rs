//! Directories that go away with the test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::binaries;

/// A fresh directory below the target directory, so on a real disk rather than in memory; removed when dropped.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = binaries::target_dir().join("tmp").join(format!("{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory below the target directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What is left of it is below the target directory and harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
