//! Where the instances of a split deployment lie on a cluster's nodes.

use psim_hardware::{Cluster, NodeGroup};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where instances of the two roles lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Both roles share nodes wherever they fit, and a cache stays in its domain if a decode instance lies there
    /// (DistServe for clusters with slow networks).
    #[default]
    Paired,
    /// All prefill instances first, decode instances on other nodes.
    Apart,
}

impl Placement {
    /// Reads a name.
    ///
    /// # Errors
    /// A sentence with the known names.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "paired" => Ok(Self::Paired),
            "apart" => Ok(Self::Apart),
            other => Err(format!("`{other}` is not a placement of prefill and decode; known: paired, apart")),
        }
    }
}

/// Where an instance lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Site {
    /// First node.
    pub node: u32,
    /// First scale-up domain.
    pub domain: u32,
}

/// Instances of one role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// Instances.
    pub instances: u32,
    /// Accelerators of one.
    pub size: u32,
    /// Group of the cluster's nodes that it lies on.
    pub group: usize,
}

/// Sites of the prefill and of the decode instances; `None` where the cluster is too small. Roles on different groups of
/// nodes lie apart. An instance lies on the first node, or run of nodes, that has room for it; it straddles neither nodes
/// nor scale-up domains that it fits into.
pub fn place(
    cluster: &Cluster,
    placement: Placement,
    prefill: Role,
    decode: Role,
) -> Option<(Vec<Site>, Vec<Site>)> {
    let shared = prefill.group == decode.group;
    let mut ground = Ground::new(cluster, prefill.group, shared && prefill.group == 0)?;
    let (mut p, mut d) = (Vec::new(), Vec::new());
    if !shared {
        let mut other = Ground::new(cluster, decode.group, false)?;
        for _ in 0..prefill.instances {
            p.push(ground.put(prefill.size)?);
        }
        for _ in 0..decode.instances {
            d.push(other.put(decode.size)?);
        }
        return Some((p, d));
    }
    // Paired: the role that lags behind its share comes next.
    let behind = |p: usize, d: usize| match placement {
        Placement::Apart => true,
        Placement::Paired => {
            p as u64 * u64::from(decode.instances) <= d as u64 * u64::from(prefill.instances)
        }
    };
    let mut apart = placement == Placement::Apart;
    let (prefills, decodes) = (prefill.instances as usize, decode.instances as usize);
    while p.len() < prefills || d.len() < decodes {
        if d.len() >= decodes || (p.len() < prefills && behind(p.len(), d.len())) {
            p.push(ground.put(prefill.size)?);
        } else {
            if std::mem::take(&mut apart) {
                ground.close();
            }
            d.push(ground.put(decode.size)?);
        }
    }
    Some((p, d))
}

/// Accelerators of the nodes of a group that are taken.
struct Ground {
    /// Nodes and domains of the groups before this one.
    first_node: u32,
    first_domain: u32,
    per_node: u32,
    /// Accelerators of a scale-up domain.
    domain: u32,
    /// Taken accelerators of each node, from its first one on.
    taken: Vec<u32>,
    /// No node before this one has room for an instance of that size.
    from: BTreeMap<u32, usize>,
}

impl Ground {
    /// The nodes of a group; all nodes where both roles share one and the cluster counts as one kind (`whole`).
    fn new(cluster: &Cluster, group: usize, whole: bool) -> Option<Self> {
        let of = cluster.groups.get(group)?;
        let domains = |g: &NodeGroup| (g.count * g.node.accelerators).div_ceil(g.node.scale_up.domain.max(1));
        let before = &cluster.groups[..group];
        let per_node = of.node.accelerators.max(1);
        let nodes = if whole { cluster.accelerators() / per_node } else { of.count };
        Some(Self {
            first_node: if whole { 0 } else { before.iter().map(|g| g.count).sum() },
            first_domain: if whole { 0 } else { before.iter().map(domains).sum() },
            per_node,
            domain: of.node.scale_up.domain.max(1),
            taken: vec![0; nodes as usize],
            from: BTreeMap::new(),
        })
    }

    /// The next instance of `size` accelerators; `None` where nothing has room for it.
    fn put(&mut self, size: u32) -> Option<Site> {
        let first = self.from.get(&size).copied().unwrap_or(0);
        let node = (first..self.taken.len()).find(|&node| self.fits(node, size))?;
        self.from.insert(size, node);
        let place = node as u32 * self.per_node + self.taken[node];
        let mut left = size;
        for taken in &mut self.taken[node..] {
            let here = left.min(self.per_node - *taken);
            *taken += here;
            left -= here;
            if left == 0 {
                break;
            }
        }
        Some(Site { node: self.first_node + node as u32, domain: self.first_domain + place / self.domain })
    }

    /// Gaps on nodes before the last one in use stay empty from now on.
    fn close(&mut self) {
        let last = self.taken.iter().rposition(|&taken| taken > 0).unwrap_or(0);
        for taken in &mut self.taken[..last] {
            *taken = self.per_node;
        }
    }

    /// Room on this node, or on this and the empty ones that follow.
    fn fits(&self, node: usize, size: u32) -> bool {
        if size <= self.per_node {
            return self.taken[node] + size <= self.per_node;
        }
        let first = node as u32 * self.per_node;
        let last = first + size - 1;
        let straddles = size <= self.domain && first / self.domain != last / self.domain;
        let nodes = size.div_ceil(self.per_node) as usize;
        !straddles
            && self.taken.get(node..node + nodes).is_some_and(|run| run.iter().all(|&taken| taken == 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};

    #[test]
    fn small_instances_fill_the_nodes_that_large_ones_leave_open() {
        let cluster = homogeneous("H100-SXM-80GB", 64, &HomogeneousOptions::default()).unwrap();
        let (prefill, decode) =
            (Role { instances: 22, size: 2, group: 0 }, Role { instances: 2, size: 8, group: 0 });
        // 44 + 16 of 64 accelerators: the first pair of two leaves 6 free on node 0, which the next three take.
        let (p, d) = place(&cluster, Placement::Paired, prefill, decode).unwrap();
        assert_eq!(d.iter().map(|s| s.node).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(p[..5].iter().map(|s| s.node).collect::<Vec<_>>(), [0, 0, 0, 0, 2]);
        // 48 + 16 fill it to the last; one more does not fit.
        assert!(place(&cluster, Placement::Paired, Role { instances: 24, ..prefill }, decode).is_some());
        assert!(place(&cluster, Placement::Paired, Role { instances: 25, ..prefill }, decode).is_none());
        // Instances of 6 leave 2 of every node: 8 nodes hold 8 of them, not 10.
        let six = Role { instances: 9, size: 6, group: 0 };
        assert!(place(&cluster, Placement::Apart, six, Role { instances: 0, ..decode }).is_none());
    }

    #[test]
    fn placement_pairs_roles_and_respects_the_cluster() {
        let cluster = homogeneous("H100-SXM-80GB", 16, &HomogeneousOptions::default()).unwrap();
        let role = |instances| Role { instances, size: 4, group: 0 };
        let (p, d) = place(&cluster, Placement::Paired, role(2), role(2)).unwrap();
        assert_eq!((p[0].node, d[0].node, p[1].node, d[1].node), (0, 0, 1, 1));
        let (p, d) = place(&cluster, Placement::Apart, role(2), role(2)).unwrap();
        assert_eq!((p[1].node, d[0].node), (0, 1));
        assert!(place(&cluster, Placement::Apart, role(4), role(1)).is_none());
    }
}
