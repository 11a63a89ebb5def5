//! The rules of docs/architecture.md that can be checked by reading.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use ringmq_tests::binaries::workspace;

/// What each crate may use of ours; the folder of `ringmq` is the root.
const ARROWS: [(&str, &[&str]); 9] = [
    ("protocol", &[]),
    ("ring", &[]),
    ("storage", &["ringmq-protocol"]),
    ("net", &["ringmq-protocol"]),
    ("", &["ringmq-net", "ringmq-protocol", "ringmq-ring", "ringmq-storage"]),
    ("client", &["ringmq-protocol"]),
    ("tools", &["ringmq-client", "ringmq-protocol", "ringmq-storage"]),
    ("sim", &["ringmq", "ringmq-client", "ringmq-net", "ringmq-protocol", "ringmq-ring", "ringmq-storage"]),
    ("tests", &["ringmq-client", "ringmq-protocol"]),
];

/// Lines of a file without its tests; beyond it, a file is two files.
const FILE_LINES_MAX: usize = 700;
/// Its test that makes the fixtures anew is run by hand.
const MAKES_FIXTURES: &str = "storage/src/recover/tests.rs";
/// Files that are longer all the same.
const LONGER: [&str; 1] = ["client/src/client.rs"];

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Rust files of the workspace, by their paths from its root.
fn rust_files() -> BTreeMap<String, String> {
    fn walk(dir: &Path, files: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).expect("a folder of the workspace").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let hidden = name.to_string_lossy().starts_with('.');
            if path.is_dir() && !hidden && name != "target" {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let short = path.strip_prefix(workspace()).expect("below the root");
                files.insert(short.to_string_lossy().into_owned(), read(&path));
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(workspace(), &mut files);
    assert!(files.len() > 50, "these are not all files: {:?}", files.keys());
    files
}

/// The code of a line, without what follows `//`.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(is_part)
            && !text[at + word.len()..].chars().next().is_some_and(is_part)
    })
}

#[test]
fn crates_use_each_other_along_the_arrows_only() {
    let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
    for (folder, allowed) in ARROWS {
        let path = workspace().join(folder).join("Cargo.toml");
        let (mut section, mut used) = (String::new(), BTreeSet::new());
        for line in read(&path).lines() {
            if line.starts_with('[') {
                section = line.to_owned();
            }
            // Tests may use no more than the code they are tests of.
            let is_use = section.contains("dependencies") && section != "[workspace.dependencies]";
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if is_use && (name == "ringmq" || name.starts_with("ringmq-")) {
                used.insert(name.to_owned());
            }
        }
        let own = used.iter().find(|name| !allowed.contains(&name.as_str()));
        assert!(own.is_none(), "{}: {own:?} is against the arrows", path.display());
        folders.insert(path);
    }
    let root = read(&workspace().join("Cargo.toml"));
    let members = root.lines().find(|line| line.starts_with("members")).expect("members");
    assert_eq!(members.matches('"').count() / 2 + 1, folders.len(), "a crate is not in the table: {members}");
}

#[test]
fn only_the_ring_is_unsafe_and_says_why() {
    let word = concat!("un", "safe");
    let mut count = 0;
    for (path, text) in rust_files() {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| has_word(code(line), word)) {
            assert!(path.starts_with("ring/src/"), "{path}:{}: {line}", at + 1);
            count += 1;
            // The comment above the statement that holds it.
            let above = lines[..at].iter().rev().take(8);
            let mut above = above.take_while(|line| !matches!(line.trim(), "" | "}"));
            assert!(above.any(|line| line.contains("SAFETY:")), "{path}:{}: no SAFETY line", at + 1);
        }
    }
    eprintln!("{count} places with {word} code, all in ring/src");
    let lints = read(&workspace().join("Cargo.toml"));
    assert!(lints.contains(&format!("{word}_code = \"forbid\"")));
}

#[test]
fn a_shard_has_no_world() {
    let world = [
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "std::time",
        "Instant",
        "SystemTime",
        "rand",
        "std::thread",
        "std::process",
        "std::env",
        "tokio",
        "ringmq_ring",
        "ringmq_net",
        "RandomState",
        "HashMap",
        "HashSet",
    ];
    let mut seen = 0;
    for (path, text) in rust_files() {
        // The tests of a shard may have a world.
        if !path.starts_with("src/shard/") || path.contains("tests") {
            continue;
        }
        seen += 1;
        for (at, line) in text.lines().enumerate() {
            for part in world {
                let found =
                    has_word(code(line), part) || (part.ends_with("Tcp") && code(line).contains(part));
                assert!(!found, "{path}:{}: {part} in a shard: {line}", at + 1);
            }
        }
    }
    assert!(seen > 10, "src/shard is elsewhere");
    // Storage knows no request, and whoever keeps the log does not talk to clients.
    for (path, text) in rust_files() {
        if path.starts_with("storage/src/") {
            assert!(!text.contains("ringmq_protocol::request"), "{path} knows requests");
        }
    }
}

#[test]
fn nothing_is_left_for_later() {
    let ignored = concat!("#[ig", "nore");
    let calls = [concat!("to", "do!("), concat!("unimple", "mented!(")];
    let words = [concat!("FIX", "ME"), concat!("XX", "X")];
    for (path, text) in rust_files() {
        for (at, line) in text.lines().enumerate() {
            let found = calls.iter().any(|call| line.contains(call))
                || words.iter().any(|word| has_word(line, word))
                || line.contains(ignored) && path != MAKES_FIXTURES;
            assert!(!found, "{path}:{}: {line}", at + 1);
        }
    }
}

#[test]
fn files_are_short() {
    let readme = read(&workspace().join("README.md"));
    assert!(readme.lines().count() <= 130, "README.md has {} lines", readme.lines().count());
    let mut too_long = Vec::new();
    for (path, text) in rust_files() {
        if path.contains("/tests") || path.starts_with("tests/") || LONGER.contains(&path.as_str()) {
            continue;
        }
        let tests = text.lines().collect::<Vec<_>>();
        let own = tests.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with('{'));
        let count = own.unwrap_or(tests.len());
        if count > FILE_LINES_MAX {
            too_long.push(format!("{path}: {count} lines"));
        }
    }
    assert!(too_long.is_empty(), "more than {FILE_LINES_MAX} lines without tests: {too_long:?}");
}

/// What docs/compatibility.md has a row for, by how the row begins.
const BEHAVIOURS: [&str; 29] = [
    "heartbeat",
    "notify",
    "rebalance on join",
    "rebalance on crash",
    "server-side assignment",
    "group settings",
    "connection and running info",
    "clustering",
    "broadcasting",
    "concurrent",
    "orderly consumption",
    "consume from first, last, timestamp",
    "long polling",
    "tag filter",
    "SQL92",
    "queue locks",
    "order topics",
    "retry and back-off",
    "dead letters",
    "orderly retry",
    "offset reset, live",
    "offset reset, offline",
    "skip",
    "clone",
    "lag",
    "delete a group",
    "POP: pop, ack",
    "POP survives kill -9",
    "flow control",
];

#[test]
fn the_table_of_compatibility_names_tests_that_exist() {
    let file = |path: &str| read(&workspace().join(path));
    let java = file("tests/interop/java/src/main/java/ringmq/interop/Main.java");
    let go = file("tests/interop/go/main.go");
    let node = file("tests/interop/node/interop.js");
    let crash = file("tests/src/bin/crash.rs");
    // A scenario that is only waited for is no evidence.
    let has_line = |text: &str, start: &str| {
        text.lines().any(|line| line.trim_start().starts_with(start) && !line.contains("pending:"))
    };
    let exists = |name: &str| match name.split_once(':') {
        Some(("java", scenario)) => java.contains(&format!("SCENARIOS.put(\"{scenario}\"")),
        Some(("go", scenario)) => has_line(&go, &format!("{{name: \"{scenario}\",")),
        Some(("node", scenario)) => has_line(&node, &format!("{scenario}: {{ run:")),
        _ => match (name.split_once("::"), name.strip_prefix("crash ")) {
            (Some((path, test)), _) => {
                let (path, test) = (workspace().join(path), format!("fn {test}("));
                path.is_file() && read(&path).lines().any(|line| line.contains(&test) && !line.contains("//"))
            }
            (None, Some(mode)) => {
                let mode = mode.split(' ').next().unwrap_or_default();
                crash.to_lowercase().lines().any(|line| {
                    let variant = line.trim_start();
                    variant.starts_with(&format!("{mode}(")) || variant.starts_with(&format!("{mode} {{"))
                })
            }
            (None, None) => false,
        },
    };
    let table = file("docs/compatibility.md");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| ") && line.matches('|').count() == 8)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let mut named = 0;
    for row in rows.iter().skip(1) {
        for cell in &row[1..] {
            let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
            let has_reason = cell.strip_prefix('—').is_some_and(|why| !why.trim().is_empty());
            assert!(has_reason == names.is_empty(), "{}: neither a test nor a reason: {cell:?}", row[0]);
            for name in names {
                assert!(exists(name), "{}: there is no test {name}", row[0]);
                named += 1;
            }
        }
    }
    assert!(named > 60, "the table names only {named} tests: it is not read right");
    for behaviour in BEHAVIOURS {
        assert!(rows.iter().any(|row| row[0].starts_with(behaviour)), "no row for {behaviour}");
    }
}
