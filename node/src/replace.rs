//! Replaces the root file system that this machine runs on by an image.
//!
//! [`stage`] works in the running system and changes nothing on its disks: it fetches every block of the image, each
//! verified, into a file system in memory at [`STAGE`]. systemd's shutdown then ends every process, unmounts what there
//! is, and gives the machine to `/run/initramfs/shutdown` as the only process (systemd.io/INITRD_INTERFACE), which is
//! this program again: [`takeover::run`] empties the root, writes the image, has the boot loader installed, and boots.
//! It needs no network: from the first file that is removed on, nothing can be missing.
//!
//! ```text
//! /run/initramfs/        in memory; becomes the root, with the old root at /oldroot
//!   shutdown             this program, statically linked
//!   plan.json            what is to be done (Plan)
//!   state/               the node's state (state.rs), which goes to /var/lib/shoal/node of the image
//!   store/               every block of the image (store.rs)
//! ```

mod checks;
pub mod takeover;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::{Deserialize, Serialize};
use shoal_proto::cid::Cid;
use shoal_proto::image::{ImageName, Manifest};
use shoal_proto::wire::Query;

pub use self::checks::Refusal;
use crate::durable;
use crate::goal;
use crate::join::{self, JoinOptions, Membership, blocking, verified_in};
use crate::peer::{self, ListKind, StoreOnly};
use crate::progress::{Monitor, Stage};
use crate::state::{self, Phase, Record, State};

/// Where systemd looks for what takes over at shutdown.
pub const STAGE: &str = "/run/initramfs";
/// What a boot loader's script of the image's own is called; run in the image when the tree is complete.
pub const BOOT_LOADER: &str = "etc/shoal/boot-loader";
/// Commands that install GRUB where nothing else is said: Debian's, then Red Hat's.
const GRUB: [(&str, &str); 2] = [
    (
        "usr/sbin/grub-install",
        "if [ -d /sys/firmware/efi ]; then grub-install --no-nvram; else grub-install \"$SHOAL_DISK\"; fi && update-grub",
    ),
    (
        "usr/sbin/grub2-install",
        "if [ ! -d /sys/firmware/efi ]; then grub2-install \"$SHOAL_DISK\"; fi && grub2-mkconfig -o /boot/grub2/grub.cfg",
    ),
];

/// What to replace the running root by.
#[derive(Debug)]
pub struct ReplaceOptions {
    pub join: JoinOptions,
    /// Overrides the ticket's image.
    pub image: Option<ImageName>,
    /// The node's state on the running system: its key goes with the machine.
    pub data: PathBuf,
    /// A shell command, run in the image, that makes the machine boot it.
    pub boot_loader: Option<String>,
}

/// An image that waits in memory for the machine to shut down.
#[derive(Clone, Debug, Serialize)]
pub struct Staged {
    pub image: String,
    pub name: String,
    pub entries: u64,
    pub raw_bytes: u64,
    pub bytes_from_seeder: u64,
    pub bytes_from_peers: u64,
    pub elapsed_s: f64,
}

/// What [`takeover::run`] is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub image: String,
    pub root_device: String,
    /// The whole disk that the root lies on.
    pub disk: String,
    /// File systems below the root that are the system's too, parents first.
    pub mounts: Vec<SystemMount>,
    /// The old root's `etc/fstab`, for an image that has none.
    pub fstab: String,
    pub boot_loader: String,
}

/// A file system that is emptied with the root, or, as one of a boot loader's own (vfat), only mounted for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemMount {
    pub device: String,
    /// Relative to the root.
    pub point: String,
    pub kind: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the ticket names no image: say --image NAME")]
    NoImageNamed,
    #[error(
        "image {0} has no {BOOT_LOADER} and no GRUB: say with --boot-loader COMMAND what makes the machine boot it"
    )]
    NoBootLoader(ImageName),
    #[error("cannot make ready {}", .path.display())]
    Stage {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{what} needs about {need_mib} MiB and has {have_mib} MiB")]
    NoRoom { what: &'static str, need_mib: u64, have_mib: u64 },
    #[error("systemd does not reboot")]
    Reboot(#[source] io::Error),
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    Join(#[from] join::Error),
    #[error(transparent)]
    Goal(#[from] goal::Error),
    #[error(transparent)]
    Peer(#[from] peer::Error),
}

/// Makes everything ready in memory. Nothing on a disk has changed when it returns, whatever it returns.
pub async fn stage(options: ReplaceOptions, monitor: &dyn Monitor) -> Result<Staged, Error> {
    let machine = checks::machine()?;
    let name =
        options.image.clone().or_else(|| options.join.ticket.image.clone()).ok_or(Error::NoImageNamed)?;
    let memory = Memory::mount(machine.stage_bytes)?;
    let staged = fetch(options, name, machine, monitor).await?;
    memory.keep();
    Ok(staged)
}

/// Shuts the machine down; what was staged takes over.
pub fn reboot() -> Result<(), Error> {
    let status = std::process::Command::new("systemctl").args(["--no-block", "reboot"]).status();
    match status.map_err(Error::Reboot)? {
        status if status.success() => Ok(()),
        status => Err(Error::Reboot(io::Error::other(format!("systemctl ended with {status}")))),
    }
}

async fn fetch(
    options: ReplaceOptions,
    name: ImageName,
    machine: checks::Machine,
    monitor: &dyn Monitor,
) -> Result<Staged, Error> {
    let top = Path::new(STAGE);
    let data = top.join("state");
    carry_identity(&options.data, &data)?;
    let state = State::open(&data)?;
    // The root of the machine that there will be, as later commands on it name it.
    let target = state.target(Path::new("/"))?;
    let join = JoinOptions { store: Some(top.join("store")), ..options.join };
    let membership = Membership::join(state.key.clone(), join, &target, Instant::now()).await?;
    let (answer, root) =
        membership.look_up(Query::Name(name.clone()), monitor).await.map_err(join::Error::from)?;
    membership.learn(answer);
    let goal = membership.fetch_goal(&root, None, &[], (&target, &state.key), monitor).await?;
    let manifest = goal.manifest;
    let boot_loader = choose_boot_loader(options.boot_loader, &manifest, &name)?;
    machine.check_room(manifest.content().raw_bytes())?;

    let list = manifest.content().clone();
    let (store, stored) = (membership.store.clone(), list.clone());
    let held = blocking(move || verified_in(&store, &stored, |_, _| Ok::<(), Error>(()))).await?;
    let trade = membership.peer.trade(list.clone(), ListKind::Content, held, Arc::new(StoreOnly)).await?;
    membership.watch(Stage::Pieces, monitor, trade.completed()).await?;
    let traffic = membership.peer.status().await?.traffic;
    let report = Staged {
        image: root.cid().to_string(),
        name: name.to_string(),
        entries: manifest.tree().len() as u64,
        raw_bytes: list.raw_bytes(),
        bytes_from_seeder: traffic.from_seeders_bytes,
        bytes_from_peers: traffic.from_peers_bytes,
        elapsed_s: membership.started.elapsed().as_secs_f64(),
    };
    membership.leave().await;
    target.write_record(&record(root.cid(), &name))?;
    let plan = machine.plan(root.cid(), boot_loader);
    write_stage(top, &plan)?;
    Ok(report)
}

/// What the state says of the root as soon as the plan is carried out.
fn record(image: Cid, name: &ImageName) -> Record {
    Record {
        target: "/".to_owned(),
        image: image.to_string(),
        name: Some(name.to_string()),
        phase: Phase::Installing,
        lost: Vec::new(),
        owners: Vec::new(),
        rolling_back: false,
        previous: None,
        layered: None,
    }
}

/// The machine stays the peer that it is.
fn carry_identity(from: &Path, to: &Path) -> Result<(), Error> {
    durable::create_private_dir(to)?;
    if let Some(key) = durable::read(&from.join("key"))? {
        durable::write(&to.join("key"), &key, durable::PRIVATE)?;
    }
    Ok(())
}

fn choose_boot_loader(said: Option<String>, manifest: &Manifest, name: &ImageName) -> Result<String, Error> {
    if let Some(command) = said {
        return Ok(command);
    }
    if has_path(manifest, BOOT_LOADER) {
        return Ok(format!("/{BOOT_LOADER}"));
    }
    // Where sbin is bin the command is found by its name all the same.
    let grub = GRUB
        .iter()
        .find(|(path, _)| has_path(manifest, path) || has_path(manifest, &path.replace("/sbin/", "/bin/")));
    grub.map(|(_, command)| (*command).to_owned()).ok_or_else(|| Error::NoBootLoader(name.clone()))
}

fn has_path(manifest: &Manifest, path: &str) -> bool {
    manifest.entries().any(|entry| entry.path().to_string() == path)
}

/// Puts the plan and this program where systemd looks for them. The program comes last: without it nothing happens.
fn write_stage(top: &Path, plan: &Plan) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Stage { path, source }
    };
    for name in ["dev", "oldroot", "proc", "run", "sys", "tmp"] {
        let path = top.join(name);
        fs::create_dir_all(&path).map_err(failed(&path))?;
    }
    let text = serde_json::to_vec_pretty(plan).expect("a plan is plain data");
    durable::write(&top.join("plan.json"), &text, durable::PRIVATE)?;
    let (new, program) = (top.join("shutdown.new"), top.join("shutdown"));
    fs::copy("/proc/self/exe", &new).map_err(failed(&new))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o700)).map_err(failed(&new))?;
    fs::rename(&new, &program).map_err(failed(&program))
}

/// The file system in memory; unmounted when dropped, unless it is kept.
struct Memory {
    kept: bool,
}

impl Memory {
    fn mount(bytes: u64) -> Result<Self, Error> {
        let failed = |source| Error::Stage { path: STAGE.into(), source };
        fs::create_dir_all(STAGE).map_err(failed)?;
        let size = std::ffi::CString::new(format!("size={bytes},mode=700")).expect("no zero byte");
        mount("tmpfs", STAGE, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, Some(size.as_c_str()))
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self { kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = unmount(STAGE, UnmountFlags::DETACH)
        {
            tracing::warn!(%error, "cannot give back the memory at {STAGE}");
        }
    }
}
