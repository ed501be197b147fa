//! Scenarios of prompts and answers on different accelerators: the highest rate per accelerator of a split over that of
//! the same engine together.

use crate::serving::published::in_16_bits;
use crate::serving::{
    DisaggregatedInput, FleetOptions, MixedInput, Placement, Pool, ReplicaGroup, Router, ServingInput,
    ServingReport, ServingRun, TransferMode, simulate, simulate_disaggregated, simulate_mixed,
};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::{EngineProfile, StepCost, engine};
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_hardware::{BytesPerSec, Cluster};
use psim_models::serving::workload::parse_workload;
use psim_models::serving::{Deployment, Traffic};
use psim_models::{Model, presets};
use serde::Deserialize;

/// Instances of one layout.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Side {
    tp: u32,
    #[serde(default = "one")]
    pp: u32,
    instances: u32,
    /// Accelerators in place of the file's own.
    accelerator: Option<String>,
    /// Most tokens of a step in place of the engine's own; a longer prompt runs alone.
    token_budget: Option<u32>,
}

fn one() -> u32 {
    1
}

/// A split and what it is compared with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Split {
    model: String,
    accelerator: String,
    engine: String,
    /// Engine of the run together, where it is another.
    together_engine: Option<String>,
    /// Network rate of a node, bytes a second, where it is not the usual one.
    node_network: Option<f64>,
    prefill: Side,
    decode: Side,
    together: Side,
    ttft_s: f64,
    tpot_s: f64,
    /// Share of the requests that must keep both.
    #[serde(default = "nine_tenths")]
    attainment: f64,
    /// A workload with `$rate`.
    workload: String,
    seed: u64,
}

fn nine_tenths() -> f64 {
    0.9
}

impl Side {
    fn accelerators(&self) -> f64 {
        f64::from(self.tp * self.pp * self.instances)
    }
}

struct Priced {
    cluster: Cluster,
    prefill: StepCost,
    decode: StepCost,
    together: StepCost,
    engine: EngineProfile,
    together_engine: EngineProfile,
}

/// Groups of nodes: the split's prompts, its answers, and what it is compared with.
fn price(split: &Split, model: &Model) -> Result<Priced, String> {
    let options = HomogeneousOptions::default();
    let kind = |side: &Side| side.accelerator.clone().unwrap_or_else(|| split.accelerator.clone());
    let nodes = |side: &Side| -> Result<Cluster, String> {
        let count = (side.accelerators() as u32).div_ceil(8) * 8;
        homogeneous(&kind(side), count.max(8), &options).map_err(|e| e.to_string())
    };
    let same = kind(&split.prefill) == kind(&split.decode);
    let mut cluster = if same {
        let all = (split.prefill.accelerators() + split.decode.accelerators()) as u32;
        homogeneous(&kind(&split.prefill), all.div_ceil(8) * 8, &options).map_err(|e| e.to_string())?
    } else {
        let mut cluster = nodes(&split.prefill)?;
        cluster.groups.extend(nodes(&split.decode)?.groups);
        cluster
    };
    if let Some(rate) = split.node_network {
        for group in &mut cluster.groups {
            group.node.nics.count = 1;
            group.node.nics.rate = BytesPerSec(rate);
        }
    }
    let find = |name: &str| engine::find(name).cloned().ok_or_else(|| format!("no engine `{name}`"));
    let engine = find(&split.engine)?;
    let mut together_engine = find(split.together_engine.as_ref().unwrap_or(&split.engine))?;
    together_engine.token_budget = split.together.token_budget.unwrap_or(together_engine.token_budget);
    let library = ProfileLibrary::built_in();
    let of = |side: &Side, cluster: &Cluster, group: usize, engine: &EngineProfile| {
        let d = Deployment { pp: side.pp, ..in_16_bits(side.tp) };
        let node = &cluster.groups.get(group).ok_or("no such nodes")?.node;
        StepCost::new(model, &d, cluster, node, engine, &library).map_err(|e| e.to_string())
    };
    let whole = nodes(&split.together)?;
    Ok(Priced {
        prefill: of(&split.prefill, &cluster, 0, &engine)?,
        decode: of(&split.decode, &cluster, usize::from(!same), &engine)?,
        together: of(&split.together, &whole, 0, &together_engine)?,
        cluster,
        engine,
        together_engine,
    })
}

impl Split {
    fn traffic(&self, rate: f64) -> Result<Traffic, String> {
        let text = self.workload.replace("$rate", &rate.to_string());
        let workload = parse_workload("workload", &text, &mut |_| Err("no files here".to_owned()))
            .map_err(|e| e.to_string())?;
        Ok(Traffic::generate(&workload, self.seed))
    }

    fn attained(&self, run: &ServingRun, traffic: &Traffic) -> f64 {
        let good = run.outcomes.iter().zip(&traffic.requests).filter(|(o, r)| {
            let first = (o.first_token - o.sent).0 as f64 * 1e-12;
            let answer = (o.finish - o.first_token).0 as f64 * 1e-12;
            !o.refused && first <= self.ttft_s && answer <= self.tpot_s * f64::from(r.output.max(2) - 1)
        });
        good.count() as f64 / traffic.requests.len().max(1) as f64
    }

    fn split(&self, priced: &Priced, rate: f64) -> Result<f64, String> {
        let traffic = self.traffic(rate)?;
        let budget = self.prefill.token_budget.unwrap_or(priced.engine.token_budget);
        let prompts = EngineProfile { token_budget: budget, ..priced.engine.clone() };
        let pool = |cost, engine, side: &Side, group| Pool {
            cost,
            engine,
            instances: side.instances,
            context_parallel: 1,
            group,
        };
        let other = usize::from(priced.cluster.groups.len() > 1);
        let out = simulate_disaggregated(&DisaggregatedInput {
            prefill: pool(&priced.prefill, &prompts, &self.prefill, 0),
            decode: pool(&priced.decode, &priced.engine, &self.decode, other),
            cluster: &priced.cluster,
            placement: Placement::Paired,
            transfer: TransferMode::AfterPrompt,
            traffic: &traffic,
            coalesce: true,
        });
        Ok(self.attained(&out.map_err(|e| e.to_string())?.run, &traffic))
    }

    fn together(&self, priced: &Priced, rate: f64) -> Result<f64, String> {
        let traffic = self.traffic(rate)?;
        let run = simulate(&ServingInput {
            cost: &priced.together,
            engine: &priced.together_engine,
            traffic: &traffic,
            replicas: self.together.instances,
            options: FleetOptions { router: Router::LeastLoad, ..FleetOptions::default() },
        });
        Ok(self.attained(&run.map_err(|e| e.to_string())?, &traffic))
    }

    /// Highest rate at which enough requests are served well, to 1 per cent.
    fn highest(&self, attained: &dyn Fn(f64) -> Result<f64, String>) -> Result<f64, String> {
        let (mut low, mut high) = (0.01, 200.0);
        while high / low > 1.01 {
            let middle = f64::sqrt(low * high);
            if attained(middle)? >= self.attainment { low = middle } else { high = middle }
        }
        Ok(low)
    }
}

/// Rate per accelerator of the split over that of the engine together.
///
/// # Errors
/// A sentence: a wrong file, or runs that cannot be done.
pub(super) fn rate_ratio(table: &toml::Table) -> Result<f64, String> {
    let value = table.get("split").cloned().ok_or("no table `split`")?;
    let split: Split = value.try_into().map_err(|e| format!("split: {e}"))?;
    let model = presets::find(&split.model).map_err(|e| e.to_string())?;
    let priced = price(&split, &model)?;
    let apart = split.highest(&|rate| split.split(&priced, rate))?;
    let one = split.highest(&|rate| split.together(&priced, rate))?;
    let devices = split.prefill.accelerators() + split.decode.accelerators();
    Ok(apart / devices / (one / split.together.accelerators()))
}

/// Replicas on two kinds of accelerators behind one router.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mixed {
    model: String,
    engine: String,
    kinds: Vec<Side>,
    router: String,
    workload: String,
    seed: u64,
    /// What an average request is, for the weights.
    typical: [u32; 2],
    /// Routers know the speeds; else every replica counts the same.
    weighed: bool,
    metric: String,
}

/// A figure of a run on several kinds of replicas.
///
/// # Errors
/// A sentence: a wrong file, or runs that cannot be done.
pub(super) fn mixed(table: &toml::Table) -> Result<f64, String> {
    let of = |name: &str| -> Result<f64, String> {
        let mut own = table.get("base").and_then(toml::Value::as_table).cloned().unwrap_or_default();
        own.extend(
            table.get(name).and_then(toml::Value::as_table).cloned().ok_or(format!("no table `{name}`"))?,
        );
        let mixed: Mixed = own.try_into().map_err(|e| format!("{name}: {e}"))?;
        let model = presets::find(&mixed.model).map_err(|e| e.to_string())?;
        let engine = engine::find(&mixed.engine).ok_or_else(|| format!("no engine `{}`", mixed.engine))?;
        let library = ProfileLibrary::built_in();
        let mut costs = Vec::new();
        for side in &mixed.kinds {
            let name = side.accelerator.as_deref().ok_or("a kind names no accelerator")?;
            let cluster = homogeneous(name, 8, &HomogeneousOptions::default()).map_err(|e| e.to_string())?;
            let d = Deployment { pp: side.pp, ..in_16_bits(side.tp) };
            let cost = StepCost::new(&model, &d, &cluster, cluster.first_node(), engine, &library);
            costs.push(cost.map_err(|e| e.to_string())?);
        }
        let typical = (mixed.typical[0], mixed.typical[1]);
        let groups: Vec<ReplicaGroup<'_>> = mixed
            .kinds
            .iter()
            .zip(&costs)
            .map(|(side, cost)| {
                let group = ReplicaGroup::weighed(cost, engine, side.instances, typical);
                ReplicaGroup { weight: if mixed.weighed { group.weight } else { 1.0 }, ..group }
            })
            .collect();
        let workload = parse_workload("workload", &mixed.workload, &mut |_| Err("no files here".to_owned()))
            .map_err(|e| e.to_string())?;
        let traffic = Traffic::generate(&workload, mixed.seed);
        let options = FleetOptions { router: Router::parse(&mixed.router)?, ..FleetOptions::default() };
        let run = simulate_mixed(&MixedInput { groups: &groups, traffic: &traffic, options })
            .map_err(|e| e.to_string())?;
        let report = ServingReport::new(&run, &traffic, &[]);
        super::serving::figure(&mixed.metric, &run, &report, &traffic)
    };
    Ok(of("run")? / of("against")?)
}
