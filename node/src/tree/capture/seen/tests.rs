use super::*;

const HERE: Circumstances = Circumstances { device: 7, user: 0, namespace: 9 };

fn stamp(inode: u64) -> Stamp {
    Stamp { inode, changed_s: i64::try_from(inode).unwrap() - 5, changed_ns: 3 }
}

/// Stamps of more than two groups, the third one not to be relied on.
fn written(path: &Path) -> Cid {
    let image = Cid::of(b"image");
    let mut writer = SeenWriter::create(path, HERE).unwrap();
    for inode in 1..2500 {
        writer.push(if inode == 3 { Stamp::NONE } else { stamp(inode) });
    }
    writer.finish(image).unwrap();
    image
}

#[test]
fn stamps_come_back_by_entry_under_the_same_circumstances_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seen");
    let image = written(&path);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    let mut seen = Seen::open(&path, &image, HERE).unwrap();
    for entry in [0, 1, 1023, 1024, 2047, 2048, 2498, 5] {
        assert_eq!(seen.stamp(entry), Some(stamp(u64::from(entry) + 1)), "entry {entry}");
    }
    assert_eq!((seen.stamp(2), seen.stamp(2499), seen.stamp(u32::MAX)), (None, None, None));
    for other in [
        Circumstances { device: 8, ..HERE },
        Circumstances { user: 1, ..HERE },
        Circumstances { namespace: 8, ..HERE },
    ] {
        assert!(Seen::open(&path, &image, other).is_none(), "{other:?}");
    }
    assert!(Seen::open(&path, &Cid::of(b"other"), HERE).is_none());
}

#[test]
fn damage_costs_the_group_that_it_is_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seen");
    let image = written(&path);
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEADER_BYTES + GROUP_BYTES + 100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let mut seen = Seen::open(&path, &image, HERE).unwrap();
    assert_eq!((seen.stamp(1023), seen.stamp(1024), seen.stamp(2047)), (Some(stamp(1024)), None, None));
    assert_eq!(seen.stamp(2048), Some(stamp(2049)));
    bytes[50] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(Seen::open(&path, &image, HERE).is_none(), "a damaged header");
}

#[test]
fn a_capture_that_was_given_up_leaves_the_record_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seen");
    let image = written(&path);
    let mut given_up = SeenWriter::create(&path, HERE).unwrap();
    given_up.push(stamp(1));
    drop(given_up);
    assert!(Seen::open(&path, &image, HERE).is_some());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_changed_within_two_seconds_of_the_beginning_is_not_settled() {
    let at = |changed_s, changed_ns| Stamp { inode: 1, changed_s, changed_ns };
    let began = (1000, 500);
    for (stamp, settled) in
        [(at(998, 500), true), (at(998, 501), false), (at(999, 0), false), (at(5000, 0), false)]
    {
        assert_eq!(stamp.is_settled(began), settled, "{stamp:?}");
    }
    assert!(!at(i64::MAX, 0).is_settled(began));
}
