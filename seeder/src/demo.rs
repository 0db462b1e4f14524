//! The whole path on one machine: a seeder and many nodes as tasks of one process, each with its own key, store and
//! target, over real loopback connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use indicatif::HumanBytes;
use serde::Serialize;
use shoal_node::goal::HostOptions;
use shoal_node::install::{InstallOptions, InstallReport, Installed, Outcome, install};
use shoal_node::join::JoinOptions;
use shoal_node::peer::Limits;
use shoal_node::progress::Unwatched;
use shoal_node::store::Store;
use shoal_node::tree::verify::Drift;
use shoal_node::tree::verify::VerifyMode;
use shoal_node::update::TreeOptions;
use shoal_node::verify::{RulesChoice, verify_target};
use shoal_proto::image::ImageName;
use shoal_proto::ticket::Ticket;
use shoal_proto::zone::Zone;

use crate::catalog::Catalog;
use crate::home::Home;
use crate::publish::{CaptureRequest, publish};
use crate::serve::serve;

/// Directories that every Linux machine has, of which the largest that is not too large is taken.
const TREES: [&str; 5] = ["/usr/share", "/usr/bin", "/usr/lib", "/usr/sbin", "/etc"];
/// Largest tree that the demo picks by itself.
const TREE_BYTES_MAX: u64 = 300 << 20;

/// What the demo did. Sizes in bytes, times in seconds.
#[derive(Debug, Serialize)]
pub struct DemoReport {
    pub source: String,
    pub raw_bytes: u64,
    pub compressed_bytes: u64,
    pub nodes: Vec<DemoNode>,
    pub verified: bool,
    /// Compressed bytes that the seeder sent ÷ compressed bytes of the image.
    pub seeder_copies: f64,
    /// When the last node was complete.
    pub last_s: f64,
}

#[derive(Debug, Serialize)]
pub struct DemoNode {
    #[serde(flatten)]
    pub install: InstallReport,
    pub verified: bool,
    pub drift: Vec<Drift>,
}

/// Captures `dir`, seeds it, installs it on `nodes` nodes at once and verifies each tree.
pub async fn demo(dir: Option<PathBuf>, nodes: usize) -> anyhow::Result<DemoReport> {
    let source = dir.map_or_else(pick_tree, Ok)?;
    let work = tempfile::Builder::new()
        .prefix("shoal-demo-")
        .tempdir()
        .context("cannot make a working directory")?;
    let home = Arc::new(Home::open(&work.path().join("seeder"))?);
    let store = Arc::new(Store::open(&home.store_dir())?);
    let mut catalog = Catalog::open(&home)?;
    let name: ImageName = "demo".parse().expect("a constant name");

    eprintln!("capturing {} …", source.display());
    let request = CaptureRequest::new(source.clone(), name.clone());
    let published = publish(&home, &store, &mut catalog, &request, &())?;
    eprintln!(
        "captured {} entries, {}, {} compressed, in {:.1} s; installing on {nodes} nodes …",
        published.report.entries,
        HumanBytes(published.report.raw_bytes),
        HumanBytes(published.report.compressed_bytes),
        published.report.elapsed_s,
    );
    let listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    let serving = serve(home.clone(), store, catalog, listen, Limits::default()).await?;
    let ticket = Ticket { image: Some(name), ..serving.ticket.clone() };

    let installs: Vec<_> = (1..=nodes)
        .map(|number| tokio::spawn(install_one(work.path().join(format!("node{number}")), ticket.clone())))
        .collect();
    let mut installed = Vec::new();
    for task in installs {
        installed.push(task.await.context("a node stopped")??);
    }
    let sent_bytes = serving.desk.swarms().sent_bytes().await?;
    eprintln!("verifying {nodes} trees …");
    let mut nodes = Vec::new();
    for (dir, installed) in installed {
        let install = installed.report.clone();
        installed.leave().await;
        nodes.push(
            tokio::task::spawn_blocking(move || verify_one(&dir, install))
                .await
                .context("a verification stopped")??,
        );
    }
    // The manifest travels too.
    let compressed_bytes = published.report.compressed_bytes + published.report.manifest_bytes;
    Ok(DemoReport {
        source: source.display().to_string(),
        raw_bytes: published.report.raw_bytes,
        compressed_bytes,
        verified: nodes.iter().all(|node| node.verified),
        seeder_copies: sent_bytes as f64 / compressed_bytes.max(1) as f64,
        last_s: nodes.iter().map(|node| node.install.elapsed_s).fold(0.0, f64::max),
        nodes,
    })
}

async fn install_one(dir: PathBuf, ticket: Ticket) -> anyhow::Result<(PathBuf, Installed)> {
    let target = dir.join("target");
    std::fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    let options = InstallOptions {
        join: JoinOptions {
            ticket,
            store: None,
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            rack: Zone::UNKNOWN,
            limits: Limits::default(),
        },
        image: None,
        host: HostOptions { alone: true, ..HostOptions::default() },
        target,
        data: dir.join("data"),
        force: false,
        mode: None,
        confirm: false,
        confirmed: false,
        tree: TreeOptions::default(),
    };
    match install(options, &Unwatched).await? {
        Outcome::Installed(installed) => Ok((dir, *installed)),
        _ => anyhow::bail!("an empty target is written anew"),
    }
}

/// Compares a tree entry by entry with its manifest.
fn verify_one(dir: &Path, install: InstallReport) -> anyhow::Result<DemoNode> {
    let verification =
        verify_target(&dir.join("data"), &dir.join("target"), VerifyMode::Full, &RulesChoice::None)?;
    Ok(DemoNode { install, verified: verification.drift.is_empty(), drift: verification.drift })
}

fn pick_tree() -> anyhow::Result<PathBuf> {
    let sized = TREES.iter().map(|path| (tree_bytes(Path::new(path)), *path));
    let fitting = sized.filter(|(bytes, _)| (1..=TREE_BYTES_MAX).contains(bytes)).max();
    let (_, path) = fitting.context("no system directory is small enough: name one")?;
    Ok(PathBuf::from(path))
}

/// Bytes of the regular files below `dir`; what cannot be read counts as too large.
fn tree_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return u64::MAX };
    let mut bytes = 0u64;
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else { return u64::MAX };
        let more = if metadata.is_dir() { tree_bytes(&entry.path()) } else { metadata.len() };
        bytes = bytes.saturating_add(more);
    }
    bytes
}
