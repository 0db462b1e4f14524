//! What is measured of Shoal: this program again, as a process that does one thing and says its peak of memory.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use shoal_node::join::peak_rss_bytes;
use shoal_node::manifest::load_manifest;
use shoal_node::store::Store;
use shoal_node::tree::apply::{Apply, ApplyOptions};
use shoal_node::tree::verify::{VerifyMode, verify};
use shoal_proto::image::{ImageName, Manifest};
use shoal_seeder::catalog::Catalog;
use shoal_seeder::home::Home;
use shoal_seeder::publish::{CaptureRequest, publish};

/// Begins the arguments of such a process.
pub(crate) const FLAG: &str = "--part";
/// As many as an install resumes with.
const APPLY_THREADS_MAX: usize = 4;

/// What the process does: `capture SOURCE`, `apply TARGET`, `verify TARGET` or `quick TARGET`, always with the image
/// `tree` of the seeder's directory `data`.
pub(crate) fn command(what: &str, data: &Path, tree: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a process knows its executable"));
    command.args([FLAG, what]).arg(data).arg(tree);
    command
}

pub(crate) fn run(arguments: &[OsString]) -> anyhow::Result<()> {
    let [what, data, tree] = arguments else { bail!("{FLAG} takes three arguments") };
    let (data, tree) = (Path::new(data), PathBuf::from(tree));
    let mut facts = match what.to_str() {
        Some("capture") => capture(data, tree)?,
        Some("apply") => apply(data, &tree)?,
        Some("verify") => compare(data, &tree, VerifyMode::Full)?,
        Some("quick") => compare(data, &tree, VerifyMode::Metadata)?,
        _ => bail!("{FLAG} {}", OsStr::display(what)),
    };
    facts["peak_rss_bytes"] = peak_rss_bytes().into();
    writeln!(std::io::stdout(), "{facts}")?;
    Ok(())
}

fn name() -> ImageName {
    "tree".parse().expect("a name")
}

fn capture(data: &Path, source: PathBuf) -> anyhow::Result<Value> {
    let home = Home::open(data)?;
    let store = Store::open(&home.store_dir())?;
    let request = CaptureRequest::new(source, name());
    let published = publish(&home, &store, &mut Catalog::open(&home)?, &request, &())?;
    Ok(serde_json::to_value(published)?)
}

fn open(data: &Path) -> anyhow::Result<(Store, Manifest)> {
    let home = Home::open(data)?;
    let store = Store::open(&home.store_dir())?;
    let root = Catalog::open(&home)?.find(&name())?.root.clone();
    let manifest = load_manifest(&store, &root)?;
    Ok((store, manifest))
}

/// As an install that finds all blocks in its store.
fn apply(data: &Path, target: &Path) -> anyhow::Result<Value> {
    let (store, manifest) = open(data)?;
    let manifest = Arc::new(manifest);
    let apply = Apply::create(Arc::clone(&manifest), target, ApplyOptions::default())?;
    let next = AtomicU32::new(0);
    let list = manifest.content();
    let work = || -> anyhow::Result<()> {
        let mut raw = Vec::new();
        while let Some(piece) = list.index(next.fetch_add(1, Ordering::Relaxed)) {
            let cid = list.piece(piece).cid;
            let block = store.get(&cid)?.with_context(|| format!("the store lacks piece {piece}"))?;
            block.decode_into(&mut raw)?;
            apply.write_piece(piece, &raw)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(APPLY_THREADS_MAX);
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("the work does not panic"))
    })?;
    let report = apply.finish()?;
    ensure!(report.losses.counts.is_empty(), "the target cannot hold the tree: {:?}", report.losses.counts);
    Ok(json!({ "entries": report.entries }))
}

fn compare(data: &Path, target: &Path, mode: VerifyMode) -> anyhow::Result<Value> {
    let (store, manifest) = open(data)?;
    drop(store);
    let report = verify(&manifest, target, mode)?;
    if let Some(first) = report.drift.first() {
        bail!("{} entries drifted, first {}: {:?}", report.drift.len(), first.path, first.kinds);
    }
    Ok(json!({ "entries": report.entries }))
}
