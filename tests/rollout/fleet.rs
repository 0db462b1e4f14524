//! Machines that follow a channel, and what their seeder says of them.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use harness::{DEADLINE, Node, Process, Publisher, json, text};
use serde_json::Value;

/// A machine with an agent. Killed when dropped.
pub(crate) struct Machine {
    pub(crate) host: String,
    pub(crate) node: Node,
    config: PathBuf,
    agent: Option<Process>,
}

impl Machine {
    /// Installs `image`; the agent does not run yet. `extra` is put into its configuration.
    pub(crate) fn new(ticket: &str, image: &str, host: &str, group: &str, extra: &str) -> Self {
        let node = Node::new();
        let arguments = ["--image", image, "--seed-for", "0s", "--listen", "127.0.0.1:0", "--json"];
        let mut install = node.command(&[&["install", ticket], &arguments[..]].concat());
        install.arg("--target").arg(node.target());
        Process::start(install).finish().expect_success();
        let folder = node.target().with_file_name("agent");
        fs::create_dir(&folder).unwrap();
        let rules = folder.join("rules");
        fs::write(&rules, "managed **\n").unwrap();
        let config = folder.join("agent.toml");
        let content = format!(
            "ticket = '{ticket}'\ntarget = '{}'\nrules = '{}'\nchannel = 'stable'\nhost = '{host}'\n\
             groups = ['{group}']\nlisten = ['127.0.0.1:0']\n{extra}\n",
            node.target().display(),
            rules.display(),
        );
        fs::write(&config, content).unwrap();
        Self { host: host.to_owned(), node, config, agent: None }
    }

    pub(crate) fn start(&mut self) {
        let config = self.config.to_str().expect("test folders have plain names");
        self.agent = Some(Process::start(self.node.command(&["agent", "-v", "--config", config])));
    }

    pub(crate) fn agent(&self) -> &Process {
        self.agent.as_ref().expect("it was started")
    }

    /// Ends the agent as a power failure would.
    pub(crate) fn kill(&mut self) {
        self.agent.take().expect("it was started").kill();
    }

    /// What it remembers.
    pub(crate) fn life(&self) -> Value {
        json(&fs::read_to_string(self.node.data().join("agent.json")).unwrap())
    }
}

pub(crate) fn run(publisher: &Publisher, arguments: &[&str]) -> Value {
    json(&publisher.run(&[arguments, &["--json"]].concat()).expect_success().stdout.concat())
}

/// Waits until the seeder says of its fleet what is wanted.
///
/// # Panics
/// With the last word when the deadline passes.
pub(crate) fn until(publisher: &Publisher, wanted: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let status = run(publisher, &["status"]);
        if wanted(&status) {
            return status;
        }
        assert!(started.elapsed() < DEADLINE, "this is how it stays: {status:#}");
    }
}

/// How many nodes are in a stage.
pub(crate) fn staged(status: &Value, stage: &str) -> u64 {
    status["stages"][stage].as_u64().unwrap_or(0)
}

/// Whether the rollout is in this phase.
pub(crate) fn phase(status: &Value, phase: &str) -> bool {
    status["rollouts"][0]["phase"] == phase
}

/// The events of the rollout of a channel, and nothing of an unfinished line.
pub(crate) fn events(publisher: &Publisher) -> Vec<Value> {
    let log = fs::read_to_string(publisher.data().join("rollouts/stable.log")).unwrap_or_default();
    let whole = log.rfind('\n').map_or(0, |end| end + 1);
    log[..whole].lines().map(json).collect()
}

/// Waits for an event.
pub(crate) fn event(publisher: &Publisher, wanted: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        if let Some(found) = events(publisher).into_iter().find(&wanted) {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "it does not happen: {:#?}", events(publisher));
        std::thread::yield_now();
    }
}

/// Checks that no wave began before the gate of the one before was passed, and nobody was told outside its wave;
/// returns the hosts of each wave, as they were told.
pub(crate) fn waves(events: &[Value]) -> Vec<Vec<String>> {
    let mut waves: Vec<Vec<String>> = Vec::new();
    let mut passed = 0;
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["number"].as_u64(), events[0]["number"].as_u64().map(|first| first + at as u64));
        let wave = || usize::try_from(event["wave"].as_u64().unwrap()).unwrap();
        match event["event"].as_str().unwrap() {
            "wave_began" => {
                assert_eq!((wave(), waves.len()), (passed, passed), "{event}");
                waves.push(Vec::new());
            }
            "gate_passed" => {
                assert_eq!((wave(), event["healthy"].as_u64()), (passed, event["nodes"].as_u64()), "{event}");
                passed += 1;
            }
            "told" => {
                assert_eq!(wave() + 1, waves.len(), "{event}");
                waves[wave()].push(text(event, "host"));
            }
            _ => {}
        }
    }
    waves
}
