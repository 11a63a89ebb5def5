//! What keeps a broker from starting is one clear line; what a start leaves on disk is little.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use ringmq_tests::broker::{fail_to_start, run_to_its_end};
use ringmq_tests::{Broker, Options, TempDir, binaries, ports};

/// The broker must refuse with exit code 1 and one line that has all the parts.
fn refused(data: &Path, more: &[&str], parts: &[&str]) {
    let listen = format!("127.0.0.1:{}", ports::free_for_shards(2));
    let name_server = format!("127.0.0.1:{}", ports::free());
    let mut arguments = vec!["--data", data.to_str().expect("UTF-8")];
    for (flag, value) in [("--listen", &listen), ("--embedded-namesrv", &name_server)] {
        if !more.contains(&flag) {
            arguments.extend([flag, value]);
        }
    }
    arguments.extend(more);
    let output = fail_to_start(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{arguments:?}: more or less than one line: {errors}");
    assert!(errors.starts_with("ringmq-broker: "), "{arguments:?}: {errors}");
    for part in parts {
        assert!(errors.contains(part), "{arguments:?}: {part:?} is not in {errors}");
    }
    assert!(output.stdout.is_empty(), "{arguments:?}: it said it was ready");
}

#[test]
fn a_directory_belongs_to_one_broker_and_keeps_its_shape() {
    let temp = TempDir::new("startup");
    let data = temp.path().join("data");
    let mut broker =
        Broker::start_with(Options { shards: 1, data: Some(data.clone()), ..Options::default() });
    refused(&data, &[], &["another broker uses it", "--data"]);
    broker.stop();

    refused(&data, &["--shards", "2"], &["shards = 1", "2 is asked for", "another directory"]);
    refused(&data, &["--segment-size", "16MiB"], &["segment_bytes", "cannot be changed"]);

    let metadata = data.join("ringmq.json");
    let was = fs::read_to_string(&metadata).unwrap();
    fs::write(&metadata, was.replace("\"format\": 1", "\"format\": 99")).unwrap();
    refused(&data, &[], &["format 99", "newer"]);
    fs::write(&metadata, "{").unwrap();
    refused(&data, &[], &["ringmq.json cannot be understood"]);
    fs::write(&metadata, was).unwrap();

    broker.restart();
    broker.stop();
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let temp = TempDir::new("startup");
    let file = temp.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    let below = file.join("data");
    refused(&below, &[], &[below.to_str().unwrap(), "cannot be made"]);
    refused(Path::new("/proc/ringmq"), &[], &["/proc/ringmq", "cannot be made"]);
}

#[test]
fn a_port_in_use_is_named() {
    let temp = TempDir::new("startup");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let parts = [address.as_str(), "in use"];
    refused(&temp.path().join("a"), &["--listen", &address], &parts);
    refused(&temp.path().join("b"), &["--embedded-namesrv", &address], &parts);
    refused(&temp.path().join("c"), &["--listen", "127.0.0.1:65535", "--shards", "2"], &["too high"]);
}

#[test]
fn a_wrong_configuration_file_is_named() {
    let temp = TempDir::new("startup");
    let (data, file) = (temp.path().join("data"), temp.path().join("broker.toml"));
    let path = file.to_str().unwrap();
    for (text, part) in [
        ("name = \"x\"\ncolour = 1\n", "colour"),
        ("shards = \"many\"\n", "invalid type"),
        ("segment-size = \"much\"\n", "not a size"),
        ("name = \n", "line 1"),
    ] {
        fs::write(&file, text).unwrap();
        refused(&data, &["--config", path], &[path, part]);
    }
    refused(&data, &["--config", "/nowhere/broker.toml"], &["/nowhere/broker.toml", "cannot read"]);
    assert!(!data.exists(), "a broker that does not start leaves nothing");
}

#[test]
fn wrong_flags_are_named() {
    for (arguments, part) in [
        (["--flush", "later"], "later"),
        (["--segment-size", "much"], "not a size"),
        (["--listen", "nowhere"], "nowhere"),
        (["--shards", "-1"], "-1"),
        (["--colour", "1"], "--colour"),
    ] {
        let output = fail_to_start(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        let first = errors.lines().next().unwrap_or_default();
        assert!(first.starts_with("error: ") && first.contains(part), "{arguments:?}: {errors}");
    }
    let temp = TempDir::new("startup");
    refused(&temp.path().join("a"), &["--shards", "0"], &["at least 1"]);
    refused(&temp.path().join("b"), &["--name", "a/b"], &["name", "a/b"]);
}

/// Lets system call 425, io_uring_setup, fail with an error number, as the seccomp profile of a container does, and runs
/// the rest of its arguments. Perl comes with git, and no C compiler or unsafe code is needed.
const WITHOUT_IO_URING: &str = r#"
my ($prctl, $errno) = (shift, shift);
my $filter = pack("SCCL" x 4, 0x20, 0, 0, 0, 0x15, 0, 1, 425, 0x06, 0, 0, 0x50000 | $errno, 0x06, 0, 0, 0x7fff0000);
my $program = pack("S x6 P", 4, $filter);
syscall($prctl, 38, 1, 0, 0, 0) == 0 or die "no_new_privs: $!";
syscall($prctl, 22, 2, $program) == 0 or die "seccomp: $!";
exec @ARGV or die "exec: $!";
"#;

#[test]
fn a_kernel_that_refuses_io_uring_is_explained() {
    let prctl = match std::env::consts::ARCH {
        "x86_64" => "157",
        "aarch64" => "167",
        other => return eprintln!("skipped: the number of prctl on {other} is not known here"),
    };
    if Command::new("perl").arg("-e1").status().is_err() {
        return eprintln!("skipped: no perl on this machine");
    }
    let temp = TempDir::new("startup");
    // EPERM and ENOSYS: filters answer with either.
    for errno in ["1", "38"] {
        let mut command = Command::new("perl");
        command.args(["-e", WITHOUT_IO_URING, prctl, errno]).arg(binaries::binary("ringmq-broker"));
        command.arg("--data").arg(temp.path().join(errno)).args(["--shards", "1"]);
        let listen = format!("127.0.0.1:{}", ports::free_for_shards(1));
        let name_server = format!("127.0.0.1:{}", ports::free());
        command.args(["--listen", &listen, "--embedded-namesrv", &name_server]);
        let output = run_to_its_end(command);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert_eq!(errors.lines().count(), 1, "more or less than one line: {errors}");
        let part = "ringmq-broker: io_uring is forbidden to this process";
        assert!(errors.starts_with(part) && errors.contains("seccomp"), "{errors}");
    }
}

fn bytes_on_disk(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).unwrap();
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).unwrap();
    own + entries.map(|entry| bytes_on_disk(&entry.unwrap().path())).sum::<u64>()
}

#[test]
fn a_fresh_directory_is_small() {
    let mut broker = Broker::start(2);
    broker.run_cli(&["send", "First", "message"]);
    let bytes = bytes_on_disk(broker.data());
    broker.stop();
    let after_stop = bytes_on_disk(broker.data());
    let banner = broker.banner();
    let ready = banner.lines().next().unwrap_or_default();
    eprintln!(
        "{ready}; {} MiB on disk after the first send, {} MiB after the stop",
        bytes >> 20,
        after_stop >> 20
    );
    assert!(bytes.max(after_stop) < 300 << 20, "{bytes} bytes on disk, {after_stop} after the stop");
    for shard in ["shard-00", "shard-01"] {
        let segments = fs::read_dir(broker.data().join(shard)).unwrap();
        assert!(segments.count() > 0, "{shard} has no log");
    }
}
