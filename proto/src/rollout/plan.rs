//! What an operator asks for: waves, the gate between them, and whom to spare.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::as_text;
use crate::cid::Cid;
use crate::fleet::NAME_BYTES_MAX;
use crate::release::Channel;

/// Most waves of a plan.
pub const WAVES_MAX: usize = 64;

/// How one release gets to a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    #[serde(with = "as_text")]
    pub channel: Channel,
    pub release: u64,
    #[serde(with = "as_text")]
    pub image: Cid,
    /// 1 to [`WAVES_MAX`]; none repeats what an earlier one took.
    #[serde(with = "as_text::list")]
    pub waves: Vec<Wave>,
    pub gate: Gate,
    pub unavailable: Unavailable,
    /// Names or peer ids of machines that are never touched.
    pub frozen: BTreeSet<String>,
    /// How long a node that may apply has for it: then it counts as failed.
    pub patience: Duration,
    /// How long the fleet is listened to before a wave takes its nodes, at the start and after nobody could be heard.
    pub gather: Duration,
}

/// A slice of the fleet, of nodes that no earlier wave took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wave {
    Count(u32),
    /// Of all nodes known when the wave begins, rounded up.
    Percent(u8),
    Group(String),
    /// Names or peer ids.
    Hosts(BTreeSet<String>),
    /// All others, and those that come later.
    Rest,
}

/// What has to hold before the next wave begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// Of the wave's nodes.
    pub healthy_percent: u8,
    /// In the whole rollout: one more halts it.
    pub failures_max: u32,
    /// How long the healthy have to stay so.
    pub soak: Duration,
}

/// Most nodes at once that have leave to apply and are not well again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unavailable {
    pub in_all: Option<u32>,
    pub of_group: Option<u32>,
    pub of_rack: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("{0:?} is no wave: COUNT, PERCENT%, group=NAME, hosts=NAME+NAME…, or rest")]
    Wave(String),
    #[error("a rollout has 1 to {WAVES_MAX} waves, not {0}")]
    Waves(usize),
    #[error("nothing is left for a wave after `rest`")]
    AfterRest,
    #[error("{0} % of a wave's nodes cannot be healthy")]
    Percent(u8),
    #[error("with at most 0 nodes unavailable none can be changed")]
    NobodyMay,
}

impl Plan {
    /// Whether the plan can be carried out at all.
    pub fn check(&self) -> Result<(), PlanError> {
        let waves = self.waves.len();
        let Unavailable { in_all, of_group, of_rack } = self.unavailable;
        if !(1..=WAVES_MAX).contains(&waves) {
            Err(PlanError::Waves(waves))
        } else if self.waves[..waves - 1].contains(&Wave::Rest) {
            Err(PlanError::AfterRest)
        } else if self.gate.healthy_percent > 100 {
            Err(PlanError::Percent(self.gate.healthy_percent))
        } else if [in_all, of_group, of_rack].contains(&Some(0)) {
            Err(PlanError::NobodyMay)
        } else {
            Ok(())
        }
    }

    pub(super) fn is_open(&self, wave: usize) -> bool {
        self.waves.get(wave) == Some(&Wave::Rest)
    }
}

impl Gate {
    /// Healthy nodes that a wave of `nodes` needs.
    pub fn needs(&self, nodes: usize) -> usize {
        (nodes * usize::from(self.healthy_percent)).div_ceil(100)
    }
}

impl Default for Gate {
    /// Everybody is well for a minute.
    fn default() -> Self {
        Self { healthy_percent: 100, failures_max: 0, soak: Duration::from_secs(60) }
    }
}

impl FromStr for Wave {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let wrong = || PlanError::Wave(text.to_owned());
        let name = |name: &str| match (1..=NAME_BYTES_MAX).contains(&name.len()) {
            true => Ok(name.to_owned()),
            false => Err(wrong()),
        };
        if text == "rest" {
            Ok(Self::Rest)
        } else if let Some(group) = text.strip_prefix("group=") {
            Ok(Self::Group(name(group)?))
        } else if let Some(hosts) = text.strip_prefix("hosts=") {
            Ok(Self::Hosts(hosts.split('+').map(name).collect::<Result<_, _>>()?))
        } else if let Some(percent) = text.strip_suffix('%') {
            match percent.parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => Err(wrong()),
            }
        } else {
            match text.parse() {
                Ok(0) | Err(_) => Err(wrong()),
                Ok(count) => Ok(Self::Count(count)),
            }
        }
    }
}

impl fmt::Display for Wave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Group(group) => write!(f, "group={group}"),
            Self::Hosts(hosts) => {
                f.write_str("hosts=")?;
                let names: Vec<&str> = hosts.iter().map(String::as_str).collect();
                f.write_str(&names.join("+"))
            }
            Self::Rest => f.write_str("rest"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_read_as_they_are_written() {
        for text in ["1", "10%", "group=web", "hosts=a+b", "rest"] {
            assert_eq!(text.parse::<Wave>().unwrap().to_string(), text);
        }
        for bad in ["0", "0%", "101%", "-1", "group=", "hosts=a++b", "all", "", &format!("group={:065}", 0)] {
            let error = bad.parse::<Wave>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn a_share_of_a_wave_is_rounded_up() {
        let gate = |healthy_percent| Gate { healthy_percent, ..Gate::default() };
        assert_eq!(
            [gate(100).needs(7), gate(90).needs(7), gate(50).needs(1), gate(100).needs(0)],
            [7, 7, 1, 0]
        );
    }

    #[test]
    fn plans_that_cannot_be_are_refused() {
        let good = Plan {
            channel: "c".parse().unwrap(),
            release: 1,
            image: Cid::of(b"x"),
            waves: vec![Wave::Count(1), Wave::Rest],
            gate: Gate::default(),
            unavailable: Unavailable::default(),
            frozen: BTreeSet::new(),
            patience: Duration::from_secs(1),
            gather: Duration::ZERO,
        };
        assert_eq!(good.check(), Ok(()));
        let refusal = |plan: Plan| plan.check().unwrap_err();
        assert_eq!(refusal(Plan { waves: vec![], ..good.clone() }), PlanError::Waves(0));
        let after = vec![Wave::Rest, Wave::Count(1)];
        assert_eq!(refusal(Plan { waves: after, ..good.clone() }), PlanError::AfterRest);
        let gate = Gate { healthy_percent: 101, ..good.gate };
        assert_eq!(refusal(Plan { gate, ..good.clone() }), PlanError::Percent(101));
        let unavailable = Unavailable { of_rack: Some(0), ..Unavailable::default() };
        assert_eq!(refusal(Plan { unavailable, ..good }), PlanError::NobodyMay);
    }
}
