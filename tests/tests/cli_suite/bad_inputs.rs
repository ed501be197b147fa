//! Bad input: always an exit code of 1 or 2, a message that names the cause (and file and line where there is one), a
//! hint, and never a panic.

use crate::harness::{directory, psim_in};

const PLAN: &str = "schema = 1\ntp = 8\npp = 2\ndp = 4\nmicro_batch = 1\nglobal_batch = 512\n";
const NODES: &str = "schema = 1\n[[nodes]]\ncount = 8\nsystem = \"dgx-h100\"\n";
const SIMULATE: &str = "simulate --model 70b --cluster h100x64 --plan f.toml";
const CLUSTER: &str = "plan --model 70b --cluster f.toml";
const WORKLOAD: &str = "plan --model 70b --cluster h100x64 --workload f.toml";
const MODEL: &str = "plan --cluster h100x64 --model f.json";
const ROWS: &str = "validate f.jsonl";
const STACK: &str = "plan --model 70b --cluster h100x64 --stack f.toml";

/// A case: what is wrong, command, file contents, exit code, parts of stderr.
struct Case(&'static str, &'static str, Vec<u8>, u8, &'static [&'static str]);

fn text(contents: impl Into<String>) -> Vec<u8> {
    contents.into().into_bytes()
}

/// A plan with one line replaced.
fn plan(from: &str, to: &str) -> Vec<u8> {
    assert!(PLAN.contains(from));
    text(PLAN.replace(from, to))
}

fn none() -> Vec<u8> {
    Vec::new()
}

fn cluster_cases() -> Vec<Case> {
    let with = |lines: &str| text(format!("{NODES}{lines}"));
    vec![
        Case("empty cluster", CLUSTER, none(), 2, &["f.toml", "empty"]),
        Case("cluster of garbage", CLUSTER, vec![0xff; 5000], 2, &["f.toml", "UTF-8"]),
        Case(
            "10 MB of garbage",
            CLUSTER,
            b"\x07x\x1b[31m".repeat(1_500_000),
            2,
            &["f.toml", "bytes, more than"],
        ),
        Case(
            "unknown key",
            CLUSTER,
            with("gpus = 8\n"),
            2,
            &["f.toml:5:1", "unknown field `gpus`", "gpus = 8"],
        ),
        Case(
            "misspelt key",
            CLUSTER,
            with("acelerators = 8\n"),
            2,
            &["f.toml:5", "did you mean `accelerators`?"],
        ),
        Case("wrong unit", CLUSTER, with("host_link = \"64GB\"\n"), 2, &["f.toml:5:13", "`GB`", "Gb/s"]),
        Case("no unit", CLUSTER, with("host_memory = 512\n"), 2, &["f.toml:5", "80GiB"]),
        Case("NaN", CLUSTER, with("price_per_gpu_hour = nan\n"), 2, &["f.toml:5:22", "NaN"]),
        Case("negative", CLUSTER, with("host_power = \"-1kW\"\n"), 2, &["f.toml:5", "-1kW"]),
        Case("zero nodes", CLUSTER, text(NODES.replace('8', "0")), 2, &["f.toml:3", "count is 0"]),
        Case(
            "absurd size",
            CLUSTER,
            text(NODES.replace("count = 8", "count = 9000000")),
            2,
            &["f.toml:3:9", "72000000 accelerators"],
        ),
        Case(
            "unknown accelerator",
            CLUSTER,
            with("accelerator = \"h10\"\n"),
            2,
            &["f.toml:5:15", "did you mean `h100`?"],
        ),
        Case(
            "unusable accelerator",
            CLUSTER,
            with("accelerator = \"ascend-910b\"\n"),
            2,
            &["Ascend-910B", "no public figure"],
        ),
        Case("bad domain", CLUSTER, with("scale_up = { domain = 3 }\n"), 2, &["f.toml:5", "domain 3"]),
        Case("pue below one", CLUSTER, text(format!("pue = 0.5\n{NODES}")), 2, &["f.toml:1:7", "pue is 0.5"]),
        Case("newer schema", CLUSTER, text("schema = 7\n"), 2, &["f.toml:1:1", "schema 7", "update psim"]),
        Case(
            "cluster by absurd size",
            "plan --model 70b --cluster h100x4000000000",
            none(),
            2,
            &["4000000000", "16777216"],
        ),
        Case("cluster by odd size", "plan --model 70b --cluster h100x12", none(), 2, &["12", "nodes of 8"]),
        Case("cluster by size 0", "plan --model 70b --cluster h100x0", none(), 2, &["at least one"]),
        Case("no such path", "plan --model 70b --cluster some/where.toml", none(), 2, &["some/where.toml"]),
        Case("a directory", "plan --model 70b --cluster .", none(), 2, &["is a directory"]),
        Case("no name", "plan --model 70b --cluster ''", none(), 2, &["no name"]),
    ]
}

fn plan_cases() -> Vec<Case> {
    vec![
        Case("empty plan", SIMULATE, none(), 2, &["f.toml", "empty"]),
        Case("no schema", SIMULATE, plan("schema = 1\n", ""), 2, &["f.toml", "schema = 1"]),
        Case("zero tp", SIMULATE, plan("tp = 8", "tp = 0"), 2, &["f.toml:2:1", "tp is 0"]),
        Case("negative pp", SIMULATE, plan("pp = 2", "pp = -2"), 2, &["f.toml:3", "-2"]),
        Case("fraction", SIMULATE, plan("dp = 4", "dp = 0.5"), 2, &["f.toml:4", "0.5"]),
        Case("too many ranks", SIMULATE, plan("dp = 4", "dp = 64"), 2, &["f.toml:2", "1024", "64"]),
        Case("absurd degree", SIMULATE, plan("dp = 4", "dp = 4294967295"), 2, &["f.toml:4", "4294967295"]),
        Case(
            "batch does not divide",
            SIMULATE,
            plan("micro_batch = 1", "micro_batch = 7"),
            2,
            &["f.toml:6", "512"],
        ),
        Case("missing key", SIMULATE, plan("tp = 8\n", ""), 2, &["f.toml", "missing field `tp`"]),
        Case("unknown key", SIMULATE, plan("tp = 8", "tpp = 8"), 2, &["f.toml:2:1", "did you mean `tp`?"]),
        Case(
            "unknown schedule",
            SIMULATE,
            plan("tp = 8", "schedule = \"1f1d\"\ntp = 8"),
            2,
            &["f.toml:2", "did you mean `1f1b`?"],
        ),
        Case(
            "stages than layers",
            SIMULATE,
            plan("pp = 2", "pp = 2\nstage_layers = [1, 2]"),
            2,
            &["f.toml", "80"],
        ),
        Case("text for a number", SIMULATE, plan("tp = 8", "tp = \"eight\""), 2, &["f.toml:2:6", "string"]),
        Case("an array", SIMULATE, plan("tp = 8", "tp = [8]"), 2, &["f.toml:2:6"]),
        Case("twice", SIMULATE, plan("tp = 8", "tp = 8\ntp = 8"), 2, &["f.toml:3", "duplicate key"]),
        Case(
            "experts that do not fold",
            SIMULATE,
            plan("tp = 8", "tp = 8\nep = 5"),
            2,
            &["f.toml:3", "ep 5"],
        ),
        Case(
            "a spread of one representative rank",
            "simulate --model 70b --cluster h100x64 --plan f.toml --spread 0.02",
            text(PLAN),
            2,
            &["--level l3"],
        ),
        Case(
            "batch contradicts",
            "simulate --model 70b --cluster h100x64 --plan f.toml --global-batch 64",
            text(PLAN),
            2,
            &["contradicts"],
        ),
        Case(
            "fp8 on a100",
            "simulate --model 70b --cluster a100x64 --plan f.toml --precision fp8",
            text(PLAN),
            2,
            &["has no fp8 units"],
        ),
        Case(
            "7 accelerators for tp 4",
            "plan --model 70b --cluster f.toml",
            text("schema = 1\n[[nodes]]\ncount = 1\nsystem = \"dgx-h100\"\naccelerators = 7\n"),
            1,
            &["no plan is feasible"],
        ),
        Case(
            "does not fit",
            "simulate --model 70b --cluster h100x8 --plan f.toml",
            text("schema = 1\ntp = 8\npp = 1\ndp = 1\nmicro_batch = 1\nglobal_batch = 8\n"),
            1,
            &["needs", "GB", "largest parts"],
        ),
        Case(
            "trace nowhere",
            "simulate --model 70b --cluster h100x64 --plan f.toml --trace no/such/dir/t.json",
            text(PLAN),
            2,
            &["cannot write", "no/such/dir/t.json"],
        ),
    ]
}

fn workload_and_model_cases() -> Vec<Case> {
    let work = |line: &str| text(format!("schema = 1\nseq_len = 8192\nglobal_batch = 512\n{line}\n"));
    vec![
        Case("empty workload", WORKLOAD, none(), 2, &["f.toml", "empty"]),
        Case(
            "zero length",
            WORKLOAD,
            text("schema = 1\nseq_len = 0\nglobal_batch = 8\n"),
            2,
            &["seq_len", "f.toml"],
        ),
        Case(
            "zero batch",
            WORKLOAD,
            text("schema = 1\nseq_len = 8192\nglobal_batch = 0\n"),
            2,
            &["global_batch is 0"],
        ),
        Case("tokens NaN", WORKLOAD, work("tokens = nan"), 2, &["tokens must be"]),
        Case("imbalance below one", WORKLOAD, work("expert_imbalance = 0.1"), 2, &["expert_imbalance"]),
        Case("unknown workload key", WORKLOAD, work("batchsize = 3"), 2, &["f.toml:4:1", "batchsize"]),
        Case("model file missing", MODEL.trim_end_matches("f.json"), none(), 2, &["--model"]),
        Case("no such model file", "plan --cluster h100x64 --model g.json", none(), 2, &["no file `g.json`"]),
        Case("empty model", MODEL, none(), 2, &["f.json", "empty"]),
        Case("model is no JSON", MODEL, text("{\"model_type\": "), 2, &["f.json:1", "not JSON"]),
        Case("model is a list", MODEL, text("[1, 2]"), 2, &["f.json", "list"]),
        Case(
            "unknown architecture",
            MODEL,
            text("{\"model_type\": \"perceptron\"}"),
            2,
            &["f.json", "perceptron"],
        ),
        Case("missing key", MODEL, text("{\"model_type\": \"llama\"}"), 2, &["f.json", "missing key"]),
        Case(
            "negative layers",
            MODEL,
            text(
                "{\"model_type\": \"llama\", \"hidden_size\": 64, \"num_hidden_layers\": -1, \"num_attention_heads\": 4, \"intermediate_size\": 128, \"vocab_size\": 100}",
            ),
            2,
            &["f.json", "num_hidden_layers"],
        ),
        Case("model of garbage", MODEL, vec![0xfe; 3000], 2, &["f.json", "UTF-8"]),
        Case(
            "unknown preset",
            "plan --cluster h100x64 --model lama3-70b",
            none(),
            2,
            &["lama3-70b", "did you mean"],
        ),
        Case("empty model name", "plan --cluster h100x64 --model ''", none(), 2, &["no name"]),
        Case(
            "sequence beyond the table",
            "plan --model gpt3-175b --cluster h100x64 --seq-len 4096",
            none(),
            2,
            &["4096", "2048"],
        ),
    ]
}

fn argument_cases() -> Vec<Case> {
    const JOB: &str = "plan --model 70b --cluster h100x64";
    vec![
        Case(
            "batch 0",
            "plan --model 70b --cluster h100x64 --global-batch 0",
            none(),
            2,
            &["--global-batch", "0"],
        ),
        Case(
            "batch range reversed",
            "plan --model 70b --cluster h100x64 --global-batch 9..3",
            none(),
            2,
            &["9..3"],
        ),
        Case(
            "batch text",
            "plan --model 70b --cluster h100x64 --global-batch many",
            none(),
            2,
            &["many", "512..4096"],
        ),
        Case("tokens NaN", "plan --model 70b --cluster h100x64 --tokens nan", none(), 2, &["nan", "15T"]),
        Case("tokens negative", "plan --model 70b --cluster h100x64 --tokens=-5", none(), 2, &["-5"]),
        Case("sequence 0", "plan --model 70b --cluster h100x64 --seq-len 0", none(), 2, &["--seq-len"]),
        Case(
            "sequence absurd",
            "plan --model 70b --cluster h100x64 --seq-len 99T",
            none(),
            2,
            &["not believable"],
        ),
        Case(
            "precision",
            "plan --model 70b --cluster h100x64 --precision fp88",
            none(),
            2,
            &["did you mean `fp8`?"],
        ),
        Case(
            "objective",
            "plan --model 70b --cluster h100x64 --objective speed",
            none(),
            2,
            &["speed", "time"],
        ),
        Case("top 0", "plan --model 70b --cluster h100x64 --top 0", none(), 2, &["--top"]),
        Case("threads 0", "plan --model 70b --cluster h100x64 --threads 0", none(), 2, &["--threads"]),
        Case(
            "set without value",
            "plan --model 70b --cluster h100x64 --set overlap.tp",
            none(),
            2,
            &["no `=`"],
        ),
        Case(
            "set unknown key",
            "plan --model 70b --cluster h100x64 --set overlap.tpp=true",
            none(),
            2,
            &["did you mean `overlap.tp`?"],
        ),
        Case(
            "set out of bounds",
            "plan --model 70b --cluster h100x64 --set efficiency.gemm=7",
            none(),
            2,
            &["efficiency.gemm"],
        ),
        Case(
            "set of the wrong type",
            "plan --model 70b --cluster h100x64 --set overlap.tp=maybe",
            none(),
            2,
            &["overlap.tp=maybe"],
        ),
        Case("no model", "plan --cluster h100x64", none(), 2, &["--model"]),
        Case("no arguments", "simulate", none(), 2, &["--plan"]),
        Case("empty stack file", STACK, none(), 2, &["f.toml", "empty"]),
        Case("stack of garbage", STACK, text("}{"), 2, &["f.toml:1"]),
        Case(
            "no profile",
            "plan --model 70b --cluster h100x64 --profile f.toml",
            text("x = 1\n"),
            2,
            &["f.toml", "no profile"],
        ),
        Case(
            "profile missing",
            "plan --model 70b --cluster h100x64 --profile g.toml",
            none(),
            2,
            &["no file `g.toml`"],
        ),
        Case("rows missing", "validate g.jsonl", none(), 2, &["no file `g.jsonl`"]),
        Case("rows empty", ROWS, none(), 2, &["f.jsonl"]),
        Case("rows of garbage", ROWS, text("{\"id\": \"a-1\"}\nnonsense\n"), 2, &["f.jsonl:2", "JSON"]),
        Case("rows without id", ROWS, text("{\"source\": \"x\"}\n"), 2, &["f.jsonl:1", "id"]),
        Case("show unknown", "show accelerators h1000", none(), 2, &["did you mean"]),
        Case("show what", "show widgets", none(), 2, &["widgets"]),
        Case("import of launch files", "import run.sh", none(), 2, &["not built yet"]),
        Case(
            "emit impossible",
            "emit --model 70b --cluster h100x64 --plan f.toml --framework torchtitan",
            text(PLAN),
            1,
            &["torchtitan cannot express"],
        ),
        Case(
            "report nowhere",
            "report --model 8b --cluster h100x8 --out no/dir/r.html",
            none(),
            2,
            &["cannot write"],
        ),
        Case(
            "model larger than the cluster",
            "plan --model llama3.1-405b --cluster h100x8",
            none(),
            1,
            &["no plan is feasible", "needs", "TiB"],
        ),
        Case("unknown shell", "completions tcsh", none(), 2, &["tcsh"]),
        Case(
            "compare with nothing",
            "compare --model 70b --cluster h100x64 --plan f.toml",
            text(PLAN),
            2,
            &["--to-plan"],
        ),
        Case(
            "measured nothing",
            "compare --model 70b --cluster h100x64 --plan f.toml --measured-step-time 0s",
            text(PLAN),
            2,
            &["more than 0 s"],
        ),
        Case(
            "measured without unit",
            "compare --model 70b --cluster h100x64 --plan f.toml --measured-step-time 4",
            text(PLAN),
            2,
            &["unit"],
        ),
        Case(JOB, "plan --model 70b --cluster h100x64 --frobnicate", none(), 2, &["--frobnicate"]),
    ]
}

const TENANT: &str = "schema = 1\n[[tenant]]\narrival = \"poisson\"\nrate = 2.0\ninput = { fixed = 512 }\noutput = { fixed = 64 }\n";
const SERVE: &str = "plan --model 8b --cluster h100x8 --workload f.toml";
const DEPLOYED: &str = "simulate --model 8b --cluster h100x8 --workload chat --plan f.toml";

fn serving_cases() -> Vec<Case> {
    let with = |lines: &str| text(format!("{TENANT}{lines}"));
    let put = |from: &str, to: &str| {
        assert!(TENANT.contains(from));
        text(TENANT.replace(from, to))
    };
    let deployed = |lines: &str| text(format!("schema = 1\ntp = 1\n{lines}"));
    vec![
        Case("no tenant", SERVE, text("schema = 1\ntenant = []\n"), 2, &["f.toml", "no [[tenant]]"]),
        Case("tenant of words", SERVE, text("schema = 1\ntenant = 3\n"), 2, &["f.toml:2"]),
        Case("unknown arrival", SERVE, put("poisson", "posson"), 2, &["f.toml:3:11", "`posson`", "poisson"]),
        Case("arrival not built", SERVE, put("poisson", "weibull"), 2, &["f.toml:3", "not built", "gamma"]),
        Case("no rate", SERVE, put("rate = 2.0\n", ""), 2, &["f.toml:3", "needs `rate`"]),
        Case("rate 0", SERVE, put("2.0", "0.0"), 2, &["f.toml:4:8", "above zero"]),
        Case("rate of words", SERVE, put("2.0", "\"fast\""), 2, &["f.toml:4"]),
        Case("NaN rate", SERVE, put("2.0", "nan"), 2, &["f.toml:4:8", "NaN"]),
        Case("absurd rate", SERVE, put("2.0", "1e300"), 2, &["f.toml:4"]),
        Case("length 0", SERVE, put("512", "0"), 2, &["f.toml:5", "outside 1 to"]),
        Case("negative length", SERVE, put("512", "-4"), 2, &["f.toml:5"]),
        Case("absurd length", SERVE, put("512", "99999999999"), 2, &["f.toml:5", "outside 1 to"]),
        Case("unknown distribution", SERVE, put("fixed = 512", "pareto = 5"), 2, &["f.toml:5", "pareto"]),
        Case("unknown key", SERVE, with("burstiness = 2.0\n"), 2, &["f.toml:7:1", "burstiness"]),
        Case("misspelt key", SERVE, with("request = 5\n"), 2, &["f.toml:7", "did you mean `requests`?"]),
        Case("no requests", SERVE, with("requests = 0\n"), 2, &["f.toml:7", "must be 1 to"]),
        Case("absurd requests", SERVE, with("requests = 4000000000\n"), 2, &["f.toml:7"]),
        Case("promise of words", SERVE, with("slo = \"quick\"\n"), 2, &["f.toml:7", "form"]),
        Case("unknown latency", SERVE, with("slo = \"speed<3ms\"\n"), 2, &["f.toml:7", "ttft, tpot"]),
        Case("percentile 0", SERVE, with("slo = \"ttft<1s@p0\"\n"), 2, &["f.toml:7", "0 to 100"]),
        Case(
            "no trace file",
            SERVE,
            put("\"poisson\"", "\"trace\"\ntrace = \"no.csv\""),
            2,
            &["f.toml:4", "no.csv"],
        ),
        Case(
            "trace of garbage",
            SERVE,
            put("\"poisson\"", "\"trace\"\ntrace = \"f.json\""),
            2,
            &["f.toml:4", "layout"],
        ),
        Case("newer schema", SERVE, put("schema = 1", "schema = 9"), 2, &["f.toml:1:1", "schema 9"]),
        Case(
            "closed loop has no plan",
            SERVE,
            put("poisson\"\nrate = 2.0", "closed-loop\"\nconcurrency = 4"),
            2,
            &["closed loop"],
        ),
        Case(
            "training flag",
            "plan --model 8b --cluster h100x8 --workload chat --seq-len 512",
            none(),
            2,
            &["--seq-len"],
        ),
        Case(
            "training goal",
            "plan --model 8b --cluster h100x8 --workload chat --objective memory",
            none(),
            2,
            &["goodput"],
        ),
        Case(
            "training format",
            "plan --model 8b --cluster h100x8 --workload chat --precision mxfp8",
            none(),
            2,
            &["mxfp8"],
        ),
        Case(
            "format of the cache",
            "plan --model 8b --cluster h100x8 --workload chat --kv-precision q9",
            none(),
            2,
            &["q9"],
        ),
        Case(
            "cache of training",
            "plan --model 8b --cluster h100x8 --kv-precision fp8",
            none(),
            2,
            &["serving"],
        ),
        Case(
            "unknown engine",
            "plan --model 8b --cluster h100x8 --workload chat --stack vllm-v7",
            none(),
            2,
            &["vllm-v1"],
        ),
        Case(
            "too small",
            "plan --model 405b --cluster h100x8 --workload chat",
            none(),
            1,
            &["no layout", "GiB"],
        ),
        Case("empty deployment", DEPLOYED, none(), 2, &["f.toml", "empty"]),
        Case("zero ranks", DEPLOYED, text("schema = 1\ntp = 0\n"), 2, &["f.toml:2:1", "tp is 0"]),
        Case("training plan", DEPLOYED, text(PLAN), 2, &["f.toml", "plan of training"]),
        Case("too many", DEPLOYED, deployed("replicas = 9\n"), 2, &["f.toml:3", "needs 9", "has 8"]),
        Case(
            "heads do not divide",
            DEPLOYED,
            text("schema = 1\ntp = 5\n"),
            2,
            &["f.toml:2", "32 query heads"],
        ),
        Case("odd experts", DEPLOYED, deployed("ep = 4\n"), 2, &["f.toml:3", "expert parallelism 4"]),
        Case("unknown router", DEPLOYED, deployed("router = \"random\"\n"), 2, &["f.toml:3", "round-robin"]),
        Case("unknown format", DEPLOYED, deployed("weights = \"fp3\"\n"), 2, &["f.toml:3", "fp3", "w4a16"]),
        Case("unknown deployment key", DEPLOYED, deployed("gpus = 8\n"), 2, &["f.toml:3:1", "gpus"]),
        Case("autoscaling", DEPLOYED, deployed("autoscale = true\n"), 2, &["f.toml:3", "Autoscale"]),
        Case(
            "swap rate without swapping",
            DEPLOYED,
            deployed("swap_gb_per_s = 20.0\n"),
            2,
            &["f.toml:3", "swap_gb_per_s", "preemption"],
        ),
        Case("capacity of nothing", "capacity --model 8b", none(), 2, &["--tokens"]),
        Case("rate of words", "capacity --model 8b --rate fast", none(), 2, &["50rps"]),
        Case("both kinds", "capacity --model 8b --rate 5rps --tokens 1T", none(), 2, &["--tokens"]),
        Case(
            "nothing promised",
            "capacity --model 8b --rate 5rps --input 9 --output 9",
            none(),
            2,
            &["--slo"],
        ),
        Case(
            "impossible promise",
            "capacity --model 8b --rate 5rps --input 9 --output 9 --slo tpot<1us --accelerators h100",
            none(),
            2,
            &["--slo", "1us"],
        ),
        Case(
            "promise that nothing keeps",
            "capacity --model 8b --rate 5rps --input 9 --output 9 --slo tpot<0.001ms --accelerators h100",
            none(),
            1,
            &["H100", "promises"],
        ),
        Case(
            "always up",
            "capacity --model 8b --rate 5rps --availability 100",
            none(),
            2,
            &["impossible to promise"],
        ),
    ]
}

#[test]
fn bad_input_is_answered_with_cause_place_and_hint() {
    let groups =
        [cluster_cases(), plan_cases(), workload_and_model_cases(), argument_cases(), serving_cases()];
    let mut count = 0;
    let mut faults: Vec<String> = Vec::new();
    for Case(what, command, contents, code, parts) in groups.into_iter().flatten() {
        count += 1;
        let files = directory(&[("f.toml", &contents), ("f.json", &contents), ("f.jsonl", &contents)]);
        let run = psim_in(&files, command);
        let mut wrong = Vec::new();
        if run.code != code {
            wrong.push(format!("exit code {} in place of {code}", run.code));
        }
        wrong.extend(parts.iter().filter(|p| !run.err.contains(**p)).map(|p| format!("`{p}` is missing")));
        if !run.err.contains("hint: ") {
            wrong.push("no hint".to_owned());
        }
        if run.err.len() >= 4000 {
            wrong.push(format!("{} bytes of complaint", run.err.len()));
        }
        if run.err.contains('\u{1b}') || run.err.contains('\u{7}') {
            wrong.push("control characters".to_owned());
        }
        if code == 2 && !run.out.is_empty() {
            wrong.push("data in spite of bad input".to_owned());
        }
        if !wrong.is_empty() {
            faults.push(format!("{what}: psim {command}: {}\n{}", wrong.join("; "), run.transcript()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(count >= 140, "{count} cases");
}
