use super::*;
use crate::disks::Layout;

const MIB: u64 = 2048;

fn disk(label: &str, partitions: &[&str]) -> Disk {
    let mut text = format!("[[disk]]\ndevice = \"/dev/vda\"\nlabel = \"{label}\"\n");
    for partition in partitions {
        let _ = write!(text, "[[disk.partition]]\n{partition}\n");
    }
    Layout::parse(Path::new("disks.toml"), &text).unwrap().disks.remove(0)
}

fn facts(mib: u64, existing: &[(usize, u64, u64)]) -> Facts {
    let partition = |&(number, start, size): &(usize, u64, u64)| Existing {
        number,
        start: start * MIB,
        sectors: size * MIB,
        kind: "KIND".into(),
        uuid: Some(format!("UUID{number}")),
        name: Some(format!("old {number}")),
        attributes: None,
        boot: false,
    };
    Facts {
        sectors: mib * MIB,
        sector_bytes: 512,
        label: (!existing.is_empty()).then(|| "gpt".to_owned()),
        label_id: Some("ID".into()),
        partitions: existing.iter().map(partition).collect(),
    }
}

/// Start and size of each partition, in MiB.
fn places(plan: &DiskPlan) -> Vec<(u64, u64)> {
    plan.partitions.iter().map(|planned| (planned.start / MIB, planned.sectors / MIB)).collect()
}

const ROOT: &str = "size = \"rest\"\nfilesystem = \"ext4\"\nmount = \"/\"";
const SMALL_ROOT: &str = "size = \"100MiB\"\nfilesystem = \"ext4\"\nmount = \"/\"";

#[test]
fn an_empty_table_is_filled_in_the_order_of_the_layout() {
    let wanted = disk("gpt", &["size = \"10MiB\"", ROOT, "size = \"20MiB\"", "size = \"30MiB\""]);
    let plan = plan(&wanted, &facts(1000, &[(7, 1, 5)])).unwrap();
    assert_eq!(places(&plan), [(1, 10), (11, 938), (949, 20), (969, 30)]);
    assert_eq!(plan.lost, [7]);
    assert!(
        plan.script.starts_with("label: gpt\nunit: sectors\nstart=2048, size=20480, type=0FC6"),
        "{}",
        plan.script
    );
}

#[test]
fn what_is_kept_stays_with_its_names_and_the_rest_goes_around_it() {
    let wanted = disk("gpt", &[ROOT, "keep = true", "size = \"50MiB\""]);
    let plan = plan(&wanted, &facts(1000, &[(1, 1, 100), (2, 200, 100), (3, 400, 100)])).unwrap();
    assert_eq!(places(&plan), [(300, 699), (200, 100), (1, 50)]);
    assert_eq!(plan.lost, [1, 3]);
    let kept = "label-id: ID\n";
    assert!(plan.script.contains(kept), "{}", plan.script);
    let line = "start=409600, size=204800, type=KIND, uuid=UUID2, name=\"old 2\"\n";
    assert!(plan.script.contains(line), "{}", plan.script);
    assert!(plan.partitions[1].keep && !plan.partitions[0].keep);
}

#[test]
fn what_does_not_fit_or_is_not_there_is_named() {
    let error = |wanted: &Disk, facts: &Facts| plan(wanted, facts).unwrap_err().to_string();
    let wanted = disk("gpt", &[SMALL_ROOT, "size = \"901MiB\""]);
    assert_eq!(
        error(&wanted, &facts(1000, &[])),
        "partition 2 of /dev/vda does not fit: it takes 901 MiB, and 898 MiB are free in one piece"
    );
    let after = disk("gpt", &[ROOT, "size = \"999MiB\""]);
    assert!(error(&after, &facts(1000, &[])).starts_with("partition 2 of /dev/vda does not fit"));
    let full = disk("gpt", &["size = \"998MiB\"", ROOT]);
    assert!(error(&full, &facts(1000, &[])).starts_with("partition 2 of /dev/vda does not fit"));
    let kept = disk("gpt", &[SMALL_ROOT, "keep = true"]);
    assert_eq!(
        error(&kept, &facts(1000, &[(1, 1, 9)])),
        "partition 2 of /dev/vda is to be kept and is not there"
    );
    let other = disk("dos", &[SMALL_ROOT, "keep = true"]);
    assert_eq!(
        error(&other, &facts(1000, &[(2, 1, 9)])),
        "/dev/vda has a partition to keep in a table of kind gpt, and the layout says dos"
    );
}

#[test]
fn sectors_of_four_kib_and_the_end_of_a_dos_table_are_respected() {
    let wanted = disk("gpt", &["size = \"1MB\"", ROOT]);
    let four = Facts { sectors: 1000 * 256, sector_bytes: 4096, ..facts(1, &[]) };
    let plan_of_four = plan(&wanted, &four).unwrap();
    assert_eq!((plan_of_four.partitions[0].start, plan_of_four.partitions[0].sectors), (256, 256));
    assert_eq!(
        (plan_of_four.partitions[1].start, plan_of_four.partitions[1].sectors),
        (512, 998 * 256 - 256)
    );
    let large = plan(&disk("dos", &[ROOT]), &facts(4 << 20, &[])).unwrap();
    let root = &large.partitions[0];
    assert!(root.start + root.sectors <= u64::from(u32::MAX), "{root:?}");
}

#[test]
fn file_systems_are_made_with_their_labels_and_arguments() {
    let wanted = disk(
        "gpt",
        &[
            &format!("{ROOT}\nfs-label = \"R\"\nmkfs = [\"-m\", \"0\"]"),
            "size = \"1GB\"\nfilesystem = \"vfat\"",
        ],
    );
    let (program, arguments) = mkfs(FileSystem::Ext4, &wanted.partitions[0], Path::new("/dev/vda1"));
    assert_eq!((program, arguments.join(" ").as_str()), ("mkfs.ext4", "-q -F -L R -m 0 /dev/vda1"));
    let (program, arguments) = mkfs(FileSystem::Vfat, &wanted.partitions[1], Path::new("/dev/vda2"));
    assert_eq!((program, arguments.join(" ").as_str()), ("mkfs.vfat", "/dev/vda2"));
}
