//! Devices that are not one engine before one memory: engines, memories and links, each by itself.
//!
//! A GPU is one engine before one memory. A PIM part computes inside its memory, an NPU with PIM has two engines before
//! the same memory, a wafer is a mesh of cores with small memories, a dataflow part has three tiers of memory. Each is
//! described by what its engines can do and reach; an operator runs on the engine that is fastest for it.
//!
//! An engine's time is its roofline: launch + max(flops / rate, bytes / bandwidth to its memory).

use crate::source_error::parse_toml;
use crate::suggest::closest;
use crate::{Bytes, BytesPerSec, DType, FlopPerSec, Seconds, SourceError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the layout of device files.
pub const DEVICE_SCHEMA: i64 = 1;

/// What an operator is, for engines that run only some.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperatorClass {
    /// Matrix by matrix.
    MatrixProduct,
    /// Matrix by few vectors: decode projections at small batch, attention over a cache.
    VectorProduct,
    /// Softmax, norms, activations.
    Elementwise,
}

/// Something that computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Name (`npu`, `pim`, `cpu`).
    pub name: String,
    /// Memory that it reads.
    pub memory: String,
    /// Rate to that memory; the memory's own where absent (PIM reaches more than the outside does).
    pub bandwidth: Option<BytesPerSec>,
    /// Rate per format.
    pub peak: BTreeMap<DType, FlopPerSec>,
    /// Start of an operator.
    #[serde(default)]
    pub launch: Seconds,
    /// Operators that it runs; all where empty.
    #[serde(default)]
    pub runs: Vec<OperatorClass>,
}

/// A memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryTier {
    /// Name (`hbm`, `sram`, `ddr`, `disk`).
    pub name: String,
    /// Capacity.
    pub capacity: Bytes,
    /// Rate.
    pub bandwidth: BytesPerSec,
}

/// A way between two memories, both directions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceLink {
    /// The two memories.
    pub between: [String; 2],
    /// Rate of one direction.
    pub bandwidth: BytesPerSec,
    /// First byte.
    #[serde(default)]
    pub latency: Seconds,
}

/// A mesh of equal cores; the engines and memories of the device are those of all cores together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mesh {
    /// Cores in a row.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
    /// One hop to a neighbour.
    pub hop: Seconds,
    /// Rate of one link between neighbours, one direction.
    pub link: BytesPerSec,
}

impl Mesh {
    /// Seconds of summing `bytes` per core along rows of `cores` and sending the result back, hop by hop: the message
    /// crosses the row twice and every core passes the bytes on. A tree of `levels` levels (WaferLLM's K-tree) waits
    /// for the same hops and adds only once a level.
    pub fn row_reduce(&self, cores: u32, bytes: f64) -> Seconds {
        let hops = 2.0 * f64::from(cores.saturating_sub(1));
        Seconds(hops * self.hop.0 + 2.0 * bytes / self.link.0)
    }
}

/// A device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Version of the layout.
    pub schema: u32,
    /// Name.
    pub name: String,
    /// Engines, at least one.
    pub engine: Vec<Engine>,
    /// Memories, at least one.
    pub memory: Vec<MemoryTier>,
    /// Ways between memories.
    #[serde(default)]
    pub link: Vec<DeviceLink>,
    /// A mesh of cores.
    pub mesh: Option<Mesh>,
    /// Two halves of a batch may use two engines at the same time.
    #[serde(default)]
    pub engines_overlap: bool,
    /// Operators of a layer run as one: intermediate results stay on chip.
    #[serde(default)]
    pub fuses: bool,
    /// Where the numbers come from.
    pub source: String,
}

impl Device {
    /// Reads a device file and checks it.
    ///
    /// # Errors
    /// Wrong syntax, unknown keys, engines without their memory, rates that are not above zero.
    pub fn parse(file: &str, text: &str) -> Result<Self, SourceError> {
        let hint = "a device has [[engine]], [[memory]] and optionally [[link]] and [mesh] tables";
        let device: Self = parse_toml(file, text, "device", DEVICE_SCHEMA, hint)?;
        match device.fault() {
            Some(fault) => Err(SourceError::whole(file, &fault, hint)),
            None => Ok(device),
        }
    }

    /// What is wrong, if anything.
    fn fault(&self) -> Option<String> {
        if self.engine.is_empty() || self.memory.is_empty() {
            return Some("a device needs at least one engine and one memory".to_owned());
        }
        let good = |x: f64| x.is_finite() && x > 0.0;
        for e in &self.engine {
            if self.tier(&e.memory).is_none() {
                return Some(format!(
                    "engine `{}` reads `{}`, which is not a memory of the device",
                    e.name, e.memory
                ));
            }
            let rates = e.peak.values().all(|f| good(f.0)) && e.bandwidth.is_none_or(|b| good(b.0));
            if e.peak.is_empty() || !rates {
                return Some(format!("engine `{}` needs rates above zero", e.name));
            }
        }
        for l in &self.link {
            if let Some(end) = l.between.iter().find(|m| self.tier(m).is_none()) {
                return Some(format!("a link ends at `{end}`, which is not a memory of the device"));
            }
            if !good(l.bandwidth.0) {
                return Some("a link needs a rate above zero".to_owned());
            }
        }
        self.memory
            .iter()
            .find(|m| !good(m.bandwidth.0))
            .map(|m| format!("memory `{}` needs a rate above zero", m.name))
    }

    /// A memory by name.
    pub fn tier(&self, name: &str) -> Option<&MemoryTier> {
        self.memory.iter().find(|m| m.name == name)
    }

    /// Roofline of an operator on an engine; `None` where it does not run it or has no such format.
    pub fn seconds(
        &self,
        engine: &Engine,
        class: OperatorClass,
        dtype: DType,
        flops: f64,
        bytes: f64,
    ) -> Option<f64> {
        if !engine.runs.is_empty() && !engine.runs.contains(&class) {
            return None;
        }
        let rate = engine.peak.get(&dtype)?.0;
        let bandwidth = engine.bandwidth.or(self.tier(&engine.memory).map(|m| m.bandwidth))?.0;
        Some(engine.launch.0 + (flops / rate).max(bytes / bandwidth))
    }

    /// The fastest engine for an operator (index, seconds).
    pub fn fastest(
        &self,
        class: OperatorClass,
        dtype: DType,
        flops: f64,
        bytes: f64,
    ) -> Option<(usize, f64)> {
        self.engine
            .iter()
            .enumerate()
            .filter_map(|(i, e)| Some((i, self.seconds(e, class, dtype, flops, bytes)?)))
            .min_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)))
    }

    /// Seconds of moving bytes between two memories with a direct link.
    pub fn move_seconds(&self, from: &str, to: &str, bytes: f64) -> Option<f64> {
        let joins = |l: &&DeviceLink| {
            (l.between[0] == from && l.between[1] == to) || (l.between[0] == to && l.between[1] == from)
        };
        let link = self.link.iter().find(joins)?;
        Some(link.latency.0 + bytes / link.bandwidth.0)
    }
}

/// Embedded device files.
const FILES: [(&str, &str); 7] = [
    ("neupims", include_str!("../data/devices/neupims.toml")),
    ("duplex", include_str!("../data/devices/duplex.toml")),
    ("pim-gpt", include_str!("../data/devices/pim-gpt.toml")),
    ("wse-2", include_str!("../data/devices/wse-2.toml")),
    ("sn40l", include_str!("../data/devices/sn40l.toml")),
    ("xeon-5220r", include_str!("../data/devices/xeon-5220r.toml")),
    ("h100-host", include_str!("../data/devices/h100-host.toml")),
];

/// Names of the built-in devices.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// The file of a built-in device, to start from.
pub fn text(name: &str) -> Option<&'static str> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// A built-in device.
///
/// # Errors
/// A sentence with the known names.
pub fn find(name: &str) -> Result<Device, String> {
    let text = text(name).ok_or_else(|| {
        let known: Vec<&str> = names().collect();
        match closest(name, names()) {
            Some(near) => format!("`{name}` is not a device; did you mean `{near}`?"),
            None => format!("`{name}` is not a device; known: {}", known.join(", ")),
        }
    })?;
    Device::parse(name, text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_file_parses() {
        for name in names() {
            let device = find(name).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(device.name, name);
            assert!(!device.source.is_empty());
        }
        assert!(find("abacus").is_err());
    }

    #[test]
    fn operators_go_to_the_engine_that_is_fastest() {
        let device = find("neupims").unwrap();
        // A product of 512 tokens is arithmetic, reading a cache once is bytes.
        let product = device.fastest(OperatorClass::MatrixProduct, DType::Fp16, 1e11, 1e8).unwrap();
        let reading = device.fastest(OperatorClass::VectorProduct, DType::Fp16, 1e8, 1e8).unwrap();
        assert_eq!(
            (device.engine[product.0].name.as_str(), device.engine[reading.0].name.as_str()),
            ("npu", "pim")
        );
        // No engine is faster than its roofline.
        for e in &device.engine {
            if let Some(s) = device.seconds(e, OperatorClass::VectorProduct, DType::Fp16, 1e8, 1e8) {
                assert!(s >= reading.1);
            }
        }
    }

    #[test]
    fn faults_are_named() {
        let wrong = "schema = 1\nname = \"x\"\nsource = \"t\"\n[[engine]]\nname = \"e\"\nmemory = \"none\"\n\
                     peak = { fp16 = \"1TFLOP/s\" }\n[[memory]]\nname = \"m\"\ncapacity = \"1GB\"\nbandwidth = \"1GB/s\"\n";
        let error = Device::parse("x.toml", wrong).unwrap_err().to_string();
        assert!(error.contains("not a memory") || error.contains("none"), "{error}");
    }
}
