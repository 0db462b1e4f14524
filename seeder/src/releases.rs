//! Which image each channel is at: the operator's decisions, a file for each channel, and the publisher's signed word
//! for the newest one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_node::clock::unix_s;
use shoal_node::durable;
use shoal_proto::cid::Cid;
use shoal_proto::image::ImageName;
use shoal_proto::release::{Channel, RELEASE_HOLDS_S, Release};
use shoal_proto::signing::Signed;

use crate::home::Home;
use crate::members::as_text;

/// Version of the files; another one is refused.
const FORMAT: u32 = 1;
/// Decisions remembered of each channel; older ones are forgotten.
const DECISIONS_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error("cannot list {}", .path.display())]
    List {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is damaged: {why}", .path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("channel {0} was never released")]
    Unknown(Channel),
    #[error("channel {0} is withdrawn already")]
    Withdrawn(Channel),
}

/// A decision of the operator's about a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    #[serde(with = "as_text")]
    pub channel: Channel,
    /// The image that it is at from now on; none when its newest release is taken back: nobody is to go on towards it.
    pub image: Option<Named>,
}

/// An image, and what it is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    #[serde(with = "as_text")]
    pub name: ImageName,
    #[serde(with = "as_text")]
    pub image: Cid,
}

/// What a channel was at, as `releases --json` prints it. Times in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    pub number: u64,
    /// The image, and the name it had; absent of a withdrawal.
    pub image: Option<String>,
    pub name: Option<String>,
    pub decided_s: u64,
}

/// A channel with its decisions, the newest last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelRecord {
    pub channel: String,
    pub releases: Vec<ReleaseRecord>,
}

#[derive(Serialize, Deserialize)]
struct ChannelFile {
    format: u32,
    #[serde(flatten)]
    record: ChannelRecord,
}

impl ChannelRecord {
    /// The newest decision as the publisher states it at this time.
    fn statement(&self, now_s: u64) -> Option<Release> {
        let newest = self.releases.last()?;
        Some(Release {
            channel: self.channel.parse().ok()?,
            number: newest.number,
            image: newest.image.as_ref().and_then(|image| image.parse().ok()),
            stated_s: now_s,
            holds_s: RELEASE_HOLDS_S,
        })
    }
}

fn path_of(home: &Home, channel: &Channel) -> PathBuf {
    home.releases_dir().join(channel.to_string())
}

fn read(path: &Path) -> Result<Option<ChannelRecord>, Error> {
    let Some(bytes) = durable::read(path)? else { return Ok(None) };
    let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
    let file: ChannelFile = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if file.format != FORMAT {
        return Err(damaged(format!("it has format {}, this build reads {FORMAT}", file.format)));
    }
    if file.record.channel.parse::<Channel>().is_err() {
        return Err(damaged(format!("{:?} is no channel", file.record.channel)));
    }
    for release in &file.record.releases {
        if let Some(image) = &release.image
            && image.parse::<Cid>().is_err()
        {
            return Err(damaged(format!("{image:?} is no image")));
        }
    }
    let numbers = file.record.releases.iter().map(|release| release.number);
    match numbers.is_sorted_by(|one, next| one < next) {
        true => Ok(Some(file.record)),
        false => Err(damaged("its numbers do not grow".to_owned())),
    }
}

/// Every channel, in the order of their names.
pub fn load(home: &Home) -> Result<Vec<ChannelRecord>, Error> {
    let dir = home.releases_dir();
    let listed = match std::fs::read_dir(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(|source| Error::List { path: dir, source })?,
    };
    let mut paths: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
    // What a killed write left begins with a dot.
    paths.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    paths.sort();
    paths.iter().filter_map(|path| read(path).transpose()).collect()
}

/// The publisher's word for every channel, as of now.
pub fn statements(home: &Home) -> Result<Vec<Signed<Release>>, Error> {
    let now_s = unix_s();
    let records = load(home)?;
    let stated = records.iter().filter_map(|record| record.statement(now_s));
    Ok(stated.map(|release| Signed::sign(&release, &home.publisher)).collect())
}

/// The newest release of a channel and its image.
pub fn newest(home: &Home, channel: &Channel) -> Result<(u64, Cid), Error> {
    let record = read(&path_of(home, channel))?.ok_or_else(|| Error::Unknown(channel.clone()))?;
    let release = record.statement(0).ok_or_else(|| Error::Unknown(channel.clone()))?;
    let image = release.image.ok_or_else(|| Error::Withdrawn(channel.clone()))?;
    Ok((release.number, image))
}

/// Takes a decision, and remembers it before anyone hears of it. Whoever calls holds [`Home::lock`].
pub fn decide(home: &Home, decision: &Decision) -> Result<ReleaseRecord, Error> {
    let Decision { channel, image } = decision;
    if image.is_none() {
        newest(home, channel)?;
    }
    let path = path_of(home, channel);
    let mut record =
        read(&path)?.unwrap_or_else(|| ChannelRecord { channel: channel.to_string(), releases: Vec::new() });
    let decided = ReleaseRecord {
        number: record.releases.last().map_or(0, |newest| newest.number) + 1,
        image: image.as_ref().map(|named| named.image.to_string()),
        name: image.as_ref().map(|named| named.name.to_string()),
        decided_s: unix_s(),
    };
    record.releases.push(decided.clone());
    let surplus = record.releases.len().saturating_sub(DECISIONS_MAX);
    record.releases.drain(..surplus);
    durable::create_private_dir(&home.releases_dir())?;
    let file = ChannelFile { format: FORMAT, record };
    let text = serde_json::to_vec_pretty(&file).expect("a channel is plain data");
    durable::write(&path, &text, durable::PRIVATE)?;
    Ok(decided)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(channel: &Channel, image: Option<Cid>) -> Decision {
        let named = |image| Named { name: "debian".parse().unwrap(), image };
        Decision { channel: channel.clone(), image: image.map(named) }
    }

    #[test]
    fn each_decision_has_the_next_number_and_the_newest_is_stated() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let channel: Channel = "stable".parse().unwrap();
        let release = |image| decide(&home, &decision(&channel, Some(image)));
        let withdraw = || decide(&home, &decision(&channel, None));
        assert!(statements(&home).unwrap().is_empty());
        assert!(matches!(newest(&home, &channel), Err(Error::Unknown(_))));
        assert!(matches!(withdraw(), Err(Error::Unknown(_))));
        let [one, two] = [Cid::of(b"one"), Cid::of(b"two")];
        assert_eq!(release(one).unwrap().number, 1);
        assert_eq!(release(two).unwrap().number, 2);
        assert_eq!(newest(&home, &channel).unwrap(), (2, two));
        let stated =
            |home: &Home| statements(home).unwrap()[0].verify(&home.publisher.public()).unwrap().into_inner();
        assert_eq!((stated(&home).number, stated(&home).image), (2, Some(two)));
        assert_eq!(withdraw().unwrap().number, 3);
        assert_eq!((stated(&home).number, stated(&home).image), (3, None));
        assert!(matches!(withdraw(), Err(Error::Withdrawn(_))));
        assert_eq!(release(one).unwrap().number, 4);
        let records = load(&Home::open(dir.path()).unwrap()).unwrap();
        assert_eq!((records.len(), records[0].releases.len()), (1, 4));
    }

    #[test]
    fn a_damaged_channel_is_named_and_one_that_forgets_goes_on_counting() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let channel: Channel = "c".parse().unwrap();
        for _ in 0..DECISIONS_MAX + 3 {
            decide(&home, &decision(&channel, Some(Cid::of(b"x")))).unwrap();
        }
        let records = load(&home).unwrap();
        assert_eq!(records[0].releases.len(), DECISIONS_MAX);
        assert_eq!(newest(&home, &channel).unwrap().0, DECISIONS_MAX as u64 + 3);
        durable::write(&path_of(&home, &channel), b"{", durable::PRIVATE).unwrap();
        let error = load(&home).unwrap_err().to_string();
        assert!(error.contains("releases/c is damaged"), "{error}");
    }
}
