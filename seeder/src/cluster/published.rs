//! From a cluster file to what hosts are told: overrides are captured, every host's layers are folded to see that they
//! make a tree, and a copy of the file and its scripts is kept, so that what was published stays what it was.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_node::manifest::{self, load_manifest};
use shoal_node::store::Store;
use shoal_node::tree::capture::CaptureProgress;
use shoal_proto::image::layers::{self, LayerError};
use shoal_proto::image::{ImageName, Manifest};

use super::resolve::{CommandLine, Resolved};
use super::{Cluster, Problem, file};
use crate::catalog::{self, Catalog};
use crate::home::Home;
use crate::publish::{self, CaptureRequest, Published, publish};

const FILE: &str = "cluster.toml";
const SCRIPTS: &str = "scripts";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is wrong with the cluster file.
    #[error("{}", listed(.0))]
    Problems(Vec<Problem>),
    #[error(transparent)]
    Publish(#[from] publish::Error),
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    #[error("cannot keep {}", .path.display())]
    Keep {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the layers of {host} make no tree ({})", .names.join(" < "))]
    Fold {
        host: String,
        names: Vec<String>,
        #[source]
        source: LayerError,
    },
    #[error("the published cluster file is damaged: {0}")]
    Damaged(Problem),
}

fn listed(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}

/// What a publication did, as `--json` prints it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterReport {
    pub hosts: usize,
    pub groups: usize,
    pub scripts: usize,
    pub overrides: Vec<Published>,
}

/// Checks a cluster file, captures its overrides, and keeps it as the published one. Whoever calls holds [`Home::lock`].
pub fn publish_cluster(
    home: &Home,
    store: &Store,
    catalog: &mut Catalog,
    file: &Path,
    progress: &dyn CaptureProgress,
) -> Result<(Cluster, ClusterReport), Error> {
    let cluster = super::read(file).map_err(Error::Problems)?;
    check_images(&cluster, catalog).map_err(Error::Problems)?;
    let mut overrides = Vec::new();
    for name in cluster.overrides() {
        let folder = cluster.override_dir.join(name.as_str());
        let source = folder.canonicalize().map_err(|source| Error::Keep { path: folder, source })?;
        // Overrides are small: each is read whole, whatever its files' times say.
        let request = CaptureRequest {
            reuse: false,
            confidential: cluster.confidential.contains(name),
            ..CaptureRequest::new(source, name.image_name())
        };
        overrides.push(publish(home, store, catalog, &request, progress)?);
    }
    check_folds(&cluster, catalog, store)?;
    keep(home, &cluster)?;
    let report = ClusterReport {
        hosts: cluster.host_names().len(),
        groups: cluster.groups.len(),
        scripts: cluster.scripts.len(),
        overrides,
    };
    Ok((cluster, report))
}

/// The cluster that was published last.
pub fn load(home: &Home) -> Result<Option<Cluster>, Error> {
    let folder = home.cluster_dir();
    // Killed between the two renames of a publication.
    let old = folder.with_extension("old");
    if !folder.exists() && old.exists() {
        fs::rename(&old, &folder).map_err(|source| Error::Keep { path: folder.clone(), source })?;
    }
    let file = folder.join(FILE);
    if !file.is_file() {
        return Ok(None);
    }
    match file::read_with(&file, Some(&folder.join(SCRIPTS))) {
        Ok(cluster) => Ok(Some(cluster)),
        Err(mut problems) => Err(Error::Damaged(problems.swap_remove(0))),
    }
}

fn check_images(cluster: &Cluster, catalog: &Catalog) -> Result<(), Vec<Problem>> {
    let missing = cluster.images().into_iter().filter(|(name, _)| catalog.find(name).is_err());
    let problem = |(name, line): (&ImageName, usize)| Problem {
        file: cluster.file.clone(),
        line,
        what: format!("there is no image {name}, expected one that was captured (see shoal-seeder images)"),
    };
    let problems: Vec<Problem> = missing.map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Folds what each host gets, each combination once.
fn check_folds(cluster: &Cluster, catalog: &Catalog, store: &Store) -> Result<(), Error> {
    let mut shelf = Manifests::new(catalog, store);
    let mut seen = std::collections::BTreeSet::new();
    for host in cluster.host_names() {
        let resolved = cluster.resolve(host, &CommandLine::default()).expect("the file names it");
        if seen.insert((
            resolved.image.clone(),
            resolved.layers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(),
        )) {
            shelf.fold(&resolved)?;
        }
    }
    Ok(())
}

/// Manifests of the catalog's images, each read once.
#[derive(Debug)]
pub struct Manifests<'s> {
    catalog: &'s Catalog,
    store: &'s Store,
    read: BTreeMap<ImageName, (Arc<Manifest>, bool)>,
}

impl<'s> Manifests<'s> {
    pub fn new(catalog: &'s Catalog, store: &'s Store) -> Self {
        Self { catalog, store, read: BTreeMap::new() }
    }

    /// The manifest, and whether the image is confidential.
    pub fn of(&mut self, name: &ImageName) -> Result<(Arc<Manifest>, bool), Error> {
        if let Some(known) = self.read.get(name) {
            return Ok(known.clone());
        }
        let image = self.catalog.find(name)?;
        let read = (Arc::new(load_manifest(self.store, &image.root)?), image.facts.confidential);
        self.read.insert(name.clone(), read.clone());
        Ok(read)
    }

    /// The image and the layers of a host, the lowest first.
    pub fn layers(&mut self, resolved: &Resolved<'_>) -> Result<Vec<(Arc<Manifest>, bool)>, Error> {
        let mut layers = vec![self.of(&resolved.image)?];
        for (name, _) in &resolved.layers {
            layers.push(self.of(&name.image_name())?);
        }
        Ok(layers)
    }

    /// What the host's tree is.
    pub fn fold(&mut self, resolved: &Resolved<'_>) -> Result<layers::Effective, Error> {
        let owned = self.layers(resolved)?;
        layers::fold(&borrowed(&owned), &|_, _| false).map_err(|source| Error::Fold {
            host: resolved.host.to_string(),
            names: resolved.names(),
            source,
        })
    }
}

/// Layers as the fold takes them.
pub fn borrowed(owned: &[(Arc<Manifest>, bool)]) -> Vec<layers::Layer<'_>> {
    owned
        .iter()
        .map(|(manifest, confidential)| layers::Layer { manifest, confidential: *confidential })
        .collect()
}

/// Copies the file and the scripts; all at once, in place of what was published before.
fn keep(home: &Home, cluster: &Cluster) -> Result<(), Error> {
    let kept = home.cluster_dir();
    let (new, old) = (kept.with_extension("new"), kept.with_extension("old"));
    let write = || -> io::Result<()> {
        for leftover in [&new, &old] {
            match fs::remove_dir_all(leftover) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::create_dir_all(&new)?;
        copy_synced(&fs::read(&cluster.file)?, &new.join(FILE))?;
        for script in &cluster.scripts {
            let stage = new.join(SCRIPTS).join(script.stage.name());
            fs::create_dir_all(&stage)?;
            copy_synced(&script.content, &stage.join(&script.name))?;
            fs::File::open(&stage)?.sync_all()?;
        }
        fs::File::open(&new)?.sync_all()?;
        if kept.exists() {
            fs::rename(&kept, &old)?;
        }
        fs::rename(&new, &kept)?;
        fs::File::open(kept.parent().unwrap_or(&kept))?.sync_all()?;
        let _ = fs::remove_dir_all(&old);
        Ok(())
    };
    write().map_err(|source| Error::Keep { path: kept.clone(), source })
}

fn copy_synced(bytes: &[u8], to: &Path) -> io::Result<()> {
    use std::io::Write;
    let mut file = fs::File::create(to)?;
    file.write_all(bytes)?;
    file.sync_all()
}
