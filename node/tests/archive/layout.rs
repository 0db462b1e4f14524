//! Writes OCI layouts: blobs by digest, manifests, an index.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How a layer is written.
#[derive(Clone, Copy)]
pub(crate) enum Layer {
    Plain,
    Gzip,
    Zstd,
}

pub(crate) struct Layout {
    path: PathBuf,
    images: RefCell<Vec<Value>>,
}

impl Layout {
    pub(crate) fn new(path: &Path) -> Self {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { path: path.to_owned(), images: RefCell::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A blob's file.
    pub(crate) fn blob(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap();
        self.path.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    }

    fn add_blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(bytes));
        fs::write(self.path.join("blobs/sha256").join(&digest), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    }

    /// A layer of all that is in a directory.
    pub(crate) fn layer(&self, dir: &Path, how: Layer) -> Value {
        self.layer_of(dir, &["."], how)
    }

    pub(crate) fn layer_of(&self, dir: &Path, paths: &[&str], how: Layer) -> Value {
        let (argument, media) = match how {
            Layer::Plain => (None, "application/vnd.oci.image.layer.v1.tar"),
            Layer::Gzip => (Some("-z"), "application/vnd.oci.image.layer.v1.tar+gzip"),
            Layer::Zstd => (Some("--zstd"), "application/vnd.oci.image.layer.v1.tar+zstd"),
        };
        let mut tar = Command::new("tar");
        tar.args(["-c", "--format=pax", "--xattrs", "--xattrs-include=*", "--numeric-owner"]).args(argument);
        let done = tar.arg("-C").arg(dir).args(paths).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        self.add_blob(media, &done.stdout)
    }

    /// Makes it a layout of one image.
    pub(crate) fn image(&self, name: &str, architecture: &str, layers: &[Value]) {
        self.images.borrow_mut().clear();
        self.add_image(name, architecture, layers);
    }

    pub(crate) fn add_image(&self, name: &str, architecture: &str, layers: &[Value]) {
        let config = json!({ "architecture": architecture, "os": "linux" });
        let config = self.add_blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
        let mut image = self.add_blob(media_type, manifest.to_string().as_bytes());
        image["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        image["platform"] = json!({ "architecture": architecture, "os": "linux" });
        self.images.borrow_mut().push(image);
        let index = json!({ "schemaVersion": 2, "manifests": *self.images.borrow() });
        fs::write(self.path.join("index.json"), index.to_string()).unwrap();
    }
}
