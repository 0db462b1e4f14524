//! Shoal itself: a seeder that has the image and a node that installs it, as the processes that users run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use harness::{Process, binary, number, text};
use serde_json::Value;

use crate::measure::Costs;

/// A captured image and room for installs, in a folder of its own.
pub(crate) struct Image {
    data: PathBuf,
    node: PathBuf,
}

impl Image {
    pub(crate) fn capture(source: &Path, folder: &Path) -> anyhow::Result<Self> {
        let image = Self { data: folder.join("seeder"), node: folder.join("node") };
        let mut capture = image.seeder(&["capture"]);
        capture.arg(source).arg("tree");
        Process::start(capture).finish().expect_success();
        Ok(image)
    }

    fn seeder(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("shoal-seeder"));
        command.arg("--data").arg(&self.data).args(arguments);
        command
    }

    /// Installs once, from the start of the node's process to the complete tree; the seeder is up by then, and what
    /// that took of its time is not counted.
    pub(crate) fn transfer(&self, bytes: u64) -> anyhow::Result<Costs> {
        std::fs::create_dir_all(self.node.join("target"))?;
        let seeder = Process::start(self.seeder(&["serve", "--listen", "127.0.0.1:0", "--json"]));
        let listening = json(&seeder.stdout_line(|line| line.contains("\"listening\"")))?;
        let before_s = seeder.cpu_s();
        let mut install = Command::new(binary("shoal-node"));
        install.args(["install", &text(&listening, "ticket"), "--image", "tree", "--json"]);
        install.args(["--listen", "127.0.0.1:0", "--seed-for", "1h"]);
        for folder in ["target", "store", "data"] {
            install.arg(format!("--{folder}")).arg(self.node.join(folder));
        }
        let node = Process::start(install);
        let report = json(&node.stdout_line(|line| line.starts_with('{')))?;
        let elapsed_s = report["elapsed_s"].as_f64().context("the node says how long it took")?;
        let costs = Costs::between(&seeder, before_s, &node, elapsed_s);
        let came = number(&report, "bytes_from_seeder");
        anyhow::ensure!(came >= bytes, "the node received {came} of {bytes} bytes: {report}");
        drop((seeder, node));
        std::fs::remove_dir_all(&self.node)?;
        Ok(costs)
    }
}

fn json(line: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(line)?)
}
