//! Which images there are: one file for each in `images/`.
//!
//! A file is JSON with the publisher's signed statements in base64, written by temporary, sync, rename: what cannot be
//! derived from the blocks is in plain files. What can be is in [`lists`](crate::lists).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use shoal_node::durable;
use shoal_proto::cid::Cid;
use shoal_proto::image::{ImageName, NameRecord, RootRecord};
use shoal_proto::signing::{PublicKey, Signed};

use crate::home::Home;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error("cannot list {}", .path.display())]
    List {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no image {0}")]
    Unknown(ImageName),
}

/// The published images of one seeder.
#[derive(Debug)]
pub struct Catalog {
    images_dir: PathBuf,
    images: BTreeMap<ImageName, Image>,
    damaged: Vec<Damaged>,
}

/// An image file that cannot be believed, and is passed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("image file {} is damaged and passed over: {why}", .path.display())]
pub struct Damaged {
    pub path: PathBuf,
    pub why: String,
}

/// One published image: what the publisher states of it, and what people want to know.
#[derive(Clone, Debug)]
pub struct Image {
    pub name: NameRecord,
    pub signed_name: Signed<NameRecord>,
    pub root: RootRecord,
    pub signed_root: Signed<RootRecord>,
    pub facts: Facts,
}

/// What the capture said, for `images` and `show`. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub source: String,
    /// Seconds since 1970.
    pub captured_at_s: u64,
    pub entries: u64,
    pub chunks: u64,
    pub blocks: u64,
    pub raw_bytes: u64,
    pub compressed_bytes: u64,
    /// The manifest as it travels.
    pub manifest_bytes: u64,
    /// An override that only those get who are entitled to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub confidential: bool,
}

#[derive(Serialize, Deserialize)]
struct ImageFile {
    format: u32,
    signed_name: SignedFile,
    signed_root: SignedFile,
    facts: Facts,
}

#[derive(Serialize, Deserialize)]
struct SignedFile {
    payload: String,
    signature: String,
}

/// Version of the image file; another one is refused.
const FORMAT: u32 = 1;

impl Catalog {
    /// Reads and verifies every image. Whoever goes on to write holds [`Home::lock`].
    pub fn open(home: &Home) -> Result<Self, Error> {
        let images_dir = home.images_dir();
        durable::create_private_dir(&images_dir)?;
        let mut catalog = Self { images_dir, images: BTreeMap::new(), damaged: Vec::new() };
        catalog.load(&home.publisher.public())?;
        for damaged in &catalog.damaged {
            tracing::warn!("{damaged}");
        }
        Ok(catalog)
    }

    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.images.values()
    }

    /// Files that were passed over.
    pub fn damaged(&self) -> &[Damaged] {
        &self.damaged
    }

    pub fn find(&self, name: &ImageName) -> Result<&Image, Error> {
        self.images.get(name).ok_or_else(|| Error::Unknown(name.clone()))
    }

    pub fn find_by_id(&self, image: &Cid) -> Option<&Image> {
        self.images.values().find(|known| known.name.image == *image)
    }

    /// Publishes an image under its name, in place of the one that had it.
    pub fn publish(&mut self, image: Image) -> Result<(), Error> {
        let bytes = encode(&image);
        let name = image.name.name.clone();
        durable::write(&self.images_dir.join(name.as_str()), &bytes, durable::PRIVATE)?;
        self.images.insert(name, image);
        Ok(())
    }

    /// Where the captures of an image leave word for the next one of what they saw of the tree: derived, never
    /// published, and no image by its name.
    pub fn seen_path(&self, name: &ImageName) -> PathBuf {
        self.images_dir.join(format!(".{name}.seen"))
    }

    /// Takes an image out of the catalog; its blocks stay until they are collected.
    pub fn remove(&mut self, name: &ImageName) -> Result<(), Error> {
        let path = self.images_dir.join(self.find(name)?.name.name.as_str());
        std::fs::remove_file(&path).map_err(|source| durable::Error::Write { path, source })?;
        // May never have been written; without its image it says nothing.
        let _ = std::fs::remove_file(self.seen_path(name));
        self.images.remove(name);
        Ok(())
    }

    fn load(&mut self, publisher: &PublicKey) -> Result<(), Error> {
        let failed = |source| Error::List { path: self.images_dir.clone(), source };
        for entry in std::fs::read_dir(&self.images_dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // What an interrupted write left begins with a dot, as no image name does.
            let Ok(name) = entry.file_name().to_string_lossy().parse::<ImageName>() else { continue };
            let Some(bytes) = durable::read(&entry.path())? else { continue };
            let image = decode(&bytes, publisher).and_then(|image| match image.name.name == name {
                true => Ok(image),
                false => Err(format!("it is of image {}", image.name.name)),
            });
            match image {
                Ok(image) => drop(self.images.insert(name, image)),
                // The others are as good as ever.
                Err(why) => self.damaged.push(Damaged { path: entry.path(), why }),
            }
        }
        Ok(())
    }
}

fn encode(image: &Image) -> Vec<u8> {
    let file = ImageFile {
        format: FORMAT,
        signed_name: signed_file(&image.signed_name),
        signed_root: signed_file(&image.signed_root),
        facts: image.facts.clone(),
    };
    serde_json::to_vec_pretty(&file).expect("an image file is plain data")
}

fn signed_file<T: shoal_proto::signing::Statement>(signed: &Signed<T>) -> SignedFile {
    SignedFile { payload: BASE64.encode(signed.payload()), signature: BASE64.encode(signed.signature()) }
}

fn decode(bytes: &[u8], publisher: &PublicKey) -> Result<Image, String> {
    let file: ImageFile = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if file.format != FORMAT {
        return Err(format!("format {}, this build reads {FORMAT}", file.format));
    }
    let signed_name: Signed<NameRecord> = read_signed(&file.signed_name)?;
    let signed_root: Signed<RootRecord> = read_signed(&file.signed_root)?;
    let name = signed_name.verify(publisher).map_err(|error| format!("its name: {error}"))?.into_inner();
    let root =
        signed_root.verify(publisher).map_err(|error| format!("its root record: {error}"))?.into_inner();
    if signed_root.cid() != name.image {
        return Err("its name is of another image".to_owned());
    }
    Ok(Image { name, signed_name, root, signed_root, facts: file.facts })
}

fn read_signed<T: shoal_proto::signing::Statement>(file: &SignedFile) -> Result<Signed<T>, String> {
    let read = |text: &str| BASE64.decode(text.as_bytes()).map_err(|error| error.to_string());
    Ok(Signed::from_parts(read(&file.payload)?, read(&file.signature)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_node::store::Store;
    use std::fs;

    use crate::publish::{CaptureRequest, publish};

    fn published(home: &Home, name: &str) -> Catalog {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("file"), name).unwrap();
        let store = Store::open(&home.store_dir()).unwrap();
        let mut catalog = Catalog::open(home).unwrap();
        let request = CaptureRequest::new(tree.path().to_owned(), name.parse().unwrap());
        publish(home, &store, &mut catalog, &request, &()).unwrap();
        catalog
    }

    #[test]
    fn what_was_published_is_there_at_the_next_opening() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let image = published(&home, "debian").find(&"debian".parse().unwrap()).unwrap().name.image;
        let mut catalog = Catalog::open(&home).unwrap();
        let found = catalog.find_by_id(&image).unwrap();
        assert_eq!(found.name.name.as_str(), "debian");
        assert_eq!(found.facts.entries, 2, "the root and the file");
        catalog.remove(&"debian".parse().unwrap()).unwrap();
        assert_eq!(Catalog::open(&home).unwrap().images().count(), 0);
    }

    #[test]
    fn what_a_capture_saw_is_kept_beside_its_image_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let mut catalog = published(&home, "debian");
        let name = "debian".parse().unwrap();
        assert!(catalog.seen_path(&name).exists());
        let again = Catalog::open(&home).unwrap();
        assert_eq!((again.images().count(), again.damaged().len()), (1, 0), "it is no image");
        catalog.remove(&name).unwrap();
        assert_eq!(fs::read_dir(home.images_dir()).unwrap().count(), 0);
    }

    #[test]
    fn what_an_interrupted_write_left_is_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        published(&home, "debian");
        fs::write(home.images_dir().join(".debian.new"), b"{\"format\":1,").unwrap();
        assert_eq!(Catalog::open(&home).unwrap().images().count(), 1);
    }

    fn complaint(home: &Home) -> String {
        let catalog = Catalog::open(home).unwrap();
        assert_eq!(catalog.images().count(), 0, "the damaged one is passed over");
        catalog.damaged()[0].to_string()
    }

    #[test]
    fn an_image_file_that_is_torn_renamed_or_of_another_publisher_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        published(&home, "debian");
        let file = home.images_dir().join("debian");
        let whole = fs::read(&file).unwrap();

        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert!(complaint(&home).contains("images/debian is damaged"));

        fs::remove_file(&file).unwrap();
        fs::write(home.images_dir().join("other"), &whole).unwrap();
        assert!(complaint(&home).ends_with("it is of image debian"));

        let stranger = tempfile::tempdir().unwrap();
        let stranger = Home::open(stranger.path()).unwrap();
        fs::create_dir_all(stranger.images_dir()).unwrap();
        fs::write(stranger.images_dir().join("debian"), &whole).unwrap();
        assert!(complaint(&stranger).contains("the signature is not the publisher's"));
    }
}
