use super::*;

const BLOCK: usize = 4096;

fn path() -> PathBuf {
    PathBuf::from("/log/0")
}

/// A disk with one durable file of zeroes.
fn disk(seed: u64, len: u64) -> (SimDisk, FileId) {
    let disk = SimDisk::new(seed);
    disk.create(&path()).unwrap();
    disk.zero_range(&path(), 0, len).unwrap();
    disk.sync_file(&path()).unwrap();
    disk.sync_dir(Path::new("/log"));
    let id = disk.open(&path(), true).unwrap();
    (disk, id)
}

fn content(disk: &SimDisk) -> Vec<u8> {
    let mut content = vec![0; disk.len(&path()).unwrap() as usize];
    assert_eq!(disk.read_at(&path(), 0, &mut content).unwrap(), content.len());
    content
}

fn write(disk: &SimDisk, id: FileId, offset: u64, byte: u8, durable: bool) -> Result<(), Errno> {
    let (write, _) = disk.begin_write(id, offset, Bytes::from(vec![byte; BLOCK]), durable);
    disk.finish_write(write)
}

#[test]
fn a_durable_write_survives_every_crash() {
    for seed in 0..200 {
        let (disk, id) = disk(seed, 3 * BLOCK as u64);
        write(&disk, id, 0, 1, true).unwrap();
        write(&disk, id, BLOCK as u64, 2, false).unwrap();
        disk.crash(seed);
        assert!(content(&disk)[..BLOCK].iter().all(|&byte| byte == 1));
        assert!(content(&disk)[2 * BLOCK..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn other_writes_are_lost_kept_and_torn_by_sector() {
    let mut total = CrashReport::default();
    let mut mixed = 0;
    for seed in 0..200 {
        let (disk, id) = disk(seed, 2 * BLOCK as u64);
        write(&disk, id, 0, 1, false).unwrap();
        // This one is in flight.
        disk.begin_write(id, BLOCK as u64, Bytes::from(vec![1; BLOCK]), true);
        let report = disk.crash(seed);
        assert_eq!(report.lost + report.kept + report.torn, 16);
        let content = content(&disk);
        let mut seen = CrashReport::default();
        for sector in content.chunks(SECTOR_BYTES as usize) {
            let new = sector.iter().take_while(|&&byte| byte == 1).count();
            assert!(sector[new..].iter().all(|&byte| byte == 0), "torn once, from new to old");
            match new {
                0 => seen.lost += 1,
                512 => seen.kept += 1,
                _ => seen.torn += 1,
            }
        }
        assert_eq!(seen, report);
        mixed += u64::from(report.lost > 0 && report.kept > 0);
        total = CrashReport {
            lost: total.lost + report.lost,
            kept: total.kept + report.kept,
            torn: total.torn + report.torn,
        };
        assert_eq!(disk.crash(seed), CrashReport::default(), "a crash decides once");
    }
    assert!(
        total.lost > 100 && total.kept > 100 && total.torn > 50 && mixed > 10,
        "{total:?}, {mixed} mixed"
    );
}

#[test]
fn a_crash_without_tearing_leaves_whole_sectors() {
    for seed in 0..100 {
        let (disk, id) = disk(seed, BLOCK as u64);
        write(&disk, id, 0, 1, false).unwrap();
        assert_eq!(disk.crash_as(seed, false).torn, 0);
    }
}

#[test]
fn the_same_seed_crashes_in_the_same_way() {
    let crashed = |seed| {
        let (disk, id) = disk(7, 64 * BLOCK as u64);
        for i in 0..64 {
            write(&disk, id, i * BLOCK as u64, i as u8 + 1, i % 3 == 0).unwrap();
        }
        disk.crash(seed);
        content(&disk)
    };
    let distinct: BTreeSet<_> = (0..20).map(crashed).collect();
    assert!(distinct.len() > 5);
    assert!((0..20).all(|seed| crashed(seed) == crashed(seed)));
}

#[test]
fn names_survive_surely_only_when_their_directory_is_synced() {
    let directory = Path::new("/log");
    let (mut vanished, mut came_back) = (0, 0);
    for seed in 0..100 {
        let (disk, _) = disk(seed, 1);
        disk.create(&directory.join("synced")).unwrap();
        disk.sync_dir(directory);
        disk.create(&directory.join("new")).unwrap();
        disk.remove(&path()).unwrap();
        disk.crash(seed);
        assert!(disk.exists(&directory.join("synced")));
        vanished += u64::from(!disk.exists(&directory.join("new")));
        came_back += u64::from(disk.exists(&path()));
    }
    assert!((20..80).contains(&vanished) && (20..80).contains(&came_back), "{vanished} {came_back}");
}

#[test]
fn a_rename_is_listed_and_keeps_the_content() {
    let (disk, id) = disk(1, BLOCK as u64);
    write(&disk, id, 0, 9, true).unwrap();
    disk.create(Path::new("/other/1")).unwrap();
    disk.rename(&path(), Path::new("/log/1")).unwrap();
    assert_eq!(disk.list(Path::new("/log")), [(PathBuf::from("/log/1"), BLOCK as u64)]);
    let mut byte = [0];
    disk.read_at(Path::new("/log/1"), 5, &mut byte).unwrap();
    assert_eq!(byte, [9]);
    assert_eq!(disk.read_at(&path(), 0, &mut byte).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_length_that_is_not_synced_may_be_lost() {
    let mut lengths = BTreeSet::new();
    for seed in 0..50 {
        let (disk, _) = disk(seed, BLOCK as u64);
        disk.write_at(&path(), BLOCK as u64, &[1; 100]).unwrap();
        disk.crash(seed);
        lengths.insert(disk.len(&path()).unwrap());
        // What the shorter file does not hold does not come back when it grows.
        if disk.len(&path()).unwrap() == BLOCK as u64 {
            disk.zero_range(&path(), BLOCK as u64, 2 * BLOCK as u64).unwrap();
            assert!(content(&disk)[BLOCK..].iter().all(|&byte| byte == 0));
        }
    }
    assert_eq!(lengths, BTreeSet::from([4096, 4196]));
}

#[test]
fn each_fault_strikes_the_write_it_was_meant_for() {
    let (disk, id) = disk(3, 4 * BLOCK as u64);
    disk.fail_write(1, WriteFault::Io);
    disk.fail_write(2, WriteFault::NoSpace);
    disk.fail_write(3, WriteFault::Misdirected { by: BLOCK as i64 });
    disk.fail_write(4, WriteFault::Lost);
    let results: Vec<_> = (1..=6).map(|byte| write(&disk, id, 0, byte, true)).collect();
    assert_eq!(results, [Ok(()), Err(Errno::Io), Err(Errno::NoSpace), Ok(()), Ok(()), Ok(())]);
    let content = content(&disk);
    assert_eq!((content[0], content[BLOCK], content[2 * BLOCK]), (6, 4, 0));
}

#[test]
fn a_misdirected_write_stays_misdirected_in_a_crash_and_a_lost_one_lost() {
    for seed in 0..50 {
        let (disk, id) = disk(seed, 4 * BLOCK as u64);
        disk.fail_write(0, WriteFault::Misdirected { by: 2 * BLOCK as i64 });
        disk.fail_write(1, WriteFault::Lost);
        disk.begin_write(id, 0, Bytes::from(vec![1; BLOCK]), true);
        disk.begin_write(id, BLOCK as u64, Bytes::from(vec![2; BLOCK]), true);
        disk.crash(seed);
        let content = content(&disk);
        assert!(content[..2 * BLOCK].iter().chain(&content[3 * BLOCK..]).all(|&byte| byte == 0));
    }
}

#[test]
fn space_ends_and_comes_back() {
    let (disk, id) = disk(4, 4 * BLOCK as u64);
    disk.set_space_left(Some(BLOCK as u64 + 100));
    assert_eq!(write(&disk, id, 0, 1, true), Ok(()), "what is there already takes no room");
    let refused = disk.zero_range(&path(), 0, 6 * BLOCK as u64).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.len(&path()).unwrap(), 5 * BLOCK as u64 + 100, "as far as there was room");
    assert_eq!(write(&disk, id, 5 * BLOCK as u64, 2, true), Err(Errno::NoSpace));
    let other = Path::new("/log/other");
    disk.create(other).unwrap();
    assert_eq!(disk.write_at(other, 0, &[1]).unwrap_err().kind(), io::ErrorKind::StorageFull);
    disk.remove(&path()).unwrap();
    disk.write_at(other, 0, &[1; BLOCK]).unwrap();
    disk.set_space_left(None);
    disk.write_at(other, 0, &[1; 100 * BLOCK]).unwrap();
}

#[test]
fn a_misdirected_read_gives_another_place_once_or_until_it_is_written() {
    let (disk, id) = disk(6, 4 * BLOCK as u64);
    for page in 0..4 {
        write(&disk, id, page * BLOCK as u64, page as u8, true).unwrap();
    }
    let read = |page: u64| {
        let (_, fault) = disk.begin_read();
        disk.finish_read(id, page * BLOCK as u64, BLOCK as u64, fault).unwrap()[0]
    };
    disk.fail_read(0, ReadFault::Misdirected { by: BLOCK as i64 });
    disk.fail_read(2, ReadFault::Misdirected { by: BLOCK as i64 });
    assert_eq!([read(1), read(1), read(3)], [2, 1, 2], "the file ends behind the last");
    disk.misdirect_reads(&path(), BLOCK as u64, 3 * BLOCK as u64).unwrap();
    disk.crash(1);
    assert_eq!([read(1), read(1), content(&disk)[BLOCK]], [3; 3]);
    write(&disk, id, BLOCK as u64, 9, true).unwrap();
    assert_eq!([read(1), read(3)], [9, 3]);
    disk.scribble(&path(), 3 * BLOCK as u64, &[7; 2 * BLOCK]).unwrap();
    assert_eq!((read(3), disk.len(&path()).unwrap()), (7, 4 * BLOCK as u64));
}

#[test]
fn a_short_read_is_half_and_a_lookup_fails_once() {
    let (disk, id) = disk(7, BLOCK as u64);
    disk.fail_read(0, ReadFault::Short);
    let (_, fault) = disk.begin_read();
    assert_eq!(disk.finish_read(id, 0, BLOCK as u64, fault).unwrap().len(), BLOCK / 2);
    disk.fail_lookup(Some(1));
    let mut byte = [0];
    let results: Vec<bool> = (0..3).map(|_| disk.read_at(&path(), 0, &mut byte).is_ok()).collect();
    assert_eq!(results, [true, false, true]);
}

#[test]
fn reads_fail_as_asked_and_rot_stays() {
    let (disk, id) = disk(5, BLOCK as u64);
    disk.fail_read(0, ReadFault::Io);
    disk.fail_read(1, ReadFault::FlipBit);
    let read = || {
        let (_, fault) = disk.begin_read();
        disk.finish_read(id, 0, BLOCK as u64, fault)
            .map(|bytes| bytes.iter().map(|b| b.count_ones()).sum::<u32>())
    };
    assert_eq!([read(), read(), read()], [Err(Errno::Io), Ok(1), Ok(0)]);
    disk.flip_bit(&path(), 100, 3).unwrap();
    assert_eq!([read(), read()], [Ok(1), Ok(1)]);
    assert_eq!(content(&disk)[100], 8);
    assert!(disk.flip_bit(&path(), BLOCK as u64, 0).is_err());
}
