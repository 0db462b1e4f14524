use super::*;

const GOOD: &str = r#"
[[disk]]
device = "/dev/vda"
label = "gpt"

[[disk.partition]]
size = "512MiB"
filesystem = "vfat"
mount = "/boot/efi"

[[disk.partition]]
size = "rest"
filesystem = "ext4"
mount = "/"
name = "root"
fs-label = "ROOT"
mkfs = ["-m", "0"]
options = "noatime"

[[disk.partition]]
keep = true
filesystem = "xfs"
mount = "/home"

[[disk.partition]]
size = "2 GB"
filesystem = "swap"

[[disk]]
device = "/dev/vdb"
label = "dos"
[[disk.partition]]
size = "1TiB"
type = "lvm"
boot = true
"#;

fn parse(text: &str) -> Result<Layout, LayoutError> {
    Layout::parse(Path::new("disks.toml"), text)
}

#[test]
fn a_layout_is_read_with_what_it_leaves_out() {
    let layout = parse(GOOD).unwrap();
    let partitions = &layout.disks[0].partitions;
    let extents: Vec<Extent> = partitions.iter().map(|partition| partition.extent).collect();
    assert_eq!(extents, [Extent::Bytes(512 << 20), Extent::Rest, Extent::Kept, Extent::Bytes(2_000_000_000)]);
    let kinds: Vec<PartitionType> = partitions.iter().map(|partition| partition.kind).collect();
    use PartitionType::{Esp, Linux, Swap};
    assert_eq!(kinds, [Esp, Linux, Linux, Swap]);
    assert_eq!(partitions[1].mkfs, ["-m", "0"]);
    assert_eq!((layout.disks[1].label, layout.disks[1].partitions[0].boot), (Label::Dos, true));
    let points: Vec<&Path> = layout.mounts().into_iter().map(|(point, _)| point).collect();
    assert_eq!(points, ["/", "/boot/efi", "/home"].map(Path::new));
}

/// What to replace in the good layout, by what, and the error.
const MALFORMED: &[(&str, &str, &str)] = &[
    ("size = \"rest\"", "size = rest", "12: string values must be quoted, expected literal string"),
    ("label = \"gpt\"\n", "", "2: missing field `label`"),
    ("name = \"root\"", "sise = \"1GB\"", "15: unknown field `sise`, expected one of `size`"),
    (
        "[[disk]]\ndevice = \"/dev/vdb\"",
        "[[disc]]\ndevice = \"/dev/vdb\"",
        "29: unknown field `disc`, expected `disk`",
    ),
    ("keep = true", "keep = \"yes\"", "21: invalid type: string \"yes\", expected a boolean"),
    ("\"/dev/vda\"", "\"vda\"", "3: device \"vda\": expected a path below /dev"),
    ("\"/dev/vda\"", "\"/dev/../etc\"", "3: device \"/dev/../etc\": expected a path below /dev"),
    ("\"/dev/vdb\"", "\"/dev/vda\"", "29: /dev/vda is here twice: expected each device once"),
    ("\"gpt\"", "\"msdos\"", "4: label \"msdos\": expected \"gpt\", \"dos\""),
    ("512MiB", "512M", "7: size \"512M\": expected a size such as \"512MiB\" or \"20GB\", or \"rest\""),
    ("512MiB", "0GB", "7: size \"0GB\": expected a size"),
    ("512MiB", "-1GB", "7: size \"-1GB\": expected a size"),
    ("512MiB", "99999999999TiB", "7: size \"99999999999TiB\": expected a size"),
    ("512MiB", "rest", "11: a second partition takes the rest: expected size = \"rest\" once a disk"),
    ("size = \"512MiB\"\n", "", "6: a partition has no size: expected a size"),
    (
        "keep = true",
        "keep = true\nsize = \"1GB\"",
        "22: a kept partition has a size: expected size or keep, not both",
    ),
    (
        "\"xfs\"",
        "\"zfs\"",
        "22: filesystem \"zfs\": expected \"ext4\", \"xfs\", \"btrfs\", \"vfat\", \"swap\"",
    ),
    ("filesystem = \"xfs\"\n", "", "22: /home has no file system: expected filesystem = \"ext4\""),
    ("\"/home\"", "\"home\"", "23: mount \"home\": expected an absolute path without blanks and \"..\""),
    ("\"/home\"", "\"/home/../etc\"", "23: mount \"/home/../etc\": expected an absolute path"),
    ("\"/home\"", "\"/home/\"", "23: mount \"/home/\": expected an absolute path"),
    ("\"/home\"", "\"/\"", "23: / is kept: expected a file system made anew"),
    ("\"/boot/efi\"", "\"/\"", "9: / is vfat: expected a file system that keeps owners and modes"),
    (
        "\"/home\"",
        "\"/boot/efi\"",
        "20: a second partition is mounted at /boot/efi: expected each mount point once",
    ),
    (
        "mount = \"/\"\n",
        "mount = \"/srv\"\n",
        "1: no partition is mounted at /: expected one with mount = \"/\"",
    ),
    (
        "filesystem = \"swap\"",
        "filesystem = \"swap\"\nmount = \"/swap\"",
        "28: swap is mounted: expected no mount",
    ),
    ("name = \"root\"", "name = \"ro\\\"ot\"", "15: name \"ro\\\"ot\": expected 1 to 36 letters"),
    ("\"lvm\"", "\"bios-boot\"", "34: type \"bios-boot\" on label \"dos\": expected label \"gpt\""),
    ("\"lvm\"", "\"zfs\"", "34: type \"zfs\": expected \"linux\", \"esp\""),
    ("boot = true", "name = \"b\"", "35: a name on label \"dos\": expected label \"gpt\", or no name"),
    ("name = \"root\"", "boot = true", "15: boot on label \"gpt\": expected label \"dos\""),
    ("\"ROOT\"", "\"THE ROOT OF IT ALL\"", "16: fs-label \"THE ROOT OF IT ALL\": expected 1 to 16 letters"),
    ("keep = true", "keep = true\nfs-label = \"h\"", "22: fs-label where no file system is made: expected"),
    ("boot = true", "mkfs = []", "35: mkfs where no file system is made: expected a filesystem, and no keep"),
    ("\"noatime\"", "\"no atime\"", "18: options \"no atime\": expected words with commas between"),
    ("boot = true", "options = \"ro\"", "35: options without a mount: expected mount"),
];

#[test]
fn a_malformed_layout_says_where_what_is_wrong_and_what_was_expected() {
    for (old, new, error) in MALFORMED {
        assert!(GOOD.contains(old), "{old}");
        let said = parse(&GOOD.replacen(old, new, 1)).unwrap_err().to_string();
        assert!(said.starts_with(&format!("disks.toml:{error}")), "{new}: {said}");
        assert!(said.contains("expected") || said.contains("missing"), "{new}: {said}");
    }
    let none = "1: there is no disk: expected a table [[disk]]";
    assert_eq!(parse("").unwrap_err().to_string(), format!("disks.toml:{none}"));
    let five = "[[disk.partition]]\nsize = \"1GB\"\n".repeat(4);
    let said = parse(&format!("{GOOD}{five}")).unwrap_err().to_string();
    assert!(said.contains(":29: 5 partitions on /dev/vdb: expected 1 to 4"), "{said}");
}

#[test]
fn a_layout_that_cannot_be_read_is_named() {
    let error = Layout::read(Path::new("/nowhere/disks.toml")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nowhere/disks.toml");
}
