//! `psim show`: what is built in.

mod serving;

use crate::Host;
use crate::failure::Failure;
use crate::inputs::cluster as clusters;
use crate::inputs::common::built_in;
use crate::number::{grouped, short, three};
use crate::table::{Align::Left, Align::Right, Table};
use clap::{Args, ValueEnum};
use psim_cost_models::{ProfileLibrary, builtin};
use psim_hardware::catalogue::{self, Datasheet};
use psim_hardware::{Cluster, DType, schema};
use psim_models::presets;
use serde_json::{Value, json};

/// What to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Topic {
    /// Model presets
    Models,
    /// Accelerator datasheets
    Accelerators,
    /// Devices of several engines and memories, for `device = "NAME"` of a deployment
    Devices,
    /// Node types
    Systems,
    /// Clusters
    Clusters,
    /// Software stacks, accelerator and fabric profiles
    Profiles,
    /// Serving engines
    Engines,
    /// Serving workloads
    Workloads,
}

/// Arguments of `psim show`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What to list
    topic: Topic,
    /// One entry, in full
    name: Option<String>,
    /// Print JSON with a `schema` key
    #[arg(long)]
    json: bool,
}

/// Prints the list, or one entry.
pub(crate) fn run(arguments: &Arguments, host: &mut Host<'_>) -> Result<(), Failure> {
    let name = arguments.name.as_deref();
    match arguments.topic {
        Topic::Models => models(name, arguments.json, host),
        Topic::Accelerators => accelerators(name, arguments.json, host),
        Topic::Devices => serving::devices(name, arguments.json, host),
        Topic::Systems => systems(name, arguments.json, host),
        Topic::Clusters => cluster_list(name, arguments.json, host),
        Topic::Profiles => profiles(name, arguments.json, host),
        Topic::Engines => serving::engines(name, arguments.json, host),
        Topic::Workloads => serving::workloads(name, arguments.json, host),
    }
}

/// A catalogue error as a failure.
fn unknown(error: &catalogue::CatalogueError) -> Failure {
    Failure::input(error.to_string(), error.hint())
}

/// A value as TOML text.
fn as_toml(value: &impl serde::Serialize) -> Result<String, Failure> {
    toml::to_string(value).map_err(Failure::defect)
}

/// A preset problem as a failure.
fn preset(error: &presets::PresetError) -> Failure {
    Failure::input(error.to_string(), error.hint())
}

fn models(name: Option<&str>, json: bool, host: &mut Host<'_>) -> Result<(), Failure> {
    if let Some(name) = name {
        let model = crate::inputs::model::load(host, name)?;
        let document = json!({ "schema": 1, "model": model, "parameters": model.parameters() });
        return host.json(&document);
    }
    let listings = presets::list().map_err(|e| preset(&e))?;
    let mut rows = Vec::new();
    for listing in &listings {
        let model = presets::find(listing.name).map_err(|e| preset(&e))?;
        let count = model.parameters();
        rows.push((listing, model, count));
    }
    if json {
        let list: Vec<Value> = rows
            .iter()
            .map(|(l, m, c)| {
                json!({ "name": l.name, "aliases": l.aliases, "source": l.source, "family": m.family,
                        "layers": m.layers(), "parameters": c.total, "active_parameters": c.active })
            })
            .collect();
        return host.json(&json!({ "schema": 1, "models": list }));
    }
    let columns = [
        ("model", Left),
        ("parameters", Right),
        ("active", Right),
        ("layers", Right),
        ("hidden", Right),
        ("also", Left),
    ];
    let mut table = Table::new(&columns);
    for (listing, model, count) in rows {
        let active = if count.active == count.total { String::new() } else { short(count.active as f64) };
        table.row([
            listing.name.to_owned(),
            short(count.total as f64),
            active,
            model.layers().to_string(),
            grouped(model.hidden),
            listing.aliases.iter().take(2).copied().collect::<Vec<_>>().join(", "),
        ]);
    }
    host.print(table.render())
}

fn accelerators(name: Option<&str>, json: bool, host: &mut Host<'_>) -> Result<(), Failure> {
    let selected: Vec<&Datasheet> = match name {
        Some(name) => vec![catalogue::datasheet(name).map_err(|e| unknown(&e))?],
        None => catalogue::datasheets().iter().collect(),
    };
    if json {
        return host.json(&json!({ "schema": 1, "accelerators": selected }));
    }
    if name.is_some() {
        return host.print(as_toml(selected[0])?);
    }
    let columns = [
        ("accelerator", Left),
        ("bf16", Right),
        ("fp8", Right),
        ("fp4", Right),
        ("memory", Right),
        ("bandwidth", Right),
        ("link/dir", Right),
        ("TDP", Right),
        ("also", Left),
    ];
    let mut table = Table::new(&columns);
    for sheet in selected {
        let peak = |d: DType| sheet.peak.get(&d).map(|f| three(f.0 / 1e12)).unwrap_or_default();
        table.row([
            sheet.name.clone(),
            Some(peak(DType::Bf16)).filter(|p| !p.is_empty()).unwrap_or_else(|| peak(DType::Fp16)),
            peak(DType::Fp8),
            peak(DType::Fp4),
            sheet.memory_nominal.map(|b| format!("{:.0}GB", b.as_f64() / 1e9)).unwrap_or_default(),
            sheet.memory_bandwidth.map(|b| b.to_string()).unwrap_or_default(),
            sheet.link_bandwidth.map(|b| b.to_string()).unwrap_or_default(),
            sheet.tdp.map(|w| format!("{:.0}W", w.0)).unwrap_or_default(),
            sheet.aliases.first().cloned().unwrap_or_default(),
        ]);
    }
    host.print(table.render())?;
    host.say(
        "Dense TFLOP/s (bf16, else fp16). Blank: not public. `psim show accelerators NAME` prints sources.",
    );
    Ok(())
}

fn systems(name: Option<&str>, json: bool, host: &mut Host<'_>) -> Result<(), Failure> {
    let selected: Vec<_> = match name {
        Some(name) => vec![catalogue::system(name).map_err(|e| unknown(&e))?],
        None => catalogue::systems().iter().collect(),
    };
    if json {
        return host.json(&json!({ "schema": 1, "systems": selected }));
    }
    if name.is_some() {
        return host.print(as_toml(selected[0])?);
    }
    let columns = [
        ("system", Left),
        ("holds", Left),
        ("domain", Right),
        ("link/dir", Right),
        ("cards", Right),
        ("fabric", Left),
    ];
    let mut table = Table::new(&columns);
    for system in selected {
        table.row([
            system.name.clone(),
            format!("{} x {}", system.accelerators, system.accelerator),
            system.scale_up.domain.to_string(),
            system.scale_up.bandwidth.to_string(),
            format!("{} x {}Gb/s", system.nics.count, three(system.nics.rate.0 * 8.0 / 1e9)),
            system.fabric.clone(),
        ]);
    }
    host.print(table.render())
}

/// One cluster as JSON.
fn cluster_json(cluster: &Cluster) -> Value {
    json!({ "accelerators": cluster.accelerators(), "nodes": cluster.nodes(),
            "price_usd_per_hour": cluster.price_per_hour(), "description": cluster })
}

fn cluster_list(name: Option<&str>, json: bool, host: &mut Host<'_>) -> Result<(), Failure> {
    if let Some(name) = name {
        let cluster = clusters::load(host, name)?;
        if json {
            return host.json(&json!({ "schema": 1, "clusters": [cluster_json(&cluster)] }));
        }
        let text = match catalogue::cluster_text(name) {
            Some(text) if !host.path(std::path::Path::new(name)).exists() => text.to_owned(),
            _ => schema::print_cluster(&cluster),
        };
        return host.print(text);
    }
    if json {
        let all: Vec<Value> = catalogue::clusters().iter().map(cluster_json).collect();
        return host.json(&json!({ "schema": 1, "clusters": all }));
    }
    let columns = [
        ("cluster", Left),
        ("accelerators", Right),
        ("nodes", Right),
        ("$/hour", Right),
        ("description", Left),
    ];
    let mut table = Table::new(&columns);
    for cluster in catalogue::clusters() {
        table.row([
            cluster.name.clone(),
            grouped(u64::from(cluster.accelerators())),
            grouped(u64::from(cluster.nodes())),
            grouped(cluster.price_per_hour().round() as u64),
            cluster.description.clone(),
        ]);
    }
    host.print(table.render())?;
    host.say(
        "Prices are assumptions of the order of list prices: set price_per_gpu_hour in a file of your own.",
    );
    Ok(())
}

fn profiles(name: Option<&str>, json: bool, host: &mut Host<'_>) -> Result<(), Failure> {
    let library = ProfileLibrary::built_in();
    if let Some(name) = name {
        let stack = built_in(&library, name)?;
        if json {
            return host.json(&json!({ "schema": 1, "stacks": [stack] }));
        }
        return host.print(as_toml(&stack)?);
    }
    let accelerators: Vec<&str> = builtin::accelerator_names().collect();
    let fabrics: Vec<&str> = builtin::fabric_kinds().collect();
    if json {
        let stacks: Vec<_> = library.stacks().collect();
        return host.json(
            &json!({ "schema": 1, "stacks": stacks, "accelerators": accelerators, "fabrics": fabrics }),
        );
    }
    let mut table = Table::new(&[("software stack", Left), ("era", Right), ("description", Left)]);
    for stack in library.stacks() {
        table.row([stack.name.clone(), format!("{:.1}", stack.era), stack.description.clone()]);
    }
    host.print(table.render())?;
    host.line(format!("\nmeasured accelerators: {}", or_none(&accelerators)))?;
    host.line(format!("measured fabrics: {}", or_none(&fabrics)))
}

fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
