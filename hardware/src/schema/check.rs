//! Checks of a parsed cluster file: every value alone, then against the others.

use super::file::{ClusterFile, FabricFile, NodeFile};
use super::{MAX_ACCELERATORS, SchemaError};
use crate::catalogue::{self, CatalogueError, System};
use crate::{
    Accelerator, Bytes, BytesPerSec, Cluster, Fabric, FabricLevel, Nics, Node, NodeGroup, ScaleUp,
    ScaleUpTopology, Seconds, Storage, Watts,
};
use std::ops::Range;
use toml::Spanned;

/// Fabrics that a profile exists for or may be written for.
const FABRICS: [&str; 6] = ["infiniband", "roce", "efa", "ethernet", "slingshot", "omni-path"];

/// The file under check.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

type Checked<T> = Result<T, SchemaError>;

impl Source<'_> {
    fn error(&self, span: &Range<usize>, message: impl Into<String>, hint: impl Into<String>) -> SchemaError {
        SchemaError::at(self.file, self.text, span, message, hint)
    }

    /// A catalogue error at the place that asked for the entry.
    fn catalogue(&self, span: &Range<usize>, error: &CatalogueError) -> SchemaError {
        self.error(span, error.to_string(), error.hint())
    }

    /// A number within bounds; NaN is outside of all.
    fn within(&self, key: &str, value: &Spanned<f64>, low: f64, high: f64, hint: &str) -> Checked<f64> {
        let v = *value.get_ref();
        if v >= low && v <= high {
            return Ok(v);
        }
        Err(self.error(&value.span(), format!("{key} is {v}, must lie between {low} and {high}"), hint))
    }

    /// A count of at least one.
    fn count(&self, key: &str, value: &Spanned<u32>, most: u64) -> Checked<u32> {
        let v = *value.get_ref();
        if v == 0 {
            return Err(self.error(
                &value.span(),
                format!("{key} is 0, must be at least 1"),
                "remove the table or give a number",
            ));
        }
        if u64::from(v) > most {
            return Err(self.error(
                &value.span(),
                format!("{key} is {v}, more than {most} is not believable"),
                "check the number",
            ));
        }
        Ok(v)
    }

    /// A rate above zero and below one petabyte per second.
    fn rate(&self, key: &str, value: &Spanned<BytesPerSec>) -> Checked<BytesPerSec> {
        let v = *value.get_ref();
        if v.0 > 0.0 && v.0 <= 1e15 {
            return Ok(v);
        }
        Err(self.error(
            &value.span(),
            format!("{key} is {v}, must be more than 0 and at most 1PB/s"),
            "for example \"400Gb/s\" or \"450GB/s\"",
        ))
    }

    /// A latency of at most a second.
    fn latency(&self, key: &str, value: &Spanned<Seconds>) -> Checked<Seconds> {
        let v = *value.get_ref();
        if v.0 <= 1.0 {
            return Ok(v);
        }
        Err(self.error(
            &value.span(),
            format!("{key} is {v}, more than 1s is not a latency"),
            "for example \"5us\"",
        ))
    }

    fn storage(&self, key: &str, value: &Spanned<Storage>) -> Checked<Storage> {
        let v = value.get_ref();
        if v.read.0 > 0.0 && v.write.0 > 0.0 {
            return Ok(v.clone());
        }
        Err(self.error(
            &value.span(),
            format!("{key} must read and write at more than 0B/s"),
            "leave the table out if there is none",
        ))
    }
}

/// Checks the whole file.
pub(super) fn check(file: &str, text: &str, raw: &ClusterFile) -> Checked<Cluster> {
    let source = Source { file, text };
    let hint = "add at least one [[nodes]] table with `count` and `system`";
    if raw.nodes.is_empty() {
        return Err(SchemaError::whole(file, "the cluster has no nodes", hint));
    }
    let own = own_accelerators(&source, raw)?;

    let mut groups = Vec::with_capacity(raw.nodes.len());
    let mut total = 0_u64;
    let mut first_system = None;
    for spanned in &raw.nodes {
        let (group, system) = node_group(&source, raw, &own, spanned)?;
        total = total.saturating_add(u64::from(group.count) * u64::from(group.node.accelerators));
        if total > MAX_ACCELERATORS {
            let span = spanned.get_ref().count.span();
            let message = format!(
                "the cluster has {total} accelerators or more, at most {MAX_ACCELERATORS} are supported"
            );
            return Err(source.error(&span, message, "check `count`; it counts nodes, not accelerators"));
        }
        first_system = first_system.or(system);
        groups.push(group);
    }
    let nodes: u64 = groups.iter().map(|g| u64::from(g.count)).sum();
    let fabric = fabric(&source, raw.fabric.as_ref(), first_system, nodes)?;
    needs_network(&source, raw, &groups)?;

    let pue = match &raw.pue {
        Some(pue) => {
            source.within("pue", pue, 1.0, 10.0, "facility power over IT power: 1.1 to 1.6 is usual")?
        }
        None => 1.0,
    };
    let storage = raw.storage.as_ref().map(|s| source.storage("storage", s)).transpose()?;
    let stem = file.rsplit(['/', '\\']).next().unwrap_or(file);
    Ok(Cluster {
        name: raw.name.clone().unwrap_or_else(|| stem.trim_end_matches(".toml").to_owned()),
        description: raw.description.clone().unwrap_or_default(),
        groups,
        fabric,
        storage,
        pue,
        source: raw.source.clone().unwrap_or_else(|| file.to_owned()),
    })
}

/// Accelerators that the file itself describes.
fn own_accelerators(source: &Source<'_>, raw: &ClusterFile) -> Checked<Vec<Accelerator>> {
    let mut own: Vec<Accelerator> = Vec::new();
    for sheet in &raw.accelerator {
        let part = sheet.get_ref().accelerator().map_err(|reason| {
            let message = format!("accelerator `{}` cannot be used: {reason}", sheet.get_ref().name);
            source.error(
                &sheet.span(),
                message,
                "give memory, memory_bandwidth and at least peak.bf16 or peak.fp16",
            )
        })?;
        if own.iter().any(|a| a.name == part.name) {
            let message = format!("accelerator `{}` is described twice", part.name);
            return Err(source.error(&sheet.span(), message, "remove one of the two tables"));
        }
        own.push(part);
    }
    Ok(own)
}

/// The accelerator of a group: from the file, from the catalogue, or the usual one of the system.
fn accelerator_of(
    source: &Source<'_>,
    own: &[Accelerator],
    span: &Range<usize>,
    node: &NodeFile,
    system: Option<&System>,
) -> Checked<Accelerator> {
    let (name, span) = match (&node.accelerator, system) {
        (Some(name), _) => (name.get_ref().as_str(), name.span()),
        (None, Some(system)) => (system.accelerator.as_str(), span.clone()),
        (None, None) => {
            let message = "the group names neither a `system` nor an `accelerator`";
            return Err(source.error(span, message, "for example system = \"DGX/HGX H100 (NDR)\""));
        }
    };
    if let Some(part) = own.iter().find(|a| catalogue::normal(&a.name) == catalogue::normal(name)) {
        return Ok(part.clone());
    }
    catalogue::accelerator(name).cloned().map_err(|e| source.catalogue(&span, &e))
}

/// One group of nodes.
fn node_group(
    source: &Source<'_>,
    raw: &ClusterFile,
    own: &[Accelerator],
    spanned: &Spanned<NodeFile>,
) -> Checked<(NodeGroup, Option<&'static System>)> {
    let node = spanned.get_ref();
    let span = spanned.span();
    let count = source.count("count", &node.count, MAX_ACCELERATORS)?;
    let system = match &node.system {
        Some(name) => {
            Some(catalogue::system(name.get_ref()).map_err(|e| source.catalogue(&name.span(), &e))?)
        }
        None => None,
    };
    let accelerator = accelerator_of(source, own, &span, node, system)?;
    let price = match node.price_per_gpu_hour.as_ref().or(raw.price_per_gpu_hour.as_ref()) {
        Some(price) => {
            source.within("price_per_gpu_hour", price, 0.0, 1e6, "US dollars for one accelerator and hour")?
        }
        None => {
            catalogue::datasheet(&accelerator.name).ok().and_then(|d| d.assumed_price_per_hour).unwrap_or(0.0)
        }
    };
    let base = system.map(|s| s.node(&accelerator, price));
    let base = base.as_ref();

    let require = |key: &str| -> SchemaError {
        let message = format!("the group gives no `{key}` and names no `system` to take it from");
        source.error(
            &span,
            message,
            format!("add `{key}`, or a system such as system = \"DGX/HGX H100 (NDR)\""),
        )
    };
    let accelerators = match (&node.accelerators, base) {
        (Some(n), _) => source.count("accelerators", n, 1 << 16)?,
        (None, Some(b)) => b.accelerators,
        (None, None) => return Err(require("accelerators")),
    };
    let scale_up = scale_up(source, node, base, &accelerator, accelerators, count, &span)?;
    let nics = nics(source, node, base)?;
    let host_memory = node.host_memory.as_ref().map(|v| *v.get_ref()).or(base.map(|b| b.host_memory));
    let host_link = node.host_link.as_ref().map(|v| source.rate("host_link", v)).transpose()?;
    let nvme = node.nvme.as_ref().map(|s| source.storage("nvme", s)).transpose()?;
    let node = Node {
        accelerators,
        scale_up,
        nics,
        host_memory: host_memory.unwrap_or(Bytes(1 << 40)),
        host_link: host_link.or(base.map(|b| b.host_link)).unwrap_or(BytesPerSec(32e9)),
        nvme: nvme.or_else(|| base.and_then(|b| b.nvme.clone())),
        price_per_gpu_hour: price,
        host_power: node
            .host_power
            .as_ref()
            .map(|v| *v.get_ref())
            .or(base.map(|b| b.host_power))
            .unwrap_or(Watts(1000.0)),
        accelerator,
    };
    Ok((NodeGroup { count, node }, system))
}

/// The scale-up domain of a group.
fn scale_up(
    source: &Source<'_>,
    node: &NodeFile,
    base: Option<&Node>,
    accelerator: &Accelerator,
    accelerators: u32,
    count: u32,
    span: &Range<usize>,
) -> Checked<ScaleUp> {
    let empty = super::file::ScaleUpFile::default();
    let given = node.scale_up.as_ref().unwrap_or(&empty);
    let base_up = base.map(|b| &b.scale_up);
    let total = u64::from(accelerators) * u64::from(count);
    let topology =
        given.topology.or(base_up.map(|b| b.topology)).unwrap_or(match accelerator.link_bandwidth {
            Some(_) => ScaleUpTopology::Switch,
            None => ScaleUpTopology::Pcie,
        });
    let domain = match (&given.domain, base) {
        (Some(domain), _) => source.count("scale_up.domain", domain, 1 << 16)?,
        (None, _) if topology == ScaleUpTopology::None => 1,
        // A node with fewer accelerators than usual still has one domain, and a cluster smaller than a rack too.
        (None, Some(b)) if b.scale_up.domain <= b.accelerators => b.scale_up.domain.min(accelerators),
        (None, Some(b)) => {
            u32::try_from(u64::from(b.scale_up.domain).min(total)).unwrap_or(b.scale_up.domain)
        }
        (None, None) => accelerators,
    };
    let fault = |message: String, hint: &str| match &given.domain {
        Some(at) => source.error(&at.span(), message, hint),
        None => source.error(span, message, hint),
    };
    if u64::from(domain) > total {
        let message = format!("scale_up.domain is {domain}, but the group has only {total} accelerators");
        return Err(fault(message, "a domain is at most the whole group"));
    }
    if domain != accelerators && !domain.is_multiple_of(accelerators) && !accelerators.is_multiple_of(domain)
    {
        let message = format!("scale_up.domain {domain} does not fit nodes of {accelerators} accelerators");
        return Err(fault(
            message,
            "one must divide the other: whole nodes per domain, or whole domains per node",
        ));
    }
    if total % u64::from(domain) != 0 {
        let message =
            format!("scale_up.domain {domain} does not divide the {total} accelerators of the group");
        return Err(fault(message, "set scale_up.domain to what each rack really holds, or change `count`"));
    }
    if topology == ScaleUpTopology::None && domain != 1 {
        let message = format!("scale_up.topology is none, but its domain is {domain}");
        return Err(fault(message, "without a scale-up link the domain is 1"));
    }
    let bandwidth = match &given.bandwidth {
        Some(rate) => source.rate("scale_up.bandwidth", rate)?,
        None => base_up
            .map(|b| b.bandwidth)
            .or(accelerator.link_bandwidth)
            .or(base.map(|b| b.host_link))
            .unwrap_or(BytesPerSec(32e9)),
    };
    let latency = match &given.latency {
        Some(latency) => source.latency("scale_up.latency", latency)?,
        None => base_up.map_or(Seconds(2e-6), |b| b.latency),
    };
    let in_switch_reduction =
        given.in_switch_reduction.unwrap_or_else(|| base_up.is_some_and(|b| b.in_switch_reduction));
    if in_switch_reduction && topology != ScaleUpTopology::Switch {
        let message = "scale_up.in_switch_reduction needs topology = \"switch\"".to_owned();
        return Err(fault(message, "only a switch can reduce in flight"));
    }
    Ok(ScaleUp { topology, domain, bandwidth, latency, in_switch_reduction })
}

/// The network cards of a group.
fn nics(source: &Source<'_>, node: &NodeFile, base: Option<&Node>) -> Checked<Nics> {
    let empty = super::file::NicsFile::default();
    let given = node.nics.as_ref().unwrap_or(&empty);
    let count = match &given.count {
        Some(count) if *count.get_ref() > 1024 => source.count("nics.count", count, 1024)?,
        Some(count) => *count.get_ref(),
        None => base.map_or(0, |b| b.nics.count),
    };
    let rate = match &given.rate {
        Some(rate) => source.rate("nics.rate", rate)?,
        None => base.map_or(BytesPerSec::ZERO, |b| b.nics.rate),
    };
    let rail_optimized = given.rail_optimized.unwrap_or_else(|| base.is_some_and(|b| b.nics.rail_optimized));
    Ok(Nics { count, rate, rail_optimized })
}

/// Several nodes must be able to reach one another, unless one scale-up domain holds them all.
fn needs_network(source: &Source<'_>, raw: &ClusterFile, groups: &[NodeGroup]) -> Checked<()> {
    for (group, spanned) in groups.iter().zip(&raw.nodes) {
        let node = &group.node;
        let alone = groups.len() == 1 && node.scale_up.domain == group.count * node.accelerators;
        if !alone && (node.nics.count == 0 || node.nics.rate.0 <= 0.0) {
            let message = "nodes of this group have no network card to reach the others";
            let hint = "add nics = { count = 8, rate = \"400Gb/s\" }";
            return Err(source.error(&spanned.span(), message, hint));
        }
    }
    Ok(())
}

/// The scale-out fabric; without a table, the usual one of the first system with one ideal switch.
fn fabric(
    source: &Source<'_>,
    raw: Option<&FabricFile>,
    system: Option<&'static System>,
    nodes: u64,
) -> Checked<Fabric> {
    let usual = system.map_or("infiniband", |s| s.fabric.as_str());
    let kind = match raw.and_then(|f| f.kind.as_ref()) {
        Some(kind) => {
            let name = catalogue::normal(kind.get_ref());
            if !FABRICS.contains(&name.as_str()) {
                let message = format!("there is no fabric kind `{}`", kind.get_ref());
                let hint = match crate::suggest::closest(&name, FABRICS) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("one of: {}", FABRICS.join(", ")),
                };
                return Err(source.error(&kind.span(), message, hint));
            }
            name
        }
        None => usual.to_owned(),
    };
    let latency = match raw.and_then(|f| f.latency.as_ref()) {
        Some(latency) => source.latency("fabric.latency", latency)?,
        None => catalogue::default_fabric_latency(&kind),
    };
    let mut levels: Vec<FabricLevel> = Vec::new();
    for spanned in raw.map_or(&[][..], |f| &f.levels) {
        let level = spanned.get_ref();
        let reach = source.count("fabric.level.nodes", &level.nodes, MAX_ACCELERATORS)?;
        if let Some(below) = levels.last().filter(|below| below.nodes >= reach) {
            let message = format!(
                "level `{}` joins {reach} nodes, level `{}` below it {}",
                level.name, below.name, below.nodes
            );
            return Err(source.error(
                &level.nodes.span(),
                message,
                "list levels from the nodes upwards, each joining more nodes",
            ));
        }
        let oversubscription = match &level.oversubscription {
            Some(over) => source.within(
                "oversubscription",
                over,
                1.0,
                1000.0,
                "downlink over uplink capacity: 1 is full bisection",
            )?,
            None => 1.0,
        };
        let latency = match &level.latency {
            Some(latency) => source.latency("fabric.level.latency", latency)?,
            None => Seconds(1e-6),
        };
        levels.push(FabricLevel { name: level.name.clone(), nodes: reach, oversubscription, latency });
    }
    if let (Some(top), Some(spanned)) = (levels.last(), raw.and_then(|f| f.levels.last()))
        && u64::from(top.nodes) < nodes
    {
        let message =
            format!("the highest level `{}` joins {} nodes, the cluster has {nodes}", top.name, top.nodes);
        return Err(source.error(
            &spanned.get_ref().nodes.span(),
            message,
            "add a level that joins all nodes",
        ));
    }
    Ok(Fabric { kind, latency, levels, in_network_reduction: raw.is_some_and(|f| f.in_network_reduction) })
}
