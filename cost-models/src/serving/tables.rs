//! The fitted laws and curves of every measured accelerator, embedded, parsed on first use.

use super::kernels::{DecodeLaw, MoeLaw, PromptLaw, WeightOnlyLaw};
use super::reduce::ReduceCurve;
use crate::relatives;
use psim_hardware::profile::accelerator::ResidualGrid;
use psim_hardware::{Accelerator, catalogue};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// A law with the kernels it holds for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry<L> {
    /// Kernel library: `trtllm`, `vllm`, `sglang`.
    pub library: String,
    /// What it computes in: `bf16`, `fp8`, `fp8-block`, `nvfp4`, `w4a16` …; of the cache for decoding.
    pub format: String,
    /// `gqa` or `mla`; empty where it does not matter.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub heads: String,
    /// The law.
    #[serde(flatten)]
    pub law: L,
    /// ln(measured / law) over the coordinates of the kernel ([`super::kernels`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<ResidualGrid>,
}

/// Everything fitted for one accelerator.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServingTables {
    /// Canonical accelerator name.
    pub accelerator: String,
    /// Decoding attention.
    #[serde(default)]
    pub decode: Vec<Entry<DecodeLaw>>,
    /// Prompt attention.
    #[serde(default)]
    pub prompt: Vec<Entry<PromptLaw>>,
    /// Fused experts.
    #[serde(default)]
    pub moe: Vec<Entry<MoeLaw>>,
    /// Weight-only products.
    #[serde(default)]
    pub weight_only: Vec<Entry<WeightOnlyLaw>>,
    /// All-reduce curves.
    #[serde(default)]
    pub all_reduce: Vec<ReduceCurve>,
}

/// Accelerator names and their embedded tables.
const FILES: [(&str, &str); 10] = [
    ("A100-SXM-80GB", include_str!("../../data/serving/kernels/A100-SXM-80GB.toml")),
    ("Arc-Pro-B60", include_str!("../../data/serving/kernels/Arc-Pro-B60.toml")),
    ("B200-SXM", include_str!("../../data/serving/kernels/B200-SXM.toml")),
    ("B300-SXM", include_str!("../../data/serving/kernels/B300-SXM.toml")),
    ("GB200", include_str!("../../data/serving/kernels/GB200.toml")),
    ("GB300", include_str!("../../data/serving/kernels/GB300.toml")),
    ("H100-SXM-80GB", include_str!("../../data/serving/kernels/H100-SXM-80GB.toml")),
    ("H200-SXM-141GB", include_str!("../../data/serving/kernels/H200-SXM-141GB.toml")),
    ("L40S", include_str!("../../data/serving/kernels/L40S.toml")),
    ("RTX-PRO-6000-Server", include_str!("../../data/serving/kernels/RTX-PRO-6000-Server.toml")),
];

static TABLES: [OnceLock<Option<ServingTables>>; FILES.len()] = [const { OnceLock::new() }; FILES.len()];

/// Names of the accelerators with tables.
pub fn measured() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|f| f.0)
}

/// The built-in tables of an accelerator, parsed on first use.
pub fn built_in(name: &str) -> Option<&'static ServingTables> {
    let index = FILES.iter().position(|f| f.0 == name)?;
    TABLES[index].get_or_init(|| toml::from_str(FILES[index].1).ok()).as_ref()
}

/// A relative's links may be so many times as fast as the part's own before its collectives are none of its own.
const FASTER_LINKS: f64 = 1.3;

/// A law and whether it was measured on this very accelerator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found<L> {
    /// The law.
    pub law: L,
    /// What measurements add to it.
    pub residual: Option<&'static ResidualGrid>,
    /// Measured on this accelerator (else on a relative, or a documented default).
    pub own: bool,
}

/// Tables of an accelerator and of its measured relatives, nearest first.
#[derive(Debug, Clone)]
pub struct Lookup {
    tables: Vec<&'static ServingTables>,
    own: bool,
    /// Which of the tables are of parts whose links are no faster than the accelerator's.
    linked: Vec<bool>,
}

impl Lookup {
    /// Finds the tables of an accelerator.
    pub fn new(accelerator: &Accelerator) -> Self {
        let mine = built_in(&accelerator.name);
        let own = mine.is_some();
        let mut tables: Vec<&'static ServingTables> = mine.into_iter().collect();
        tables.extend(relatives::of(accelerator).filter_map(built_in));
        // Collectives are those of links: a relative with faster ones says nothing about this part (A100 with PCIe, NVLink).
        let linked = |table: &&ServingTables| {
            let theirs = catalogue::accelerator(&table.accelerator).ok().and_then(|a| a.link_bandwidth);
            match (accelerator.link_bandwidth, theirs) {
                (Some(own), Some(theirs)) => theirs.0 <= FASTER_LINKS * own.0,
                _ => true,
            }
        };
        let linked = tables.iter().enumerate().map(|(i, t)| (own && i == 0) || linked(t)).collect();
        Self { tables, own, linked }
    }

    fn search<L: Copy + 'static>(
        &self,
        of: impl Fn(&'static ServingTables) -> &'static [Entry<L>],
        library: &str,
        formats: &[&str],
        heads: &str,
        default: L,
    ) -> Found<L> {
        let libraries = [library, "trtllm", "vllm", "sglang"];
        for format in formats {
            // The engine's own kernels on a relative are nearer than another engine's on this part.
            for library in libraries {
                for (index, table) in self.tables.iter().enumerate() {
                    let hit = of(table)
                        .iter()
                        .find(|e| e.library == library && e.format == *format && e.heads == heads);
                    if let Some(entry) = hit {
                        let residual = entry.residual.as_ref();
                        return Found { law: entry.law, residual, own: self.own && index == 0 };
                    }
                }
            }
        }
        Found { law: default, residual: None, own: false }
    }

    /// Decoding attention with a cache of `kv_bits` bits.
    pub fn decode(&self, library: &str, kv_bits: u64, latent: bool) -> Found<DecodeLaw> {
        let formats: &[&str] = if kv_bits <= 8 { &["fp8", "bf16"] } else { &["bf16", "fp8"] };
        // Defaults for parts without any measured relative: typical of the fitted ones.
        let default = DecodeLaw { launch_us: 8.0, block_ns: 30.0, memory: 0.7, compute: 0.3, sigma: 0.35 };
        self.search(|t| &t.decode, library, formats, if latent { "mla" } else { "gqa" }, default)
    }

    /// Prompt attention in 16 or 8 bits.
    pub fn prompt(&self, library: &str, eight_bits: bool, latent: bool) -> Found<PromptLaw> {
        let formats: &[&str] = if eight_bits { &["fp8", "bf16"] } else { &["bf16"] };
        let default =
            PromptLaw { launch_us: 10.0, compute: 0.5, half_length: 600.0, memory: 0.6, sigma: 0.35 };
        self.search(|t| &t.prompt, library, formats, if latent { "mla" } else { "gqa" }, default)
    }

    /// Fused experts; formats are tried in order.
    pub fn moe(&self, library: &str, formats: &[&str]) -> Found<MoeLaw> {
        let default =
            MoeLaw { launch_us: 20.0, memory: 0.7, compute: 0.5, padding: 24.0, passes: 6.0, sigma: 0.4 };
        self.search(|t| &t.moe, library, formats, "", default)
    }

    /// Weight-only products.
    pub fn weight_only(&self, format: &str) -> Found<WeightOnlyLaw> {
        let default = WeightOnlyLaw { launch_us: 4.0, memory: 0.65, compute: 0.55, sigma: 0.35 };
        self.search(|t| &t.weight_only, "trtllm", &[format, "w4a16", "w8a16"], "", default)
    }

    /// All-reduce curve of a library, else of another; `None` where nothing is measured.
    pub fn all_reduce(&self, library: &str, ranks: u32) -> Option<(&'static ReduceCurve, bool)> {
        for (index, table) in self.tables.iter().enumerate().filter(|(i, _)| self.linked[*i]) {
            for library in [library, "trtllm", "vllm", "sglang", "nccl"] {
                let hit = table.all_reduce.iter().find(|c| c.library == library && c.ranks == ranks);
                if let Some(curve) = hit {
                    return Some((curve, self.own && index == 0));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectives_of_nvlink_do_not_stand_for_pcie() {
        let lookup = |name: &str| Lookup::new(catalogue::accelerator(name).unwrap());
        assert!(lookup("A100-SXM-40GB").all_reduce("vllm", 8).is_some());
        assert!(lookup("H200-SXM-141GB").all_reduce("vllm", 8).is_some_and(|(_, own)| own));
        for pcie in ["A100-PCIe-80GB", "H100-PCIe-80GB"] {
            assert!(lookup(pcie).all_reduce("trtllm", 8).is_none(), "{pcie}");
            // Kernels of one part alone are still its relative's.
            assert!(lookup(pcie).decode("trtllm", 16, false).law.memory > 0.0);
        }
        assert!(lookup("L4").all_reduce("vllm", 4).is_some());
    }

    #[test]
    fn the_embedded_files_parse() {
        for (name, text) in FILES {
            let parsed: Result<ServingTables, _> = toml::from_str(text);
            let table = parsed.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(table.accelerator, name);
            for e in &table.decode {
                assert!(e.law.memory > 0.0 && e.law.memory <= 1.0 && e.law.compute <= 1.0, "{e:?}");
            }
            for e in &table.prompt {
                assert!(e.law.compute <= 1.0 && e.law.memory <= 1.0, "{e:?}");
            }
            for e in &table.moe {
                assert!(e.law.compute <= 1.0 && e.law.memory <= 1.0, "{e:?}");
            }
        }
    }
}
