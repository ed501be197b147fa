use super::*;
use psim_models::plan::{Precision, Schedule, Sharding};

pub(crate) fn facts() -> Facts {
    Facts {
        heads: vec![96],
        kv_heads: vec![8],
        ffn_widths: vec![49_152],
        layers: 96,
        experts: None,
        seq_len: 2048,
        accelerators: 64,
        per_node: 8,
        may_idle: false,
        formats: vec![DType::Bf16],
        accelerator: "A100-SXM-80GB".to_owned(),
    }
}

fn plan() -> Plan {
    Plan { tp: 4, pp: 4, dp: 4, global_batch: 64, ..Plan::default() }
}

fn killer(change: impl FnOnce(&mut Facts, &mut Plan)) -> Option<(&'static str, String)> {
    let (mut facts, mut plan) = (facts(), plan());
    change(&mut facts, &mut plan);
    first_violation(&facts, &plan).map(|r| (r.name(), r.explain(&facts, &plan)))
}

#[test]
fn a_sound_plan_passes_every_rule() {
    assert_eq!(killer(|_, _| {}), None);
}

#[test]
fn each_rule_names_itself_and_the_numbers() {
    let cases = vec![
        ("cluster size", "7", killer(|f, _| f.accelerators = 7)),
        ("attention heads", "12", killer(|f, p| (f.heads, p.tp, p.dp) = (vec![12], 16, 1))),
        ("key-value heads", "6", killer(|f, _| f.kv_heads = vec![6])),
        ("feed-forward width", "4098", killer(|f, _| f.ffn_widths = vec![4098])),
        ("context-parallel slices", "128", killer(|_, p| (p.cp, p.tp, p.pp, p.dp) = (64, 1, 1, 1))),
        ("experts", "no experts", killer(|_, p| p.ep = 2)),
        ("experts", "60", killer(|f, p| (f.experts, p.ep) = (Some((60, 1024)), 8))),
        ("layers per stage", "96", killer(|_, p| (p.vpp, p.schedule) = (25, Schedule::Interleaved))),
        ("schedule", "vpp", killer(|_, p| p.schedule = Schedule::Interleaved)),
        ("schedule", "vpp = 1", killer(|_, p| p.vpp = 2)),
        ("global batch over replicas", "63", killer(|_, p| p.global_batch = 63)),
        ("micro-batch", "16", killer(|_, p| p.micro_batch = 3)),
        (
            "interleaved rounds",
            "multiple of pp = 4",
            killer(|_, p| {
                (p.vpp, p.schedule, p.micro_batch, p.global_batch) = (2, Schedule::Interleaved, 1, 24);
            }),
        ),
        ("sharding", "pp = 4", killer(|_, p| p.sharding = Sharding::Parameters)),
        ("sharding", "dp = 1", killer(|_, p| (p.dp, p.pp) = (1, 16))),
        ("sequence parallelism", "2047", killer(|f, _| f.seq_len = 2047)),
        ("precision", "fp8", killer(|_, p| p.precision = Precision::Fp8)),
    ];
    for (name, number, found) in cases {
        let (rule, text) = found.unwrap_or_else(|| panic!("`{name}` let the plan pass"));
        assert_eq!(rule, name, "{text}");
        assert!(text.contains(number), "`{text}` does not say {number}");
    }
}

#[test]
fn rules_stand_in_the_order_of_their_stages() {
    let stages: Vec<Stage> = ALL.iter().map(|r| r.stage()).collect();
    assert!(stages.is_sorted(), "{stages:?}");
    let mut names: Vec<&str> = ALL.iter().map(|r| r.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ALL.len());
}

#[test]
fn absurd_sizes_do_not_overflow() {
    let found = killer(|_, p| (p.tp, p.pp, p.dp) = (u32::MAX, u32::MAX, u32::MAX));
    assert_eq!(found.map(|f| f.0), Some("cluster size"));
}
