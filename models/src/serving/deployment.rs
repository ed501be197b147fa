//! How a model is deployed for serving: parallel degrees and number formats.

use crate::Model;
use crate::quantization::Quantization;
use serde::{Deserialize, Serialize};

/// A replica's layout and the number of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Deployment {
    /// Independent copies of the engine, behind a router.
    pub replicas: u32,
    /// Tensor-parallel ranks of the attention.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Copies of the attention inside a replica, each with its own requests; experts are shared by all.
    pub attention_dp: u32,
    /// Groups that experts are spread over; divides `tp · attention_dp`. 1 splits each expert over all ranks.
    pub ep: u32,
    /// Number formats.
    pub quantization: Quantization,
}

/// Why a deployment is impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeploymentError {
    /// A degree of zero.
    #[error("`{0}` must be at least 1")]
    Zero(&'static str),
    /// Heads do not divide.
    #[error("{heads} query heads do not divide over tp = {tp}")]
    Heads {
        /// Query heads.
        heads: u64,
        /// Degree.
        tp: u32,
    },
    /// Experts or ranks do not divide.
    #[error("expert parallelism {ep} fits neither {ranks} ranks nor {experts} experts")]
    Experts {
        /// Degree.
        ep: u32,
        /// Ranks of the replica without pipeline.
        ranks: u32,
        /// Experts of the model.
        experts: u64,
    },
    /// More stages than layers.
    #[error("{pp} pipeline stages for {layers} layers")]
    Stages {
        /// Degree.
        pp: u32,
        /// Layers.
        layers: u32,
    },
}

impl Deployment {
    /// One replica on `tp` accelerators.
    pub fn tensor_parallel(tp: u32, quantization: Quantization) -> Self {
        Self { replicas: 1, tp, pp: 1, attention_dp: 1, ep: 1, quantization }
    }

    /// Accelerators of one replica.
    pub fn accelerators_per_replica(&self) -> u32 {
        self.tp * self.pp * self.attention_dp
    }

    /// Accelerators in all.
    pub fn accelerators(&self) -> u32 {
        self.replicas * self.accelerators_per_replica()
    }

    /// Batches in flight inside a replica: attention copies, or pipeline stages each working on its own batch.
    pub fn lanes(&self) -> u32 {
        self.attention_dp * self.pp
    }

    /// Checks the degrees against the model.
    ///
    /// # Errors
    /// The first degree that does not fit.
    pub fn check(&self, model: &Model) -> Result<(), DeploymentError> {
        for (name, degree) in [
            ("replicas", self.replicas),
            ("tp", self.tp),
            ("pp", self.pp),
            ("attention_dp", self.attention_dp),
            ("ep", self.ep),
        ] {
            if degree == 0 {
                return Err(DeploymentError::Zero(name));
            }
        }
        let heads = model.heads();
        if heads > 0 && !heads.is_multiple_of(u64::from(self.tp)) {
            return Err(DeploymentError::Heads { heads, tp: self.tp });
        }
        if self.pp > model.layers() {
            return Err(DeploymentError::Stages { pp: self.pp, layers: model.layers() });
        }
        let ranks = self.tp * self.attention_dp;
        let experts = model.moe().map_or(0, |m| m.experts);
        if self.ep > 1 && (!ranks.is_multiple_of(self.ep) || u64::from(self.ep) > experts) {
            return Err(DeploymentError::Experts { ep: self.ep, ranks, experts });
        }
        Ok(())
    }
}
