use super::*;

fn dir() -> PathBuf {
    std::env::temp_dir().join(format!("ringmq-client-offset-file-{}", rand::random::<u64>()))
}

fn queue(id: i32) -> MessageQueue {
    MessageQueue::new("T", "a", id)
}

#[tokio::test]
async fn what_was_saved_is_there_again() {
    let dir = dir();
    let file = OffsetFile::open(dir.join("deep"), "g").await.expect("a new file");
    file.set(&queue(0), QueueOffset(7));
    file.set(&queue(1), QueueOffset(9));
    file.set(&queue(1), QueueOffset(8));
    file.save().await.expect("saved");
    file.set(&queue(0), QueueOffset(100));
    let again = OffsetFile::open(dir.join("deep"), "g").await.expect("the file");
    assert_eq!([0, 1, 2].map(|id| again.get(&queue(id))), [Some(QueueOffset(7)), Some(QueueOffset(8)), None]);
    assert_eq!(OffsetFile::open(dir.join("deep"), "h").await.expect("another").get(&queue(0)), None);
    fs::remove_dir_all(dir).expect("removed");
}

/// F1: a crash between the two steps leaves the old file.
#[tokio::test]
async fn half_a_write_is_not_read() {
    let dir = dir();
    let file = OffsetFile::open(dir.clone(), "g").await.expect("a new file");
    file.set(&queue(0), QueueOffset(7));
    file.save().await.expect("saved");
    fs::write(dir.join("g.json.new"), "{\"offsetTable\":{{\"br").expect("written");
    let again = OffsetFile::open(dir.clone(), "g").await.expect("the file");
    assert_eq!(again.get(&queue(0)), Some(QueueOffset(7)));
    fs::remove_dir_all(dir).expect("removed");
}

#[tokio::test]
async fn what_cannot_be_read_is_said_with_its_path() {
    let dir = dir();
    fs::create_dir_all(&dir).expect("a directory");
    fs::write(dir.join("g.json"), "nonsense").expect("written");
    let problem = OffsetFile::open(dir.clone(), "g").await.err().expect("refused").to_string();
    assert!(problem.contains("g.json") && problem.contains("JSON"), "{problem}");
    let file = dir.join("g.json").join("below a file");
    assert!(matches!(OffsetFile::open(file, "g").await, Err(ConsumeError::OffsetFile { .. })));
    fs::remove_dir_all(dir).expect("removed");
}
