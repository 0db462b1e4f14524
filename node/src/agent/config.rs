//! What an agent is told, in a TOML file.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use shoal_proto::fleet::{GROUPS_MAX, NAME_BYTES_MAX};
use shoal_proto::rate::Rate;
use shoal_proto::release::Channel;
use shoal_proto::ticket::Ticket;
use shoal_proto::zone::Zone;

use super::window::Window;
use crate::durable;
use crate::join::JoinOptions;
use crate::peer::Limits;
use crate::update::TreeOptions;

/// Bytes kept for a rollback when nobody says otherwise: whatever the image.
const KEEP_DEFAULT: u64 = u64::MAX;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error("{} is not there", .0.display())]
    Missing(PathBuf),
    #[error("{}: {why}", .path.display())]
    Malformed { path: PathBuf, why: String },
}

/// How this machine takes part in a fleet.
#[derive(Clone, Debug)]
pub struct Config {
    pub join: JoinOptions,
    pub target: PathBuf,
    pub tree: TreeOptions,
    pub channel: Channel,
    /// What the machine calls itself: for people, and for lists of machines.
    pub host: String,
    pub groups: BTreeSet<String>,
    pub windows: Vec<Window>,
    pub health: Health,
    /// Restarts the machine after its tree changed.
    pub reboot: Option<String>,
}

/// What has to hold before a release is kept.
#[derive(Clone, Debug)]
pub struct Health {
    /// A shell command that succeeds when the machine is well.
    pub command: Option<String>,
    /// How long it may run.
    pub timeout: Duration,
    /// It is tried again until it succeeds, for this long in all.
    pub confirm_within: Duration,
    /// The machine has to reach a peer too: a release that cuts it off is not kept.
    pub needs_contact: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    /// The seeder's ticket, or `@FILE`.
    ticket: String,
    target: PathBuf,
    #[serde(deserialize_with = "text")]
    channel: Channel,
    host: Option<String>,
    #[serde(default)]
    groups: BTreeSet<String>,
    #[serde(default, deserialize_with = "option")]
    rack: Option<Zone>,
    #[serde(default)]
    listen: Vec<SocketAddr>,
    #[serde(default, deserialize_with = "option")]
    limit_up: Option<Rate>,
    #[serde(default, deserialize_with = "option")]
    limit_up_per_peer: Option<Rate>,
    #[serde(default, deserialize_with = "option")]
    limit_down: Option<Rate>,
    #[serde(default, deserialize_with = "list")]
    window: Vec<Window>,
    health: Option<String>,
    #[serde(default = "minute", deserialize_with = "duration")]
    health_timeout: Duration,
    #[serde(default = "five_minutes", deserialize_with = "duration")]
    confirm_within: Duration,
    #[serde(default = "yes")]
    needs_contact: bool,
    reboot: Option<String>,
    rules: Option<PathBuf>,
    #[serde(default)]
    delete: bool,
    #[serde(default)]
    switch: bool,
    keep: Option<u64>,
}

fn minute() -> Duration {
    Duration::from_secs(60)
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

fn yes() -> bool {
    true
}

fn text<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn option<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    text(deserializer).map(Some)
}

fn list<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.into_iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    humantime::parse_duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, Error> {
        let malformed = |why: String| Error::Malformed { path: path.to_owned(), why };
        let bytes = durable::read(path)?.ok_or_else(|| Error::Missing(path.to_owned()))?;
        let content = String::from_utf8(bytes).map_err(|_| malformed("it is no text".to_owned()))?;
        let file: ConfigFile = toml::from_str(&content).map_err(|error| {
            let line = 1 + error.span().map_or(0, |span| content[..span.start].matches('\n').count());
            malformed(format!("line {line}: {}", error.message()))
        })?;
        let ticket = read_ticket(path, &file.ticket)?;
        let host = file.host.unwrap_or_else(host_name);
        let too_long = |name: &&String| name.is_empty() || name.len() > NAME_BYTES_MAX;
        if let Some(name) = std::iter::once(&host).chain(&file.groups).find(too_long) {
            return Err(malformed(format!("{name:?} is no name of 1 to {NAME_BYTES_MAX} bytes")));
        }
        if file.groups.len() > GROUPS_MAX {
            return Err(malformed(format!("a machine is in at most {GROUPS_MAX} groups")));
        }
        let listen = if file.listen.is_empty() { vec![([0, 0, 0, 0], 0).into()] } else { file.listen };
        let limits = Limits { up: file.limit_up, up_per_peer: file.limit_up_per_peer, down: file.limit_down };
        let rack = file.rack.unwrap_or(Zone::UNKNOWN);
        Ok(Self {
            join: JoinOptions { ticket, store: None, listen, rack, limits },
            target: file.target,
            tree: TreeOptions {
                rules: file.rules,
                delete: file.delete,
                switch: file.switch,
                whole: false,
                keep_bytes: file.keep.unwrap_or(KEEP_DEFAULT),
            },
            channel: file.channel,
            host,
            groups: file.groups,
            windows: file.window,
            health: Health {
                command: file.health,
                timeout: file.health_timeout,
                confirm_within: file.confirm_within,
                needs_contact: file.needs_contact,
            },
            reboot: file.reboot,
        })
    }
}

fn read_ticket(config: &Path, text: &str) -> Result<Ticket, Error> {
    let from_file;
    let text = match text.strip_prefix('@') {
        Some(path) => {
            let path = config.parent().unwrap_or(config).join(path);
            let bytes = durable::read(&path)?.ok_or(Error::Missing(path))?;
            from_file = String::from_utf8_lossy(&bytes).into_owned();
            from_file.trim()
        }
        None => text,
    };
    let malformed = |error: shoal_proto::ticket::TicketError| Error::Malformed {
        path: config.to_owned(),
        why: format!("its ticket: {error}"),
    };
    text.parse().map_err(malformed)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    shoal_proto::fleet::cut(name.trim(), NAME_BYTES_MAX).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::signing::Keypair;
    use shoal_proto::ticket::SwarmSecret;

    fn ticket() -> String {
        let key = Keypair::ed25519_from_bytes([1; 32]).unwrap().public();
        Ticket {
            seeder: key.to_peer_id(),
            addresses: vec!["127.0.0.1:9".parse().unwrap()],
            publisher: key,
            secret: SwarmSecret::from_bytes([1; 32]),
            image: None,
            members: 0,
        }
        .to_string()
    }

    fn load(text: &str) -> Result<Config, Error> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ticket"), format!("{}\n", ticket())).unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    const SHORTEST: &str = "ticket = '@ticket'\ntarget = '/srv/tree'\nchannel = 'stable'\n";

    #[test]
    fn what_is_not_said_has_a_default() {
        let config = load(SHORTEST).unwrap();
        assert_eq!(config.join.ticket.to_string(), ticket());
        assert_eq!((config.channel.to_string(), config.windows.len()), ("stable".to_owned(), 0));
        assert!(!config.host.is_empty() && config.health.needs_contact && config.reboot.is_none());
        assert_eq!(config.health.confirm_within, Duration::from_secs(300));
    }

    #[test]
    fn everything_can_be_said() {
        let text = format!(
            "{SHORTEST}host = 'n1'\ngroups = ['web']\nrack = 'r/1'\nlisten = ['127.0.0.1:0']\nlimit_down = '1MB/s'\n\
             window = ['Sat 02:00-05:00']\nhealth = 'true'\nhealth_timeout = '2s'\nconfirm_within = '3s'\n\
             needs_contact = false\nreboot = 'reboot'\ndelete = true\nswitch = true\nkeep = 9\nrules = '/r'\n"
        );
        let config = load(&text).unwrap();
        assert_eq!((config.host.as_str(), config.groups.len(), config.windows.len()), ("n1", 1, 1));
        assert_eq!(config.health.timeout, Duration::from_secs(2));
        assert_eq!(config.tree.keep_bytes, 9);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let refused = [
            (format!("{SHORTEST}windows = []\n"), "line 4: unknown field `windows`"),
            (format!("{SHORTEST}window = ['noon']\n"), "\"noon\" is no window"),
            (format!("{SHORTEST}rack = 'a b'\n"), "rack label"),
            (format!("{SHORTEST}groups = ['']\n"), "\"\" is no name"),
            (SHORTEST.replace("stable", "a/b"), "line 3: not a channel: \"a/b\""),
            (SHORTEST.replace("@ticket", "@none"), "none is not there"),
            (SHORTEST.replace("@ticket", "shoal:x"), "its ticket"),
            (SHORTEST.replace("target = '/srv/tree'\n", ""), "missing field `target`"),
        ];
        for (text, why) in refused {
            let error = load(&text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
