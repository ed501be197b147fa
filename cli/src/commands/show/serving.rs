//! `psim show engines`, `psim show workloads` and `psim show devices`.

use crate::Host;
use crate::failure::Failure;
use crate::serving::load_engine;
use crate::table::{Align::Left, Align::Right, Table};
use psim_cost_models::serving::engine::{self, Version, version::dotted};
use psim_hardware::device;
use psim_models::serving::builtin;
use serde_json::json;
use std::collections::BTreeMap;

/// Engine profiles, or one as the file to start from.
pub(super) fn engines(name: Option<&str>, as_json: bool, host: &mut Host<'_>) -> Result<(), Failure> {
    if let Some(name) = name {
        let engine = load_engine(host, name)?;
        if as_json {
            return host.json(&json!({ "schema": 1, "engine": engine }));
        }
        return host.print(toml::to_string(&engine).map_err(Failure::defect)?);
    }
    let all = engine::engines();
    if as_json {
        return host.json(&json!({ "schema": 1, "engines": all }));
    }
    let columns = [
        ("engine", Left),
        ("policy", Left),
        ("sequences", Right),
        ("tokens/step", Right),
        ("stands for", Left),
    ];
    let mut table = Table::new(&columns);
    for e in all {
        let policy = serde_json::to_value(e.policy).ok().and_then(|v| v.as_str().map(str::to_owned));
        let era: String = e.era.chars().take(44).collect();
        table.row([
            e.name.clone(),
            policy.unwrap_or_default(),
            e.max_sequences.to_string(),
            e.token_budget.to_string(),
            if era.len() < e.era.len() { format!("{era}…") } else { era },
        ]);
    }
    host.print(table.render_within(100))?;
    let mut spans: BTreeMap<&str, (Version, Version)> = BTreeMap::new();
    for r in all.iter().filter_map(|e| e.releases.as_ref()) {
        let span = spans.entry(&r.engine).or_insert((r.first, r.last));
        *span = (span.0.min(r.first), span.1.max(r.last));
    }
    let spans: Vec<String> = spans
        .iter()
        .map(|(name, (first, last))| format!("{name} {} to {}", dotted(*first), dotted(*last)))
        .collect();
    host.print(format!(
        "\nENGINE@RELEASE (`vllm@0.12`) names a release, its era and numbers: {}. Without one, the newest.\n",
        spans.join(", ")
    ))?;
    host.say(
        "A policy is an engine too, on the numbers of one that has it: static, orca, prefill-priority, chunked-prefill, \
         splitfuse, radix, inflight-no-evict, flover, fastswitch, s-lora, flexllm.",
    );
    Ok(())
}

/// Built-in devices of several engines, or one as the file to start from.
pub(super) fn devices(name: Option<&str>, as_json: bool, host: &mut Host<'_>) -> Result<(), Failure> {
    if let Some(name) = name {
        let found = device::find(name)
            .map_err(|e| Failure::input(e, "`psim show devices` lists the built-in ones"))?;
        if as_json {
            return host.json(&json!({ "schema": 1, "device": found }));
        }
        return host.print(device::text(name).unwrap_or_default());
    }
    let all = device::names().map(device::find).collect::<Result<Vec<_>, _>>().map_err(Failure::defect)?;
    if as_json {
        return host.json(&json!({ "schema": 1, "devices": all }));
    }
    let mut table =
        Table::new(&[("device", Left), ("engines", Left), ("memories", Left), ("stands for", Left)]);
    for d in &all {
        let engines: Vec<&str> = d.engine.iter().map(|e| e.name.as_str()).collect();
        let memories: Vec<&str> = d.memory.iter().map(|m| m.name.as_str()).collect();
        let source: String = d.source.chars().take(48).collect();
        let more = if source.len() < d.source.len() { "…" } else { "" };
        table.row([d.name.clone(), engines.join(", "), memories.join(", "), format!("{source}{more}")]);
    }
    host.print(table.render_within(100))?;
    host.say("`device = \"NAME\"` in a deployment file; `psim explain` prices its decoding steps.");
    Ok(())
}

/// Built-in workloads, or one as the file to start from.
pub(super) fn workloads(name: Option<&str>, as_json: bool, host: &mut Host<'_>) -> Result<(), Failure> {
    if let Some(name) = name {
        let Some(text) = builtin::workload(name) else {
            let known: Vec<&str> = builtin::names().map(|(n, _)| n).collect();
            let hint = match builtin::suggestion(name) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("one of {}", known.join(", ")),
            };
            return Err(Failure::input(format!("there is no built-in workload `{name}`"), hint));
        };
        if as_json {
            return host.json(&json!({ "schema": 1, "name": name, "toml": text }));
        }
        return host.print(text);
    }
    if as_json {
        let list: Vec<_> = builtin::names().map(|(n, about)| json!({ "name": n, "about": about })).collect();
        return host.json(&json!({ "schema": 1, "workloads": list }));
    }
    let mut table = Table::new(&[("workload", Left), ("what it is", Left)]);
    for (name, about) in builtin::names() {
        table.row([name.to_owned(), about.to_owned()]);
    }
    host.print(table.render())
}
