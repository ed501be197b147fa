//! The published APEX runs: Llama-3.1-70B in 16 bits on 8 H100 under vLLM 0.6.0, replayed with their arrivals and the
//! lengths that were served.
//!
//! vLLM of that release turns on chunked prefill with 512 tokens a step for contexts beyond 32 Ki tokens (this model's
//! is 128 Ki; `EngineArgs`, 0.5.4 to 0.6.x), and the runs set `--gpu-memory-utilization 0.97`. Nothing here is fitted
//! to these runs.

use flate2::read::GzDecoder;
use psim_cost_models::ProfileLibrary;
use psim_cost_models::serving::engine::{Policy, find};
use psim_cost_models::serving::{EngineProfile, StepCost};
use psim_hardware::Seconds;
use psim_hardware::Time;
use psim_hardware::catalogue::{HomogeneousOptions, homogeneous};
use psim_models::presets;
use psim_models::serving::{Deployment, NumberFormat, Quantization, Request, SharedPrefixes, Traffic};
use psim_sim::serving::{FleetOptions, ServingInput, ServingReport, simulate};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/traces/apex");

/// Rows of a CSV as column name to text.
fn table(text: &str) -> Vec<BTreeMap<String, String>> {
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let row =
        |line: &str| header.iter().zip(line.split(',')).map(|(h, v)| (h.to_string(), v.to_owned())).collect();
    lines.map(row).collect()
}

/// One published run or replica.
struct Run {
    workload: String,
    layout: String,
    tp: u32,
    traffic: Traffic,
    ttft_ms: f64,
    tpot_ms: f64,
}

fn runs() -> Option<Vec<Run>> {
    let folder = Path::new(FOLDER);
    let Ok(listed) = std::fs::read_to_string(folder.join("measured_runs.csv")) else {
        println!("SKIP: {FOLDER} is not here; nothing was checked");
        return None;
    };
    let mut text = String::new();
    let file = std::fs::File::open(folder.join("measured_output_diff.csv.gz")).unwrap();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let mut differences: BTreeMap<String, BTreeMap<usize, (i64, i64)>> = BTreeMap::new();
    for row in table(&text) {
        let pair = (row["prompt_diff"].parse().unwrap(), row["output_diff"].parse().unwrap());
        differences.entry(row["run"].clone()).or_default().insert(row["request"].parse().unwrap(), pair);
    }
    let wanted = |r: &BTreeMap<String, String>| {
        r["engine"] == "vllm" && r["family"] == "llama" && r["workload"] != "creation"
    };
    let run = |r: BTreeMap<String, String>| {
        let trace = table(&std::fs::read_to_string(folder.join(&r["trace"])).unwrap());
        let column = match r["layout"].as_str() {
            "2DPx4TP" => Some("replica_2dp"),
            "4DPx2TP" => Some("replica_4dp"),
            _ => None,
        };
        let served = &differences[&r["run"]];
        let total: i64 = r["served_output_tokens"].parse().unwrap();
        let mut requests = Vec::new();
        let (mut sum, mut missing) = (0i64, None);
        for line in trace.iter().filter(|l| column.is_none_or(|c| l[c] == r["replica"])) {
            let number: usize = line["request"].parse().unwrap();
            let lengths = |name: &str| line[name].parse::<i64>().unwrap();
            let (prompt, output) = match served.get(&number) {
                Some((p, o)) => (lengths("input_tokens") + p, lengths("output_tokens") + o),
                None => {
                    missing = Some(requests.len());
                    (lengths("input_tokens"), 0)
                }
            };
            sum += output;
            requests.push(Request {
                arrival: Time::from(Seconds(line["arrival_s"].parse().unwrap())),
                input: prompt.max(1) as u32,
                output: output.max(1) as u32,
                prefix: 0,
                prefix_group: 0,
                tenant: 0,
                turn: 0,
                session: 0,
                history: 0,
                think: Time(0),
                adapter: 0,
            });
        }
        // One request of each log is cut off; what the sums leave is its answer.
        if let Some(index) = missing {
            requests[index].output = (total - sum).max(1) as u32;
        }
        let tp = r["layout"].trim_end_matches("TP").rsplit('x').next().unwrap().parse().unwrap();
        Run {
            workload: format!("{} {}", r["workload"], r["nominal_rate_rps"]),
            layout: r["layout"].clone(),
            tp,
            traffic: Traffic { requests, clients: None, prefixes: SharedPrefixes::default() },
            ttft_ms: 1e3 * r["mean_ttft_s"].parse::<f64>().unwrap(),
            tpot_ms: r["mean_tpot_ms"].parse().unwrap(),
        }
    };
    Some(table(&listed).into_iter().filter(wanted).map(run).collect())
}

fn engine() -> EngineProfile {
    EngineProfile {
        policy: Policy::ChunkedPrefill,
        token_budget: 512,
        max_sequences: 256,
        memory_share: 0.97,
        ..find("vllm-2024").unwrap().clone()
    }
}

#[test]
fn published_apex_runs_are_replayed_within_their_tolerance() {
    let Some(runs) = runs() else { return };
    let cluster = homogeneous("H100-SXM-80GB", 8, &HomogeneousOptions::default()).unwrap();
    let model = presets::find("llama3-70b").unwrap();
    let library = ProfileLibrary::built_in();
    let engine = engine();
    let quantization = Quantization::uniform(NumberFormat::Bf16);
    // Workload and layout to the mean over replicas of (measured, predicted) TTFT and TPOT.
    let mut means: BTreeMap<(String, String), Vec<[f64; 4]>> = BTreeMap::new();
    for run in &runs {
        let deployment = Deployment::tensor_parallel(run.tp, quantization);
        let cost =
            StepCost::new(&model, &deployment, &cluster, cluster.first_node(), &engine, &library).unwrap();
        let input = ServingInput {
            cost: &cost,
            engine: &engine,
            traffic: &run.traffic,
            replicas: 1,
            options: FleetOptions::default(),
        };
        let report = ServingReport::new(&simulate(&input).unwrap(), &run.traffic, &[]);
        let figures = [run.ttft_ms, report.ttft_ms.mean, run.tpot_ms, report.tpot_ms.mean];
        means.entry((run.workload.clone(), run.layout.clone())).or_default().push(figures);
    }
    let mut wrong = Vec::new();
    let mut tpot: BTreeMap<(String, String), (f64, f64)> = BTreeMap::new();
    for ((workload, layout), rows) in &means {
        let mean = |i: usize| rows.iter().map(|r| r[i]).sum::<f64>() / rows.len() as f64;
        let error = |measured: f64, predicted: f64| 100.0 * (predicted / measured - 1.0);
        let (ttft, step) = (error(mean(0), mean(1)), error(mean(2), mean(3)));
        println!(
            "{workload:18} {layout:8} TTFT {:6.1} ms, measured {:6.1} ({ttft:+.1} %)  TPOT {:5.2} ms, measured {:5.2} ({step:+.1} %)",
            mean(1),
            mean(0),
            mean(3),
            mean(2)
        );
        tpot.insert((workload.clone(), layout.clone()), (mean(2), mean(3)));
        if step.abs() > 10.0 {
            wrong.push(format!("{workload} {layout}: TPOT {step:+.1} %"));
        }
        if layout == "8TP" && ttft.abs() > 20.0 {
            wrong.push(format!("{workload} {layout}: TTFT {ttft:+.1} %"));
        }
    }
    for workload in means.keys().map(|k| &k.0) {
        let of = |layout: &str| tpot[&(workload.clone(), layout.to_owned())].1;
        let order = [of("8TP"), of("2DPx4TP"), of("4DPx2TP")];
        assert!(order[0] < order[1] && order[1] < order[2], "{workload}: {order:?}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
