//! The way of a cache from a prefill to a decode instance over the cluster's real links.
//!
//! Inside a scale-up domain every rank uses its own links. Between nodes the ranks of an instance use the network cards
//! of their node: as many at once as there are cards, slower by the oversubscription of every switch level that is
//! crossed. The slower side sets the time: seconds = latency + max(bytes per sender, bytes per receiver) / rate.

use super::placement::Site;
use psim_cost_models::serving::Crossing;
use psim_hardware::{Cluster, Node, ScaleUpTopology};
use psim_models::serving::KvTransfer;
use serde::{Deserialize, Serialize};

/// When a cache starts to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransferMode {
    /// Each layer as soon as it is computed, if room at the receiver was set aside when the prompt's last step began.
    #[default]
    LayerWise,
    /// The decode instance pulls the whole cache when the prompt is done.
    AfterPrompt,
}

impl TransferMode {
    /// Reads a name.
    ///
    /// # Errors
    /// A sentence with the known names; names of the field that are not built, with the reason.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "layer-wise" => Ok(Self::LayerWise),
            "after-prompt" | "pull" => Ok(Self::AfterPrompt),
            "shared-storage" => {
                Err("transfer `shared-storage` is not built: storage tiers have no queue in the simulation"
                    .to_owned())
            }
            other => Err(format!("`{other}` is not a way to move a cache; known: layer-wise, after-prompt")),
        }
    }
}

/// The node of a number.
fn node_at(cluster: &Cluster, number: u32) -> &Node {
    let mut left = number;
    for group in &cluster.groups {
        if left < group.count {
            return &group.node;
        }
        left -= group.count;
    }
    cluster.first_node()
}

/// Rate and latency of a route.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Route {
    /// Latency of the first byte, seconds.
    pub latency: f64,
    /// Rate of all sending ranks together, bytes a second.
    pub send_rate: f64,
    /// Rate of all receiving ranks together, bytes a second.
    pub receive_rate: f64,
    /// The network cards are shared by the node's instances: transfers of one node queue up.
    pub shared: bool,
}

impl Route {
    /// Between two sites.
    pub fn new(cluster: &Cluster, transfer: &KvTransfer, from: Site, to: Site) -> Self {
        let (node, other) = (node_at(cluster, from.node), node_at(cluster, to.node));
        let (senders, receivers) = (f64::from(transfer.senders), f64::from(transfer.receivers));
        if from.domain == to.domain && node.scale_up.topology != ScaleUpTopology::None {
            let rank = scale_up_rate(node);
            return Self {
                latency: node.scale_up.latency.0 + SET_UP,
                send_rate: senders * rank(receivers),
                receive_rate: receivers * rank(senders),
                shared: false,
            };
        }
        let cards = |n: &Node| f64::from(n.nics.count.max(1));
        let (share, latency) = switches(cluster, from.node, to.node);
        Self {
            latency: latency + SET_UP,
            send_rate: senders.min(cards(node)) * node.nics.rate.0.max(1.0) * share,
            receive_rate: receivers.min(cards(other)) * other.nics.rate.0.max(1.0) * share,
            shared: node.nics.count < node.accelerators || other.nics.count < other.accelerators,
        }
    }

    /// Seconds on the wire for the cache of a prompt of `tokens`.
    pub fn seconds(&self, transfer: &KvTransfer, tokens: u64) -> f64 {
        let bytes = transfer.bytes(tokens);
        self.latency + (bytes / self.send_rate).max(bytes / self.receive_rate)
    }
}

/// Share of the cards' rate that the levels of switches between two nodes leave, and their latency.
fn switches(cluster: &Cluster, from: u32, to: u32) -> (f64, f64) {
    let (mut share, mut latency) = (1.0, cluster.fabric.latency.0);
    for level in &cluster.fabric.levels {
        let reach = level.nodes.max(1);
        if from / reach == to / reach {
            break;
        }
        share /= level.oversubscription.max(1.0);
        latency += level.latency.0;
    }
    (share, latency)
}

/// The way between the attention and the feed-forward instances of a replica, each at a site with a number of
/// accelerators, all of which send and receive at once. Memory is registered beforehand: a message costs its latency.
///
/// Both sides inside one scale-up domain use its links. Otherwise every accelerator has its share of its node's cards,
/// slowed by the switch levels between the two ends that are furthest apart.
pub fn crossing(cluster: &Cluster, attention: (Site, u32), feed_forward: (Site, u32)) -> Crossing {
    let ((from, senders), (to, receivers)) = (attention, feed_forward);
    let (node, other) = (node_at(cluster, from.node), node_at(cluster, to.node));
    let inside = senders.max(receivers) <= node.scale_up.domain.max(1);
    if inside && from.domain == to.domain && node.scale_up.topology != ScaleUpTopology::None {
        let rank = scale_up_rate(node);
        return Crossing {
            latency: node.scale_up.latency.0 + MESSAGE,
            attention_rate: rank(f64::from(receivers)),
            feed_forward_rate: rank(f64::from(senders)),
        };
    }
    let last = |first: u32, size: u32, n: &Node| first + size.div_ceil(n.accelerators.max(1)).max(1) - 1;
    let lowest = from.node.min(to.node);
    let highest = last(from.node, senders, node).max(last(to.node, receivers, other));
    let (share, latency) = switches(cluster, lowest, highest);
    let card = |n: &Node| {
        let each = f64::from(n.nics.count.max(1)) / f64::from(n.accelerators.max(1));
        n.nics.rate.0.max(1.0) * each.min(1.0) * share
    };
    Crossing { latency: latency + MESSAGE, attention_rate: card(node), feed_forward_rate: card(other) }
}

/// Launching the send and seeing the arrival of a message between accelerators, seconds: two kernels, as between the
/// stages of a pipeline.
const MESSAGE: f64 = 10e-6;

/// Handshake and registration of one transfer, seconds.
const SET_UP: f64 = 20e-6;

/// Rate of one rank towards a number of peers.
fn scale_up_rate(node: &Node) -> impl Fn(f64) -> f64 + '_ {
    move |peers| {
        let full = node.scale_up.bandwidth.0.max(1.0);
        match node.scale_up.topology {
            ScaleUpTopology::FullMesh => {
                let others = f64::from(node.scale_up.domain.max(2) - 1);
                full * (peers / others).min(1.0)
            }
            _ => full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::placement::{Placement, Role, place};
    use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
    use psim_models::presets;
    use psim_models::serving::{Deployment, NumberFormat, Quantization, lower};

    fn shape(tp: u32) -> psim_models::serving::ServingShape {
        let q = Quantization::uniform(NumberFormat::Bf16);
        lower(&presets::find("llama3-70b").unwrap(), &Deployment::tensor_parallel(tp, q)).unwrap()
    }

    #[test]
    fn hand_computed_times() {
        let cluster = homogeneous("H100-SXM-80GB", 16, &HomogeneousOptions::default()).unwrap();
        let node = cluster.first_node();
        let t = KvTransfer::between(&shape(4), &shape(2)).unwrap();
        let inside = Route::new(&cluster, &t, Site { node: 0, domain: 0 }, Site { node: 0, domain: 0 });
        // 1,000 tokens are 327.68 MB; two receiving ranks take it in over NVLink at 450 GB/s each.
        let expected = 327.68e6 / (2.0 * node.scale_up.bandwidth.0);
        let got = inside.seconds(&t, 1000) - inside.latency;
        assert!((got / expected - 1.0).abs() < 1e-9, "{got} {expected}");
        let across = Route::new(&cluster, &t, Site { node: 0, domain: 0 }, Site { node: 1, domain: 1 });
        // Two cards of 50 GB/s on the receiving side.
        let expected = 327.68e6 / (2.0 * node.nics.rate.0);
        let got = across.seconds(&t, 1000) - across.latency;
        assert!((got / expected - 1.0).abs() < 1e-9, "{got} {expected}");
        assert!(across.seconds(&t, 1000) > inside.seconds(&t, 1000));
    }

    #[test]
    fn crossings_take_the_links_between_the_sides() {
        let options = HomogeneousOptions::default();
        let cluster = homogeneous("H100-SXM-80GB", 32, &options).unwrap();
        let node = cluster.first_node();
        let at = |number| Site { node: number, domain: number };
        let inside = crossing(&cluster, (at(0), 4), (at(0), 4));
        assert_eq!(
            (inside.attention_rate, inside.feed_forward_rate),
            (node.scale_up.bandwidth.0, node.scale_up.bandwidth.0)
        );
        // A card for every accelerator, however many there are.
        for sizes in [(4, 8), (16, 16)] {
            let across = crossing(&cluster, (at(0), sizes.0), (at(2), sizes.1));
            assert_eq!(
                (across.attention_rate, across.feed_forward_rate),
                (node.nics.rate.0, node.nics.rate.0)
            );
            assert!(across.latency > inside.latency);
        }
        // One card for two accelerators gives each half of it.
        let mut halved = cluster.clone();
        for group in &mut halved.groups {
            group.node.nics.count = 4;
        }
        let across = crossing(&halved, (at(0), 8), (at(1), 8));
        assert_eq!(across.attention_rate, 0.5 * node.nics.rate.0);
    }

    #[test]
    fn roles_on_two_kinds_of_nodes() {
        let options = HomogeneousOptions::default();
        let mut cluster = homogeneous("H100-SXM-80GB", 8, &options).unwrap();
        cluster.groups.extend(homogeneous("A100-SXM-80GB", 16, &options).unwrap().groups);
        let prefill = Role { instances: 2, size: 4, group: 0 };
        let decode = Role { instances: 4, size: 4, group: 1 };
        let (p, d) = place(&cluster, Placement::Paired, prefill, decode).unwrap();
        assert_eq!(p.iter().map(|s| s.node).collect::<Vec<_>>(), [0, 0]);
        assert_eq!(d.iter().map(|s| s.node).collect::<Vec<_>>(), [1, 1, 2, 2]);
        assert!(d.iter().all(|s| s.domain != p[0].domain));
        assert!(place(&cluster, Placement::Paired, Role { instances: 3, ..prefill }, decode).is_none());
        // Each side has cards of its own rate; the slower one sets the time.
        let t = KvTransfer::between(&shape(4), &shape(4)).unwrap();
        let route = Route::new(&cluster, &t, p[0], d[0]);
        let (fast, slow) = (&cluster.groups[0].node.nics, &cluster.groups[1].node.nics);
        assert!((route.send_rate / (4.0 * fast.rate.0) - 1.0).abs() < 1e-9);
        assert!((route.receive_rate / (4.0 * slow.rate.0) - 1.0).abs() < 1e-9);
        let expected = 327.68e6 / (4.0 * slow.rate.0.min(fast.rate.0));
        assert!((route.seconds(&t, 1000) - route.latency - expected).abs() < 1e-9);
    }
}
