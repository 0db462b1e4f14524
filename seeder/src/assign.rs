//! What the seeder tells a host: the published cluster, resolved for it and signed, if the asker may pass for the host.
//!
//! **Who may ask.** A key that is bound to a host passes for that host and no other, and nobody else passes for it. Of a
//! host without a key, every member may ask; but then it gets nothing confidential, and is told so, for a tree that lacks
//! a layer without a word would be worse.

use shoal_node::peer::PeerId;
use shoal_proto::assignment::{
    Assignment, LAYER_PREFIX, LAYERS_MAX, Layer, LayerName, SCRIPTS_BYTES_MAX, Script,
};
use shoal_proto::cid::Cid;
use shoal_proto::host::HostName;
use shoal_proto::image::{ImageName, RootRecord};
use shoal_proto::signing::{Keypair, SIGNED_BYTES_MAX, Signed};
use shoal_proto::wire::{Answer, HostQuery, Query};

use crate::bindings::Bindings;
use crate::cluster::Cluster;
use crate::cluster::resolve::{CommandLine, Resolved};

/// What is captured.
pub trait Captured {
    /// An image's id, its root record, and whether it is confidential.
    fn root(&self, name: &ImageName) -> Option<(Cid, RootRecord, bool)>;
}

/// The published cluster, and who is who.
#[derive(Debug, Default)]
pub struct Assignments {
    cluster: Option<Cluster>,
    bound: Bindings,
    publisher: Option<Keypair>,
}

impl Assignments {
    pub fn new(cluster: Option<Cluster>, bound: Bindings, publisher: Keypair) -> Self {
        Self { cluster, bound, publisher: Some(publisher) }
    }

    pub fn bind(&mut self, bound: Bindings) {
        self.bound = bound;
    }

    /// Whether a key is bound to a host that gets this override.
    pub fn entitles(&self, asker: &PeerId, image: &ImageName) -> bool {
        let resolved = || {
            let host = self.bound.host_of(asker)?;
            self.cluster.as_ref()?.resolve(host, &CommandLine::default())
        };
        resolved().is_some_and(|resolved| gets(&resolved, image))
    }

    /// What to say to `asker`; nothing when there is no cluster.
    pub fn answer(&self, query: &HostQuery, asker: &PeerId, captured: &dyn Captured) -> Option<Answer> {
        let (cluster, publisher) = (self.cluster.as_ref()?, self.publisher.as_ref()?);
        let nothing = Answer::nothing(Query::Host(Box::new(query.clone())));
        Some(match self.assignment(cluster, query, asker, captured) {
            Ok(assignment) => Answer { assignment: Some(Signed::sign(&assignment, publisher)), ..nothing },
            Err(why) => Answer { refused: Some(why.chars().take(500).collect()), ..nothing },
        })
    }

    fn assignment(
        &self,
        cluster: &Cluster,
        query: &HostQuery,
        asker: &PeerId,
        captured: &dyn Captured,
    ) -> Result<Assignment, String> {
        let HostQuery { host, image, overrides } = query;
        let bind = format!("at the seeder: shoal-seeder nodes approve {asker} --host {host}");
        match (self.bound.host_of(asker), self.bound.key_of(host)) {
            (Some(own), _) if own != host => return Err(format!("this node's key is that of host {own}")),
            (None, Some(_)) => return Err(format!("host {host} has another key than this node's; {bind}")),
            _ => {}
        }
        let command = CommandLine { image: image.clone(), overrides: overrides.clone() };
        let unnamed = || {
            format!(
                "the cluster file does not name host {host}: name it there, or say --host NAME, or --alone for the image alone"
            )
        };
        let resolved = cluster.resolve(host, &command).ok_or_else(unnamed)?;
        let (image_id, ..) = captured
            .root(&resolved.image)
            .ok_or_else(|| format!("there is no image {}, which host {host} is to get", resolved.image))?;
        let layers = layers_of(&resolved, captured)?;
        if let Some(secret) = layers.iter().find(|layer| layer.confidential) {
            if self.bound.key_of(host) != Some(asker) {
                let name = &secret.name;
                return Err(format!(
                    "override {name} is confidential, and host {host} has no key yet; {bind}"
                ));
            }
            let own = cluster.resolve(host, &CommandLine::default()).ok_or_else(unnamed)?;
            let foreign = |layer: &&Layer| layer.confidential && !gets(&own, &layer.name.image_name());
            if let Some(secret) = layers.iter().find(foreign) {
                return Err(format!("override {} is confidential, and not for host {host}", secret.name));
            }
        }
        assemble(&resolved, image_id, layers)
    }
}

/// Whether a host gets the override that the catalog calls so.
fn gets(resolved: &Resolved<'_>, image: &ImageName) -> bool {
    let name: Option<LayerName> =
        image.as_str().strip_prefix(LAYER_PREFIX).and_then(|name| name.parse().ok());
    name.is_some_and(|name| resolved.layers.iter().any(|(layer, _)| *layer == name))
}

fn layers_of(resolved: &Resolved<'_>, captured: &dyn Captured) -> Result<Vec<Layer>, String> {
    if resolved.layers.len() > LAYERS_MAX {
        return Err(format!("host {} gets more than {LAYERS_MAX} overrides", resolved.host));
    }
    let layer = |name: &LayerName| {
        let (_, root, confidential) = captured.root(&name.image_name())?;
        Some(Layer { name: name.clone(), root, confidential })
    };
    let found = resolved.layers.iter();
    found.map(|(name, _)| layer(name).ok_or_else(|| format!("there is no override {name}"))).collect()
}

fn assemble(resolved: &Resolved<'_>, image_id: Cid, layers: Vec<Layer>) -> Result<Assignment, String> {
    let host: &HostName = &resolved.host;
    let bytes: usize = resolved.scripts.iter().map(|script| script.content.len()).sum();
    if bytes > SCRIPTS_BYTES_MAX {
        return Err(format!(
            "the scripts of host {host} have {bytes} bytes, more than {SCRIPTS_BYTES_MAX}: large things belong into an override"
        ));
    }
    let scripts = resolved.scripts.iter().map(|script| Script {
        stage: script.stage,
        name: script.name.clone(),
        content: script.content.clone(),
    });
    let assignment = Assignment {
        host: host.clone(),
        image: resolved.image.clone(),
        image_id,
        groups: resolved.groups.iter().map(|group| group.name.clone()).collect(),
        layers,
        mode: resolved.mode,
        confirm: resolved.confirm,
        lists: resolved.lists.clone(),
        variables: resolved.variables.clone(),
        scripts: scripts.collect(),
        script_timeout_s: u32::try_from(resolved.script_timeout.as_secs()).unwrap_or(u32::MAX),
        identity: resolved.identity,
    };
    let bytes = shoal_proto::signing::Statement::to_payload(&assignment).len();
    if bytes > SIGNED_BYTES_MAX {
        return Err(format!("what is said of host {host} has {bytes} bytes, more than {SIGNED_BYTES_MAX}"));
    }
    Ok(assignment)
}
