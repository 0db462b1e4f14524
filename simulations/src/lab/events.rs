//! What happens during a deployment, by its scenario.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::sleep;

use crate::lab::meter::Meter;
use crate::lab::network::Rate;
use crate::lab::process::Process;
use crate::lab::run::{SEEDER, Stage};
use crate::lab::{Lab, Scenario};

/// A slow peer's link has the usual rate divided by this.
pub(super) const SLOWNESS: u64 = 50;

/// The nodes of a slow last peer have met by then, and the seeder gives nothing yet that one of them shows.
const ACQUAINTED: Duration = Duration::from_millis(1500);

/// Lets the nodes install that do so before the others begin, and then slows their links; returns what each printed.
pub(super) async fn before(
    stage: &Stage<'_>,
    nodes: &mut [Process],
) -> anyhow::Result<Vec<Option<Map<String, Value>>>> {
    let mut printed = Vec::new();
    for ((index, node), part) in nodes.iter_mut().enumerate().zip(&stage.parts[1..]) {
        if !part.early {
            printed.push(None);
            continue;
        }
        node.begin().await?;
        printed.push(node.object().await?.as_object().cloned());
        stage.network.change_rate(index + 1, Rate(part.rate.0 / SLOWNESS))?;
    }
    Ok(printed)
}

/// Plays what happens after the nodes have begun. `wire`: what the image takes on one link. Returns the processor time
/// of a seeder that was killed, in seconds.
pub(super) async fn play(
    stage: &Stage<'_>,
    meter: &Meter,
    seeder: &mut Process,
    wire: Duration,
) -> anyhow::Result<Option<f64>> {
    match stage.lab.scenario {
        Scenario::FlashCrowd | Scenario::LateJoiners | Scenario::Stragglers | Scenario::Churn => Ok(None),
        Scenario::SeederLost => {
            sleep(wire.mul_f64(1.1)).await;
            while seeder.object().await?["event"] != "replicated" {}
            lose(stage, meter, seeder).map(Some)
        }
        Scenario::SlowLastPeer => {
            sleep(ACQUAINTED).await;
            lose(stage, meter, seeder).map(Some)
        }
        Scenario::Partition => {
            sleep(wire / 4).await;
            for host in cut_off(stage.lab) {
                stage.network.cut_off(host)?;
            }
            sleep(wire).await;
            for host in cut_off(stage.lab) {
                stage.network.connect(host)?;
            }
            Ok(None)
        }
    }
}

/// The hosts that a partition takes away from the seeder.
fn cut_off(lab: &Lab) -> impl Iterator<Item = usize> {
    (1..=usize::from(lab.nodes)).step_by(2)
}

fn lose(stage: &Stage<'_>, meter: &Meter, seeder: &mut Process) -> anyhow::Result<f64> {
    let usage = meter.read(&stage.network)?;
    seeder.kill();
    Ok(usage.cpu_s[SEEDER])
}
