//! The machine of a row: accelerator name, node size and the printed link texts to a cluster.

use super::row::HardwareFields;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous, system};
use psim_hardware::{BytesPerSec, Cluster, Nics};

/// Builds the cluster. What is not printed is the accelerator's usual node.
///
/// # Errors
/// Unknown accelerators and counts that do not fill equal nodes.
pub fn map(hardware: &HardwareFields) -> Result<(Cluster, Vec<String>), String> {
    let mut notes = Vec::new();
    let gpus = hardware.gpus.ok_or("`hardware.gpus` is missing")?;
    let gpus = u32::try_from(gpus).map_err(|_| format!("absurd GPU count {gpus}"))?;
    if hardware.gpu.is_empty() {
        return Err("`hardware.gpu` is missing".to_owned());
    }
    let mut options = HomogeneousOptions::default();
    if let Some(per_node) = hardware.gpus_per_node.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0) {
        options.gpus_per_node = Some(per_node.min(gpus));
    }
    if options.gpus_per_node.is_some_and(|n| !gpus.is_multiple_of(n)) {
        notes.push(format!(
            "{gpus} GPUs do not fill nodes of {}: usual node taken",
            options.gpus_per_node.unwrap_or(0)
        ));
        options.gpus_per_node = (1..=8u32.min(gpus)).rev().find(|n| gpus.is_multiple_of(*n));
    }
    if let Some(text) = &hardware.intra {
        let text = text.to_lowercase();
        if let Some(at) = text.find("nvl72").or_else(|| text.find("nvl36")) {
            let size: u32 = text[at + 3..]
                .chars()
                .take_while(char::is_ascii_digit)
                .collect::<String>()
                .parse()
                .unwrap_or(72);
            // Equal domains of whole nodes: the largest that divides the cluster.
            let per_node = options.gpus_per_node.unwrap_or(4).max(1);
            let nodes = (gpus / per_node).max(1);
            let whole = (1..=(size / per_node).max(1)).rev().find(|n| nodes.is_multiple_of(*n)).unwrap_or(1);
            options.scale_up_domain = Some(whole * per_node);
        } else if text.starts_with("pcie") {
            options.system = system("Generic PCIe node").ok().map(|s| s.name.clone());
        }
    }
    let link = hardware.inter.as_deref().map(inter).unwrap_or_default();
    if let Some(fabric) = link.fabric {
        options.fabric = Some(fabric.to_owned());
    }
    if let Some((cards, gigabits)) = link.cards(options.gpus_per_node.unwrap_or(8)) {
        options.nics = Some(Nics {
            count: cards,
            rate: BytesPerSec(gigabits * 125e6),
            rail_optimized: link.fabric != Some("ethernet") && cards > 1,
        });
    }
    let cluster = homogeneous(&hardware.gpu, gpus, &options).map_err(|e| e.to_string())?;
    Ok((cluster, notes))
}

/// What a printed scale-out text says.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Inter {
    fabric: Option<&'static str>,
    /// `4x`.
    count: Option<u32>,
    /// Rate that the text prints, Gb/s.
    gigabits: Option<f64>,
    /// The rate is that of the whole node.
    whole_node: bool,
}

impl Inter {
    /// Cards and their rate (Gb/s) on a node of `per_node` accelerators.
    fn cards(self, per_node: u32) -> Option<(u32, f64)> {
        let gigabits = self.gigabits.filter(|g| *g > 0.0)?;
        if self.whole_node {
            let cards = per_node.clamp(1, 8);
            return Some((cards, gigabits / f64::from(cards)));
        }
        // A rate without a count is that of the card beside each accelerator.
        Some((self.count.unwrap_or(per_node.clamp(1, 8)), gigabits))
    }
}

fn inter(text: &str) -> Inter {
    let lower = text.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| lower.contains(w));
    let fabric = if has(&["roce"]) {
        Some("roce")
    } else if has(&["omni-path", "omnipath", "opa"]) {
        Some("omni-path")
    } else if has(&["slingshot"]) {
        Some("slingshot")
    } else if has(&["efa", "elastic fabric"]) {
        Some("efa")
    } else if has(&["infiniband", "hdr", "ndr", "xdr", "edr"])
        || lower.split(|c: char| !c.is_alphanumeric()).any(|w| w == "ib")
    {
        Some("infiniband")
    } else if has(&["ethernet", "tcp", "gbe"]) {
        Some("ethernet")
    } else {
        None
    };
    let mut found = Inter { fabric, ..Inter::default() };
    let words: Vec<&str> =
        lower.split(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | ',' | ';')).collect();
    for (index, word) in words.iter().enumerate() {
        if let Some(count) = word.strip_suffix('x').and_then(|n| n.parse().ok()) {
            found.count.get_or_insert(count);
        }
        let unit = |unit: &str| match unit {
            "gb/s" | "gbps" | "gbit/s" | "gbit" | "gb" | "g" | "gbe" => Some(1.0),
            "tb/s" | "tbps" | "tbit/s" => Some(1000.0),
            _ => None,
        };
        let split = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
        let (number, tail) = word.split_at(split);
        if let Ok(number) = number.parse::<f64>() {
            let tail = if tail.is_empty() { words.get(index + 1).copied().unwrap_or("") } else { tail };
            if let Some(factor) = unit(tail) {
                found.gigabits.get_or_insert(number * factor);
            }
        }
    }
    let shared =
        has(&["node-node", "node to node", "inter-node", "between nodes", "per node", "/node", "a node"]);
    found.whole_node = found.count.is_none() && shared;
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cards(text: &str) -> (Option<&'static str>, Option<(u32, f64)>) {
        let found = inter(text);
        (found.fabric, found.cards(8))
    }

    #[test]
    fn printed_fabrics() {
        assert_eq!(cards("RoCE 1600 Gb/s node-node (as titled)"), (Some("roce"), Some((8, 200.0))));
        assert_eq!(cards("4x Omni-Path 100 Gb/s per node (Jean Zay)"), (Some("omni-path"), Some((4, 100.0))));
        assert_eq!(cards("400 Gb/s IB (Eos)"), (Some("infiniband"), Some((8, 400.0))));
        assert_eq!(cards("8x HDR IB 200 Gb/s per node (Selene)"), (Some("infiniband"), Some((8, 200.0))));
        assert_eq!(cards("RoCE RDMA"), (Some("roce"), None));
        assert_eq!(cards("EFA 3200Gbps per node"), (Some("efa"), Some((8, 400.0))));
        assert_eq!(cards("3.2 Tb/s per node"), (None, Some((8, 400.0))));
        assert_eq!(cards(""), (None, None));
    }

    #[test]
    fn machines() {
        let fields = |gpu: &str, gpus: u64, per_node: u64, intra: &str, inter: &str| HardwareFields {
            gpu: gpu.to_owned(),
            gpus: Some(gpus),
            gpus_per_node: Some(per_node),
            intra: Some(intra.to_owned()),
            inter: (!inter.is_empty()).then(|| inter.to_owned()),
        };
        let (rack, _) = map(&fields("GB200", 128, 4, "NVLink5, NVL72 domain (72 GPUs)", "")).unwrap();
        assert_eq!((rack.first_node().scale_up.domain, rack.accelerators()), (64, 128));
        let (jean_zay, _) =
            map(&fields("A100-SXM-80GB", 384, 8, "NVLink3/NVSwitch", "4x Omni-Path 100 Gb/s per node"))
                .unwrap();
        assert_eq!((jean_zay.first_node().nics.count, jean_zay.nodes()), (4, 48));
        assert_eq!(jean_zay.fabric.kind, "omni-path");
        let (custom, _) = map(&fields("H100-SXM-96GB-HBM2e", 8, 8, "", "")).unwrap();
        assert!(custom.first_node().accelerator.memory.gib() > 85.0);
        assert!(map(&fields("H1000", 8, 8, "", "")).is_err());
        assert!(map(&HardwareFields::default()).is_err());
    }
}
