//! One run of the lab: ours, ours again without labels where there are racks, then each other tool.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::lab::deployment::{self, Part, parts};
use crate::lab::folder::Folder;
use crate::lab::machine::Machine;
use crate::lab::network::{Network, Rate, Shape};
use crate::lab::process::Spot;
use crate::lab::report::{RacksReport, Report};
use crate::lab::tools;
use crate::lab::tree::Tree;
use crate::lab::{Lab, Programs};

/// The host that serves.
pub(super) const SEEDER: usize = 0;

/// Runs, or ends with an error on the first signal that asks for an end; tidies up either way.
pub(super) async fn until_interrupted(lab: &Lab, programs: &Programs) -> anyhow::Result<Report> {
    let mut interrupts = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        interrupts.push(signal(kind)?);
    }
    let interrupted =
        futures::future::select_all(interrupts.iter_mut().map(|signal| Box::pin(signal.recv())));
    tokio::select! {
        report = run(lab, programs) => report,
        _ = interrupted => bail!("interrupted"),
    }
}

/// What all deployments of a run share. The network goes before the files that its programs write.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    pub(super) lab: &'a Lab,
    pub(super) programs: &'a Programs,
    /// Host 0 seeds.
    pub(super) parts: Vec<Part>,
    pub(super) network: Network,
    pub(super) folder: Folder,
    /// What every host is to have at the end.
    pub(super) wanted: Tree,
}

impl Stage<'_> {
    /// Where a program of `host` runs.
    pub(super) fn spot(&self, host: usize, log: PathBuf) -> Spot<'_> {
        Spot { namespace: self.network.namespace(host), congestion: self.lab.congestion.as_deref(), log }
    }
}

async fn run(lab: &Lab, programs: &Programs) -> anyhow::Result<Report> {
    let wanted = read_tree(lab.source.clone()).await?;
    let folder = Folder::create(&lab.dir, usize::from(lab.nodes))?;
    let (parts, racks) = (parts(lab), lab.racks()?);
    let shape = Shape { uplink_queue: lab.uplink_queue, downlink_queue: lab.downlink_queue };
    let rates: Vec<Rate> = parts.iter().map(|part| part.rate).collect();
    let network = Network::create(&rates, shape, racks)?;
    let stage = Stage { lab, programs, parts, network, folder, wanted };

    let ours = deployment::perform(&stage, !lab.no_rack_labels).await?;
    let without_rack_labels = match racks {
        Some(_) if !lab.no_rack_labels => Some(deployment::perform(&stage, false).await?),
        _ => None,
    };
    let wire_s = ours.image_bytes as f64 / lab.rate.bytes_per_s();
    let patience = Duration::from_secs_f64(wire_s * f64::from(lab.patience));
    let tools = tools::perform_all(&stage, patience).await?;
    if lab.keep {
        stage.folder.keep()?;
    }
    Ok(Report {
        command: std::env::args().skip(1).fold("shoal-sim".to_owned(), |line, word| line + " " + &word),
        machine: Machine::this(),
        scenario: scenario(lab),
        rate: lab.rate.0,
        racks: racks.map(|racks| RacksReport {
            racks: racks.count,
            hosts_each: racks.hosts_each,
            ratio: lab.ratio,
            uplink_rate: racks.uplink.0,
        }),
        ours,
        without_rack_labels,
        tools,
    })
}

fn scenario(lab: &Lab) -> String {
    if lab.update.is_some() {
        return "refresh".to_owned();
    }
    let value = clap::ValueEnum::to_possible_value(&lab.scenario);
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Reads a tree while the run can be interrupted.
pub(super) async fn read_tree(root: PathBuf) -> anyhow::Result<Tree> {
    tokio::task::spawn_blocking(move || Tree::read(&root)).await.context("the reading broke off")?
}
