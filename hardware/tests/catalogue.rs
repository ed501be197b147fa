//! The built-in catalogue against the tables it was made from.
#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test says loudly what it skips and fails by panic"
)]

use psim_hardware::{DType, catalogue};
use std::path::PathBuf;

/// Rows of a measured table as (header, cells), or `None` with a loud line where the data is not at hand.
fn table(name: &str) -> Option<Vec<std::collections::BTreeMap<String, String>>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/measured").join(name);
    let shared =
        [path, PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/measured").join(name)];
    let Some(path) = shared.iter().find(|p| p.exists()) else {
        eprintln!("SKIP: {name} is not at hand, the catalogue is not compared with it");
        return None;
    };
    let mut reader = csv::Reader::from_path(path).unwrap();
    Some(reader.deserialize().map(Result::unwrap).collect())
}

fn same(what: &str, row: &str, printed: &str, value: Option<f64>) {
    let printed: Option<f64> = (!printed.is_empty()).then(|| printed.parse().unwrap());
    match (printed, value) {
        (None, None) => {}
        (Some(p), Some(v)) if (p - v).abs() <= 1e-9 * p.abs() => {}
        _ => panic!("{row}: {what} is {printed:?} in the table and {value:?} in the catalogue"),
    }
}

#[test]
fn every_accelerator_row_is_there_with_equal_numbers() {
    let Some(rows) = table("accelerators.csv") else { return };
    assert!(rows.len() >= 36);
    for row in &rows {
        let name = &row["accelerator"];
        let sheet = catalogue::datasheet(name).unwrap();
        assert_eq!(&sheet.name, name);
        let peak = |d| sheet.peak.get(&d).map(|f| f.0 / 1e12);
        for (column, dtype) in [
            ("fp32_tflops", DType::Fp32),
            ("tf32_tflops", DType::Tf32),
            ("fp16_tflops", DType::Fp16),
            ("bf16_tflops", DType::Bf16),
            ("fp8_tflops", DType::Fp8),
            ("int8_tops", DType::Int8),
            ("fp4_tflops", DType::Fp4),
        ] {
            same(column, name, &row[column], peak(dtype));
        }
        same("mem_gb", name, &row["mem_gb"], sheet.memory_nominal.map(|b| b.as_f64() / 1e9));
        same("mem_tbps", name, &row["mem_tbps"], sheet.memory_bandwidth.map(|b| b.0 / 1e12));
        same("l2_mb", name, &row["l2_mb"], sheet.l2.map(|b| b.as_f64() / 1e6));
        same("llc_mb", name, &row["llc_mb"], sheet.last_level_cache.map(|b| b.as_f64() / 1e6));
        same("sm_count", name, &row["sm_count"], sheet.sm_count.map(f64::from));
        same("link_gbps_per_dir", name, &row["link_gbps_per_dir"], sheet.link_bandwidth.map(|b| b.0 / 1e9));
        same("tdp_w", name, &row["tdp_w"], sheet.tdp.map(|w| w.0));
        assert_eq!(sheet.source, row["source"]);
        assert_eq!(sheet.link, row["link"]);
        assert_eq!(sheet.note, row["note"]);
    }
}

#[test]
fn every_system_row_is_there_with_equal_numbers() {
    let Some(rows) = table("systems.csv") else { return };
    assert!(rows.len() >= 23);
    for row in &rows {
        let name = &row["system"];
        let system = catalogue::system(name).unwrap();
        assert_eq!(&system.name, name);
        assert_eq!(system.source, row["source"]);
        let packages = system.packages.unwrap_or(system.accelerators);
        same("gpus_per_node", name, &row["gpus_per_node"], Some(f64::from(packages)));
        let printed = |column: &str, value: f64| {
            if !row[column].is_empty() {
                same(column, name, &row[column], Some(value));
            } else {
                assert!(!system.assumptions.is_empty());
            }
        };
        printed("scale_up_domain_gpus", f64::from(system.scale_up.domain));
        printed("scale_up_gbps_per_gpu_dir", system.scale_up.bandwidth.0 / 1e9);
        printed("nics_per_node", f64::from(system.nics.count));
        printed("nic_gbit", system.nics.rate.0 * 8.0 / 1e9);
        printed("node_egress_gbytes", system.nics.rate.0 * f64::from(system.nics.count) / 1e9);
        catalogue::accelerator(&system.accelerator).unwrap();
    }
}

#[test]
fn names_people_type_are_understood_and_unique() {
    for (typed, canonical) in [
        ("h100", "H100-SXM-80GB"),
        ("H100", "H100-SXM-80GB"),
        ("a100", "A100-SXM-80GB"),
        ("a100-40gb", "A100-SXM-40GB"),
        ("A100_80GB", "A100-SXM-80GB"),
        ("mi300x", "MI300X"),
        ("b200", "B200-SXM"),
        ("b300", "B300-SXM"),
        ("gb200", "GB200"),
        ("h20", "H20-96GB"),
        ("tpu-v5p", "TPU-v5p"),
    ] {
        assert_eq!(catalogue::accelerator(typed).unwrap().name, canonical);
    }
    let mut names: Vec<String> = Vec::new();
    for sheet in catalogue::datasheets() {
        names.push(sheet.name.to_lowercase());
        names.extend(sheet.aliases.iter().map(|a| a.to_lowercase()));
    }
    let all = names.len();
    names.sort();
    names.dedup_by(|a, b| a == b);
    // A canonical name may be repeated among its own aliases, never among another's.
    assert_eq!(names.len(), all, "a name or alias means two accelerators");
}

#[test]
fn every_number_has_a_source() {
    for sheet in catalogue::datasheets() {
        assert!(!sheet.source.is_empty(), "{}", sheet.name);
    }
    for system in catalogue::systems() {
        assert!(!system.source.is_empty() && !system.assumptions.is_empty(), "{}", system.name);
    }
    for cluster in catalogue::clusters() {
        assert!(!cluster.source.is_empty() && !cluster.description.is_empty(), "{}", cluster.name);
    }
}

#[test]
fn built_in_clusters_have_the_size_of_their_name() {
    for (name, accelerators, groups) in [
        ("a100x8", 8, 1),
        ("a100x64", 64, 1),
        ("a100x512", 512, 1),
        ("h100x8", 8, 1),
        ("h100x64", 64, 1),
        ("h100x1024", 1024, 1),
        ("h100x16384", 16384, 1),
        ("h200x8", 8, 1),
        ("b200x8", 8, 1),
        ("b200x256", 256, 1),
        ("b300x64", 64, 1),
        ("gb200-nvl72x8", 576, 1),
        ("gb300-nvl72x4", 288, 1),
        ("mi300x64", 64, 1),
        ("frontier-slice", 1024, 1),
        ("mixed-h100-a100", 64, 2),
        ("ethernet-a100x64", 64, 1),
    ] {
        let cluster = catalogue::cluster(&format!("{name}.toml")).unwrap();
        assert_eq!(cluster.accelerators(), accelerators, "{name}");
        assert_eq!(cluster.groups.len(), groups, "{name}");
        assert!(cluster.price_per_hour() > 0.0, "{name}");
        assert_eq!(cluster, catalogue::cluster(&name.to_uppercase()).unwrap());
    }
    assert_eq!(catalogue::cluster("gb200-nvl72x8").unwrap().first_node().scale_up.domain, 72);
    assert!(catalogue::cluster("ethernet-a100x64").unwrap().first_node().nics.count == 1);
}

#[test]
fn unknown_names_suggest_the_nearest() {
    let error = catalogue::cluster("h100x46.toml").unwrap_err();
    assert!(error.to_string().contains("no cluster `h100x46`"), "{error}");
    assert!(error.hint().contains("h100x64"), "{}", error.hint());
    let error = catalogue::cluster("zzz").unwrap_err();
    assert!(error.hint().contains("h100x64") && error.hint().contains("known clusters"), "{}", error.hint());
    let error = catalogue::accelerator("ascend-910b").unwrap_err();
    assert!(error.to_string().contains("public pages disagree"), "{error}");
}
