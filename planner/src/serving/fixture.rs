//! What tests of serving ask: a model, a cluster and a workload, built in one line.

use super::ServingRequest;
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::EngineProfile;
use psim_cost_models::serving::engine::find;
use psim_hardware::Cluster;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::serving::{Arrival, NumberFormat, Quantization, ServiceLevel, ServingWorkload};
use psim_models::{Model, presets};

/// All that a [`ServingRequest`] borrows.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) model: Model,
    pub(super) cluster: Cluster,
    pub(super) engine: EngineProfile,
    pub(super) workload: ServingWorkload,
    pub(super) quantization: Quantization,
    pub(super) library: ProfileLibrary,
    pub(super) requests: u32,
    pub(super) seed: u64,
}

impl Asked {
    /// A model in 16 bits on so many H100 under vLLM; simulations of as many requests as the workload has.
    pub(super) fn new(model: &str, gpus: u32, workload: ServingWorkload) -> Self {
        Self {
            model: presets::find(model).unwrap(),
            cluster: homogeneous("H100-SXM-80GB", gpus, &HomogeneousOptions::default()).unwrap(),
            engine: find("vllm-v1").unwrap().clone(),
            requests: workload.tenants[0].requests.unwrap(),
            workload,
            quantization: Quantization::uniform(NumberFormat::Bf16),
            library: ProfileLibrary::built_in(),
            seed: 1,
        }
    }

    pub(super) fn promising(mut self, level: &str) -> Self {
        self.workload.tenants[0].slo = ServiceLevel::parse(level).unwrap();
        self
    }

    pub(super) fn on(self, cluster: Cluster) -> Self {
        Self { cluster, ..self }
    }

    pub(super) fn request(&self) -> ServingRequest<'_> {
        ServingRequest {
            model: &self.model,
            cluster: &self.cluster,
            engine: &self.engine,
            workload: &self.workload,
            quantization: self.quantization,
            library: &self.library,
            requests: self.requests,
            seed: self.seed,
        }
    }
}

/// So many requests of one length, one a second on average.
pub(super) fn fixed(requests: u32, input: u64, output: u64) -> ServingWorkload {
    ServingWorkload::fixed("w", Arrival::Poisson { rate: 1.0 }, requests, input, output)
}
