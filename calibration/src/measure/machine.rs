//! What the machine is: load, datasheet of a CPU core, clusters of rank threads, the executor's own software stack.

use super::Record;
use psim_hardware::catalogue;
use psim_hardware::profile::StackProfile;
use psim_hardware::profile::stack::{
    AttentionKernel, Efficiency, Fusion, Host, MemoryOverheads, Overlap, States, Supports,
};
use psim_hardware::{
    Accelerator, Bytes, BytesPerSec, Cluster, DType, Fabric, FlopPerSec, Nics, Node, NodeGroup, ScaleUp,
    ScaleUpTopology, Seconds, Watts,
};
use std::collections::BTreeMap;

/// Load average of the last minute, where the system says.
pub fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Cores that this process may use.
pub fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// The datasheet of a CUDA device by the name that its driver gives (`NVIDIA H100 80GB HBM3`): every word of an alias or
/// name of the catalogue must be in it; the longest match wins, boards for PCIe only where the driver says so.
pub fn cuda_datasheet(device: &str) -> Option<&'static Accelerator> {
    let words = |text: &str| -> Vec<String> {
        text.to_lowercase()
            .replace("sxm4", "sxm")
            .replace("sxm5", "sxm")
            .replace("sxm2", "sxm")
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|w| !w.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let has = words(device);
    let pcie = has.iter().any(|w| w == "pcie");
    catalogue::accelerators()
        .iter()
        .filter_map(|part| {
            let own = words(&part.name);
            // The first word is the part; SXM is what a driver leaves out, and sizes may be printed otherwise.
            let first = own.first()?;
            if !has.contains(first) || own.iter().any(|w| w == "pcie") != pcie {
                return None;
            }
            let size = |list: &[String]| list.iter().find(|w| w.ends_with("gb") && w.len() > 2).cloned();
            if size(&has).is_some_and(|s| size(&own).is_some_and(|o| o != s)) {
                return None;
            }
            let extra = ["nvl", "gh200", "gb200", "gb300"];
            if extra.iter().any(|e| own.iter().any(|w| w == e) != has.iter().any(|w| w == e)) {
                return None;
            }
            let score = own.iter().filter(|w| has.contains(w)).count();
            // Of equal matches the one with fewer words that the device does not have.
            Some((score, usize::MAX - own.len(), part))
        })
        .max_by_key(|(score, brevity, _)| (*score, *brevity))
        .map(|(_, _, part)| part)
}

/// A remark when the machine was busy with something else while it was measured.
pub fn load_note(records: &[Record]) -> Option<String> {
    let loads: Vec<f64> = records.iter().filter_map(|r| r.load).collect();
    let load = super::point::median(&loads);
    let cores = f64::from(cores());
    (load > cores).then(|| {
        format!("the machine was busy while it was measured (load {load:.1} on {cores} cores): times may be too long")
    })
}

/// Memory of this machine, where the system says; 8 GiB otherwise.
fn memory() -> Bytes {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    Bytes(kib.map_or(8 << 30, |k| k * 1024))
}

/// One core of this processor as an accelerator; its "datasheet" is the best rates seen, so that efficiencies lie
/// below one.
pub fn cpu_accelerator(name: &str, peak: f64, bandwidth: f64) -> Accelerator {
    Accelerator {
        name: name.to_owned(),
        vendor: "CPU".to_owned(),
        aliases: Vec::new(),
        peak: BTreeMap::from([(DType::Fp32, FlopPerSec(peak))]),
        memory: memory(),
        memory_bandwidth: BytesPerSec(bandwidth),
        memory_nominal: None,
        memory_type: String::new(),
        l2: None,
        last_level_cache: None,
        sm_count: Some(1),
        link: "shared memory".to_owned(),
        link_bandwidth: None,
        tdp: None,
        source: "best rates measured by psim calibrate on this machine, one core".to_owned(),
        note: String::new(),
    }
}

/// `ranks` rank threads on one machine, each with a core's rates.
pub fn threads_cluster(accelerator: &Accelerator, ranks: u32) -> Cluster {
    let node = Node {
        accelerator: accelerator.clone(),
        accelerators: ranks,
        scale_up: ScaleUp {
            topology: ScaleUpTopology::Switch,
            domain: ranks,
            bandwidth: BytesPerSec(accelerator.memory_bandwidth.0),
            latency: Seconds(1e-6),
            in_switch_reduction: false,
        },
        nics: Nics { count: 1, rate: BytesPerSec(1e9), rail_optimized: false },
        host_memory: accelerator.memory,
        host_link: accelerator.memory_bandwidth,
        nvme: None,
        price_per_gpu_hour: 0.0,
        host_power: Watts(0.0),
    };
    Cluster {
        name: format!("threads-{ranks}"),
        description: format!("{ranks} rank threads on one machine"),
        groups: vec![NodeGroup { count: 1, node }],
        fabric: Fabric {
            kind: "ethernet".to_owned(),
            latency: Seconds(1e-5),
            levels: Vec::new(),
            in_network_reduction: false,
        },
        storage: None,
        pue: 1.0,
        source: "this machine".to_owned(),
    }
}

/// The executor as a software stack: flash-style attention, one pass per memory-bound operator, nothing overlapped on
/// a CPU, no launch cost beyond what the kernel tables contain.
pub fn threads_stack() -> StackProfile {
    StackProfile {
        schema: 1,
        name: "psim-executor".to_owned(),
        description: "psim's own executor with ranks as threads".to_owned(),
        era: 2026.8,
        frameworks: vec!["psim-executor".to_owned()],
        attention: AttentionKernel::Flash2,
        fusion: Fusion {
            fp32_scores: false,
            softmax: true,
            activation: true,
            residual: true,
            norm: true,
            rope: true,
            cross_entropy: true,
            expert_kernels: false,
            delayed_scaling: true,
            accumulation: true,
            moe_permute: true,
        },
        overlap: Overlap {
            deduplicated_dispatch: false,
            narrow_gather: false,
            tp: false,
            input_reduce: false,
            grad_reduce: false,
            param_gather: false,
            p2p: false,
            ep: false,
            cp: false,
            fsdp_prefetch: 0,
            bucket: Bytes(40_000_000),
            bucket_per_rank: Bytes(0),
        },
        host: Host {
            expert_launches: 0.0,
            launch: Seconds(0.0),
            gap: Seconds(0.0),
            per_micro_batch: Seconds(0.0),
            per_slice: Seconds(0.0),
            per_step: Seconds(0.0),
            p2p_sync: Seconds(0.0),
            moe_sync: Seconds(0.0),
            cuda_graphs: false,
        },
        states: States {
            gradient: 4.0,
            gradient_wire: 4.0,
            master: 0.0,
            moments: 8.0,
            fp16_gradient: None,
            sharded_gradient: 0.0,
            shard_beside_master: false,
            bf16_gradient_copy: false,
            whole_reduction: false,
        },
        memory: MemoryOverheads {
            context: Bytes(0),
            per_communicator: Bytes(0),
            fragmentation: 0.0,
            placeholder_gradients: false,
        },
        efficiency: Efficiency {
            permute: 1.0,
            gemm: 1.0,
            attention: 1.0,
            memory: 1.0,
            network: 1.0,
            grouped_gemm: 1.0,
            contention: 0.0,
            dispatch_contention: 0.0,
            straggler: 0.0,
        },
        dropout: false,
        fp32_logits: true,
        residual_sigma: 0.1,
        mechanism_spread: 0.0,
        supports: Supports::default(),
        without: Default::default(),
        releases: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::cuda_datasheet;

    #[test]
    fn drivers_names_find_their_datasheet() {
        for (device, expected) in [
            ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB"),
            ("NVIDIA H100 PCIe", "H100-PCIe-80GB"),
            ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"),
            ("NVIDIA A100-SXM4-40GB", "A100-SXM-40GB"),
            ("NVIDIA A100-PCIE-80GB", "A100-PCIe-80GB"),
            ("NVIDIA L40S", "L40S"),
        ] {
            let found = cuda_datasheet(device).map(|a| a.name.as_str());
            assert_eq!(found, Some(expected), "{device}");
        }
        assert!(cuda_datasheet("NVIDIA H200").is_some_and(|a| a.name.starts_with("H200-SXM")));
        assert!(cuda_datasheet("NVIDIA A100-PCIE-40GB").is_none());
        assert!(cuda_datasheet("Some Other Device").is_none());
    }
}
