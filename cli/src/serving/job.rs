//! The serving job of plan, simulate, explain and report: model, cluster, traffic, engine.

use super::deployment::Deployed;
use super::formats::{as_published, formats, kv_format};
use super::workload;
use crate::Host;
use crate::failure::Failure;
use crate::files::read_text;
use crate::inputs::{CommonArguments, JobArguments, cluster, model, settings};
use crate::number::{seconds, three};
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::engine::{DEFAULT_ENGINE, VersionError, engines, find, named};
use psim_cost_models::serving::{EngineProfile, Policy};
use psim_hardware::source_error::{MAX_FILE_BYTES, parse_toml};
use psim_hardware::suggest::closest;
use psim_hardware::{Cluster, Node};
use psim_models::Model;
use psim_models::serving::{Arrival, Quantization, ServingWorkload};
use psim_planner::Assumption;
use psim_planner::serving::ServingRequest;
use std::path::Path;

/// Requests of one simulation of the search; more narrow the percentiles and take longer.
const SEARCH_REQUESTS: u32 = 400;

/// A serving job, loaded.
#[derive(Debug)]
pub(crate) struct ServingJob {
    pub(crate) model: Model,
    pub(crate) cluster: Cluster,
    pub(crate) workload: ServingWorkload,
    pub(crate) engine: EngineProfile,
    /// The engine as it was named: a built-in profile, a policy, a file.
    pub(crate) engine_name: String,
    pub(crate) quantization: Quantization,
    pub(crate) library: ProfileLibrary,
    pub(crate) seed: u64,
    /// Settings applied, as typed.
    pub(crate) settings: Vec<String>,
    /// Defaults taken.
    pub(crate) assumptions: Vec<Assumption>,
    /// Group of the cluster's nodes on which replicas lie.
    pub(crate) group: usize,
}

/// Engines that have no profile of their own and run as a policy on the numbers of another.
fn policy_engine(name: &str) -> Option<EngineProfile> {
    let policy = Policy::parse(name).ok()?;
    let base = match policy {
        Policy::Static
        | Policy::Orca
        | Policy::PrefillPriority
        | Policy::Flover
        | Policy::FastSwitch
        | Policy::SLora => "vllm-2024",
        Policy::SplitFuse => "deepspeed-mii-2024",
        Policy::Radix => "sglang",
        Policy::InflightNoEvict => "trtllm-1.0",
        Policy::ChunkedPrefill | Policy::FlexLlm => "vllm-v1",
    };
    let base = find(base)?;
    Some(EngineProfile { name: format!("{name} (numbers of {})", base.name), policy, ..base.clone() })
}

/// What to do about a release that is not known.
const UNVERSIONED: &str = "a name without `@` and a release takes the newest that is known";

/// An engine profile by name, with or without a release (`vllm@0.12`), or by file.
pub(crate) fn load_engine(host: &Host<'_>, given: &str) -> Result<EngineProfile, Failure> {
    let path = Path::new(given);
    if host.path(path).is_file() {
        let text = read_text(host, path, "engine profile", MAX_FILE_BYTES)?;
        let hint = "`psim show engines NAME` prints a built-in one to start from";
        return Ok(parse_toml(&path.display().to_string(), &text, "engine profile", 1, hint)?);
    }
    match named(given) {
        Ok(engine) => return Ok(engine),
        Err(VersionError::Engine(_)) => {}
        Err(refused) => return Err(Failure::input(refused.to_string(), UNVERSIONED)),
    }
    if let Some(engine) = policy_engine(given) {
        return Ok(engine);
    }
    if let Err(reason) = Policy::parse(given)
        && reason.contains("not built")
    {
        return Err(Failure::input(reason, "`psim show engines` lists what is built in"));
    }
    let hint = match closest(given, engines().iter().map(|e| e.name.as_str())) {
        Some(near) => format!("did you mean `{near}`? `psim show engines` lists the built-in ones"),
        None => "`psim show engines` lists the built-in ones".to_owned(),
    };
    Err(Failure::input(format!("there is no serving engine `{given}`, neither built in nor as a file"), hint))
}

/// Applies `--set key=value` to an engine; numbers of the accelerator in use are what is changed.
fn with_settings(
    engine: &EngineProfile,
    list: &[String],
    accelerator: &str,
) -> Result<EngineProfile, Failure> {
    if list.is_empty() {
        return Ok(engine.clone());
    }
    let mut changed =
        EngineProfile { parameters: engine.on(accelerator).0, accelerator: Vec::new(), ..engine.clone() };
    for setting in list {
        let before = changed.parameters;
        changed =
            settings::apply_to(&changed, setting, "`psim show engines NAME` prints the present values")?;
        // What is set holds, whatever the release said of it.
        for table in &mut changed.release {
            table.parameters.retain(|name, _| before.get(name) == changed.parameters.get(name));
        }
        let p = &changed.parameters;
        for (name, low, high) in psim_cost_models::serving::EngineParameters::BOUNDS {
            if let Some(value) = p.get(name).filter(|v| !(low..=high).contains(v)) {
                return Err(Failure::input(
                    format!(
                        "`--set {setting}`: {name} is {}, must lie between {low} and {high}",
                        three(value)
                    ),
                    "the bounds are those of the physical quantity",
                ));
            }
        }
    }
    Ok(changed)
}

/// Flags of training that say nothing about traffic.
fn refuse_training_flags(job: &JobArguments) -> Result<(), Failure> {
    let given = [
        ("--global-batch", job.global_batch.is_some()),
        ("--seq-len", job.seq_len.is_some()),
        ("--tokens", job.tokens.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Failure::input(
            format!("{flag} belongs to training, and the workload is traffic"),
            "lengths and rates of requests stand in the workload file",
        )),
        None => Ok(()),
    }
}

/// Says where a workload sends only the beginning of its day, which is its quietest part.
fn partial_days(workload: &ServingWorkload, assumptions: &mut Vec<Assumption>) {
    for tenant in &workload.tenants {
        let Arrival::Diurnal { mean, period_s, .. } = tenant.arrival else { continue };
        let sent = tenant.duration_s.unwrap_or(f64::INFINITY);
        let sent = sent.min(tenant.requests.map_or(f64::INFINITY, |n| f64::from(n) / mean));
        if sent < 0.95 * period_s {
            assumptions.push(Assumption {
                name: format!("the day of {}", tenant.name),
                value: format!("its first {} of {}", seconds(sent), seconds(period_s)),
                why: "a day begins at its quietest; more `requests` for all of it. Searches take its peak"
                    .to_owned(),
            });
        }
    }
}

impl ServingJob {
    /// Loads everything. The engine, formats and limits of a deployment count unless `--stack` says otherwise.
    pub(crate) fn load(
        job: &JobArguments,
        common: &CommonArguments,
        deployed: Option<&Deployed>,
        host: &Host<'_>,
    ) -> Result<Self, Failure> {
        refuse_training_flags(job)?;
        let Some(path) = &job.workload else {
            return Err(Failure::defect("a serving job without a workload"));
        };
        let workload = workload::load(host, path)?;
        let model = model::load(host, &job.model)?;
        let cluster = cluster::load(host, &job.cluster)?;
        let mut assumptions = Vec::new();
        let group = deployed.map_or(Ok(0), |d| d.group(&cluster))?;
        partial_days(&workload, &mut assumptions);
        if cluster.source.starts_with("catalogue: ") {
            assumptions.push(Assumption {
                name: "cluster".to_owned(),
                value: cluster.description.trim_end_matches('.').to_owned(),
                why: "the usual node, one full-bisection switch; --cluster FILE".to_owned(),
            });
        }
        let named = common.stack.as_deref().or(deployed.and_then(Deployed::engine));
        let name = named.unwrap_or_else(|| {
            assumptions.push(Assumption {
                name: "engine".to_owned(),
                value: DEFAULT_ENGINE.to_owned(),
                why: "the newest vLLM; --stack".to_owned(),
            });
            DEFAULT_ENGINE
        });
        let (engine, engine_name) = (load_engine(host, name)?, name.to_owned());
        let part = &cluster.groups.get(group).map_or(cluster.first_node(), |g| &g.node).accelerator.name;
        let mut engine = with_settings(&engine, &common.settings, part)?;
        if let Some(deployed) = deployed {
            deployed.limit(&mut engine);
        }
        let given = (
            job.precision.map(crate::inputs::job::Format::serving).transpose()?,
            job.kv_precision.as_deref().map(kv_format).transpose()?,
        );
        let quantization = match deployed {
            Some(d) if given == (None, None) => match model.checkpoint {
                Some(published) if !d.names_weights() => {
                    assumptions.push(Assumption {
                        name: "weights".to_owned(),
                        value: published.experts.name().to_owned(),
                        why: "as this model is published; `weights` of the deployment".to_owned(),
                    });
                    Quantization { kv: d.quantization.kv, ..published }
                }
                _ => as_published(&model, d.quantization),
            },
            Some(_) => {
                return Err(Failure::input(
                    "--precision and --kv-precision stand beside a deployment that has formats of its own",
                    "change `weights` and `kv` of the deployment file",
                ));
            }
            None => formats(&model, given.0, given.1, &mut assumptions),
        };
        let (prompt, answer) = workload.mean_lengths();
        if let Some(context) = model.max_context.filter(|&context| prompt + answer > context as f64) {
            assumptions.push(Assumption {
                name: "context".to_owned(),
                value: format!("{:.0} tokens a request on average", prompt + answer),
                why: format!(
                    "beyond the {context} that the model was released for; engines refuse them unless told so"
                ),
            });
        }
        let (library, _) = common.library(host)?;
        Ok(Self {
            model,
            cluster,
            workload,
            engine,
            engine_name,
            quantization,
            library,
            seed: common.seed,
            settings: common.settings.clone(),
            assumptions,
            group,
        })
    }

    /// The nodes on which replicas lie.
    pub(crate) fn node(&self) -> &Node {
        self.cluster.groups.get(self.group).map_or(self.cluster.first_node(), |g| &g.node)
    }

    /// The question for the planner.
    pub(crate) fn request(&self) -> ServingRequest<'_> {
        ServingRequest {
            model: &self.model,
            cluster: &self.cluster,
            engine: &self.engine,
            workload: &self.workload,
            quantization: self.quantization,
            library: &self.library,
            requests: SEARCH_REQUESTS,
            seed: self.seed,
        }
    }
}
