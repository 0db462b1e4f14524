//! `shoal-seeder rollout`.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use shoal_node::clock::unix_time;
use shoal_node::durable;
use shoal_node::exit::{Exit, Usage};
use shoal_proto::release::Channel;
use shoal_proto::rollout::{Gate, Plan, Unavailable, Wave};
use shoal_seeder::control;
use shoal_seeder::home::{Error as HomeError, Home};
use shoal_seeder::releases;
use shoal_seeder::rollouts::{Act, Book, RolloutReport};

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct Rollout {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Let the nodes of a channel apply its newest release, wave by wave
    Start(Box<Start>),
    /// Say how far the rollouts are
    Status { channel: Option<Channel> },
    /// Let no more nodes begin; those that may already go on
    Pause { channel: Channel },
    /// Go on, paused or halted
    Resume { channel: Channel },
    /// Stop: let no node begin that has not
    Halt { channel: Channel },
    /// Give nodes that failed another try, and go on
    Retry { channel: Channel },
}

#[derive(Debug, Args)]
struct Start {
    channel: Channel,
    /// Which nodes, one after the other: COUNT, PERCENT%, group=NAME, hosts=NAME+NAME, or rest
    #[arg(long, value_name = "WAVE,…", value_delimiter = ',', default_value = "1,1%,10%,rest")]
    waves: Vec<Wave>,
    /// Percent of a wave's nodes that have to be well before the next wave
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
    healthy: u8,
    /// Most nodes that may fail; one more halts the rollout
    #[arg(long, value_name = "NODES", default_value_t = 0)]
    failures: u32,
    /// How long the nodes of a wave have to stay well
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    soak: Duration,
    /// Most nodes at once that are changing or down
    #[arg(long, value_name = "NODES")]
    max_unavailable: Option<u32>,
    /// The same, in each group
    #[arg(long, value_name = "NODES")]
    max_unavailable_per_group: Option<u32>,
    /// The same, in each rack
    #[arg(long, value_name = "NODES")]
    max_unavailable_per_rack: Option<u32>,
    /// Never touch this node, by its name or its key (can be repeated)
    #[arg(long, value_name = "NODE")]
    freeze: Vec<String>,
    /// How long a node may take, its window included, before it counts as failed
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Listen for nodes so long before the first wave
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    gather: Duration,
}

impl Start {
    fn plan(self, home: &Home) -> anyhow::Result<Plan> {
        let (release, image) = releases::newest(home, &self.channel)?;
        let plan = Plan {
            channel: self.channel,
            release,
            image,
            waves: self.waves,
            gate: Gate { healthy_percent: self.healthy, failures_max: self.failures, soak: self.soak },
            unavailable: Unavailable {
                in_all: self.max_unavailable,
                of_group: self.max_unavailable_per_group,
                of_rack: self.max_unavailable_per_rack,
            },
            frozen: self.freeze.into_iter().collect(),
            patience: self.patience,
            gather: self.gather,
        };
        plan.check().map_err(|error| Usage(error.to_string()))?;
        Ok(plan)
    }
}

impl Rollout {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let home = common.home()?;
        let reports = match self.what {
            What::Status { channel } => status(&home, channel.as_ref())?,
            What::Start(start) => vec![begin(&home, start.plan(&home)?)?],
            What::Pause { channel } => vec![act(&home, channel, Act::Pause)?],
            What::Resume { channel } => vec![act(&home, channel, Act::Resume)?],
            What::Halt { channel } => vec![act(&home, channel, Act::Halt)?],
            What::Retry { channel } => vec![act(&home, channel, Act::Retry)?],
        };
        if common.json {
            print_json(&serde_json::json!({ "rollouts": reports }))?;
        } else {
            let mut out = std::io::stdout().lock();
            reports.iter().try_for_each(|report| print(&mut out, report))?;
            out.flush()?;
        }
        Ok(Exit::Done)
    }
}

/// From the seeder that serves, whose word is newer than the disk's, or from the disk.
fn status(home: &Home, channel: Option<&Channel>) -> anyhow::Result<Vec<RolloutReport>> {
    let mut reports = match home.lock() {
        Ok(_lock) => Book::open(home)?.reports(),
        Err(HomeError::File(durable::Error::InUse { .. })) => {
            shoal_node::peer::runtime()?.block_on(control::fleet(home))?.rollouts
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(channel) = channel {
        reports.retain(|report| report.channel == channel.to_string());
        anyhow::ensure!(!reports.is_empty(), "channel {channel} has no rollout");
    }
    Ok(reports)
}

fn begin(home: &Home, plan: Plan) -> anyhow::Result<RolloutReport> {
    match home.lock() {
        Ok(_lock) => {
            let (mut book, channel) = (Book::open(home)?, plan.channel.clone());
            book.start(unix_time(), plan)?;
            book.commit(&channel)?;
            Ok(book.report(&channel)?)
        }
        Err(HomeError::File(durable::Error::InUse { .. })) => {
            Ok(shoal_node::peer::runtime()?.block_on(control::start_rollout(home, plan))?)
        }
        Err(error) => Err(error.into()),
    }
}

fn act(home: &Home, channel: Channel, act: Act) -> anyhow::Result<RolloutReport> {
    match home.lock() {
        Ok(_lock) => {
            let mut book = Book::open(home)?;
            book.act(unix_time(), &channel, act)?;
            book.commit(&channel)?;
            Ok(book.report(&channel)?)
        }
        Err(HomeError::File(durable::Error::InUse { .. })) => {
            Ok(shoal_node::peer::runtime()?.block_on(control::act(home, channel, act))?)
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn print(out: &mut impl Write, report: &RolloutReport) -> std::io::Result<()> {
    let why = report.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    writeln!(
        out,
        "{} release {}: {}{why}; {} of {} nodes touched",
        report.channel, report.release, report.phase, report.nodes_touched, report.nodes
    )?;
    for wave in &report.waves {
        let tally = wave.tally;
        write!(out, "  {:<16} {:<8}", wave.wave, wave.state)?;
        match tally.nodes {
            0 => writeln!(out)?,
            nodes => writeln!(
                out,
                " {nodes} nodes: {} well ({} needed), {} on their way, {} to come, {} failed",
                tally.healthy, wave.needed, tally.told, tally.queued, tally.failed
            )?,
        }
    }
    report.failed.iter().try_for_each(|node| writeln!(out, "  failed  {}: {}", node.host, node.why))
}
