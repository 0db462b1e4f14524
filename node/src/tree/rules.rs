//! Which paths the image decides and which the machine.
//!
//! ```text
//! managed PATTERN    exactly as the image has it (the default)
//! seed PATTERN       created when it is absent; then the machine's own, with all that is in it
//! ignore PATTERN     never read, made, changed or removed, with all that is in it
//! present PATTERN    as the image has it where it is there, and not created where it is not
//! ```
//! One rule a line; `#` begins a comment line. Patterns are those of [`exclude`](super::exclude). Of the rules that
//! match a path the first decides; a path that none matches is what its directory is. A machine's own file
//! ([`LOCAL_RULES`] in the tree, or one that is named) is read before anything is compared, and its rules come before
//! [`DEFAULT_RULES`]: a last line `managed **` switches those off. Where a directory whose content is ignored is a symbolic
//! link on the machine, the link stays.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use shoal_proto::image::ImagePath;

use super::exclude::{Excludes, PatternError};

/// Where a tree keeps rules of its own, below its top.
pub const LOCAL_RULES: &str = "etc/shoal/rules";

/// What a running machine owns, whatever its distribution.
pub const DEFAULT_RULES: &str = "\
ignore /proc/*
ignore /sys/*
ignore /dev/*
ignore /run/*
ignore /tmp/*
ignore /var/tmp/*
ignore lost+found
ignore /home/*
ignore /srv/*
ignore /var/log/*
ignore /var/run/*
ignore /var/lock/*
ignore /var/spool/*
ignore /var/lib/shoal
ignore /var/lib/nfs
ignore /var/lib/systemd/random-seed
ignore /var/lib/dhcp/*
ignore /var/lib/dbus/machine-id
ignore /var/lib/NetworkManager/*
ignore /etc/lvm/backup/*
ignore /etc/lvm/archive/*
seed /etc/fstab
seed /etc/mtab
seed /etc/hostname
seed /etc/machine-id
seed /etc/adjtime
seed /etc/resolv.conf
seed /etc/ssh/ssh_host_*
seed /etc/shoal
seed /etc/udev/rules.d/70-persistent-net.rules
seed /boot/grub/device.map
";

/// What is left of them when a tree is replaced as a whole.
const WHOLE_RULES: &str = "\
ignore /proc/*
ignore /sys/*
ignore /dev/*
ignore /run/*
ignore lost+found
ignore /var/lib/shoal
seed /etc/hostname
seed /etc/machine-id
seed /etc/ssh/ssh_host_*
";

/// Who decides a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Managed,
    Seed,
    Ignored,
    Present,
}

/// More than anybody writes: what has no end is not read to it.
const RULES_BYTES_MAX: u64 = 1 << 20;

/// Rules in order.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<(Class, Excludes)>,
    /// Ignored whatever the rules say.
    own: Option<ImagePath>,
}

#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}, line {line}: {what:?} is none of managed, seed, ignore, present", path.display())]
    Class { path: PathBuf, line: usize, what: String },
    #[error("{}, line {line}", path.display())]
    Pattern { path: PathBuf, line: usize, source: PatternError },
}

impl Rules {
    /// The rules of a file, then [`DEFAULT_RULES`]. `file` must exist; without one, `LOCAL_RULES` in `target` is read if it
    /// is a file of the tree.
    pub fn load(target: &Path, file: Option<&Path>) -> Result<Self, RulesError> {
        Self::load_with(target, file, &[])
    }

    /// As [`load`](Self::load), with further rules between those of the file and the default ones.
    pub fn load_with(target: &Path, file: Option<&Path>, further: &[String]) -> Result<Self, RulesError> {
        let mut rules = Self::default();
        let local = target.join(LOCAL_RULES);
        let (path, needed) = file.map_or((local.as_path(), false), |file| (file, true));
        let inside = needed || std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
        if inside {
            let text = read(path).map_err(|source| RulesError::Read { path: path.to_owned(), source })?;
            rules.parse(path, &text)?;
        }
        rules.parse(Path::new("the lists of the cluster file"), further.join("\n").as_bytes())?;
        rules.parse(Path::new("the default rules"), DEFAULT_RULES.as_bytes())?;
        Ok(rules)
    }

    /// For a tree that is replaced as a whole: these rules, and what makes the machine this one.
    pub fn of_whole(further: &[String]) -> Result<Self, RulesError> {
        let mut rules = Self::default();
        rules.parse(Path::new("the lists of the cluster file"), further.join("\n").as_bytes())?;
        rules.parse(Path::new("the default rules"), WHOLE_RULES.as_bytes())?;
        Ok(rules)
    }

    /// No rule: the image decides everything.
    pub fn none() -> Self {
        Self::default()
    }

    /// Ignores also `directory`, where that is in `target`, before any rule: the state without which nothing leads back.
    #[must_use]
    pub fn without(mut self, target: &Path, directory: &Path) -> Self {
        if let (Ok(target), Ok(directory)) = (target.canonicalize(), directory.canonicalize())
            && let Ok(below) = directory.strip_prefix(target)
        {
            self.own = ImagePath::parse(below.as_os_str().as_bytes()).ok().filter(|path| !path.is_root());
        }
        self
    }

    fn parse(&mut self, path: &Path, text: &[u8]) -> Result<(), RulesError> {
        for (at, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
            let (word, pattern) = (&line[..end], line[end..].trim_ascii());
            let class = match word {
                b"managed" => Class::Managed,
                b"seed" => Class::Seed,
                b"ignore" => Class::Ignored,
                b"present" => Class::Present,
                _ => {
                    let what = String::from_utf8_lossy(word).into_owned();
                    return Err(RulesError::Class { path: path.to_owned(), line: at + 1, what });
                }
            };
            let pattern = Excludes::new([pattern]).map_err(|source| RulesError::Pattern {
                path: path.to_owned(),
                line: at + 1,
                source,
            })?;
            self.rules.push((class, pattern));
        }
        Ok(())
    }

    /// The class of `path` (components joined with slashes) in a directory of class `around`.
    pub fn class(&self, path: &[u8], directory: bool, around: Class) -> Class {
        let own = self.own.as_ref().and_then(|own| path.strip_prefix(own.bytes()));
        if own.is_some_and(|rest| rest.is_empty() || rest[0] == b'/') {
            return Class::Ignored;
        }
        let decides = |(_, pattern): &&(Class, Excludes)| pattern.matches(path, directory);
        self.rules.iter().find(decides).map_or(around, |(class, _)| *class)
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.own.is_none()
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(RULES_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > RULES_BYTES_MAX {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        let mut rules = Rules::none();
        rules.parse(Path::new("rules"), text.as_bytes()).unwrap();
        rules
    }

    #[test]
    fn the_first_match_decides_and_a_directory_decides_for_what_is_in_it() {
        let rules = rules("# mine\nmanaged /home/admin\nignore /home/*\n\n  seed  *.conf\n");
        let class = |path: &str, around| rules.class(path.as_bytes(), false, around);
        assert_eq!(class("home", Class::Managed), Class::Managed);
        assert_eq!(class("home/x", Class::Managed), Class::Ignored);
        assert_eq!(class("home/x/y", Class::Ignored), Class::Ignored);
        assert_eq!(class("home/admin", Class::Managed), Class::Managed);
        assert_eq!(class("etc/a.conf", Class::Managed), Class::Seed);
    }

    #[test]
    fn a_local_file_comes_before_the_defaults_and_can_switch_them_off() {
        let target = tempfile::tempdir().unwrap();
        let defaults = Rules::load(target.path(), None).unwrap();
        assert_eq!(defaults.class(b"etc/fstab", false, Class::Managed), Class::Seed);
        std::fs::create_dir_all(target.path().join("etc/shoal")).unwrap();
        std::fs::write(target.path().join(LOCAL_RULES), "ignore /opt\nmanaged **\n").unwrap();
        let local = Rules::load(target.path(), None).unwrap();
        assert_eq!(local.class(b"etc/fstab", false, Class::Managed), Class::Managed);
        assert_eq!(local.class(b"opt", true, Class::Managed), Class::Ignored);
    }

    #[test]
    fn what_is_left_out_is_ignored_whatever_the_rules_say() {
        let target = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(target.path().join("data/node")).unwrap();
        let rules = rules("managed **\n");
        let class = |rules: &Rules, path: &str| rules.class(path.as_bytes(), true, Class::Managed);
        let without = rules.clone().without(target.path(), &target.path().join("data/../data/node"));
        for (path, expected) in [
            ("data/node", Class::Ignored),
            ("data/node/key", Class::Ignored),
            ("data/node2", Class::Managed),
            ("data", Class::Managed),
        ] {
            assert_eq!(class(&without, path), expected, "{path}");
        }
        let elsewhere = rules.without(&target.path().join("data/node"), target.path());
        assert_eq!(class(&elsewhere, "data"), Class::Managed);
    }

    #[test]
    fn a_file_without_end_is_refused() {
        let target = tempfile::tempdir().unwrap();
        let error = Rules::load(target.path(), Some(Path::new("/dev/zero"))).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /dev/zero");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let mut rules = Rules::none();
        let error = rules.parse(Path::new("r"), b"seed /a\nkeep /b\n").unwrap_err().to_string();
        assert_eq!(error, "r, line 2: \"keep\" is none of managed, seed, ignore, present");
        assert!(matches!(rules.parse(Path::new("r"), b"seed"), Err(RulesError::Pattern { line: 1, .. })));
    }
}
