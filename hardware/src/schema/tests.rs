use super::*;
use crate::catalogue;

const NODE: &str = "schema = 1\n[[nodes]]\ncount = 2\nsystem = \"dgx-h100\"\n";

/// A node table with further lines.
fn with(lines: &str) -> String {
    format!("{NODE}{lines}")
}

/// (what is wrong, file, parts the whole message must have)
fn bad_files() -> Vec<(&'static str, String, Vec<&'static str>)> {
    vec![
        ("empty", String::new(), vec!["empty", "hint:"]),
        ("only blanks", " \n\t\n".into(), vec!["empty"]),
        ("only a comment", "# nothing\n".into(), vec!["schema", "hint: add `schema = 1`"]),
        ("not TOML", "schema = 1\n{\"json\": true}".into(), vec!["bad.toml:2:1", "hint:"]),
        ("no schema", "name = \"x\"".into(), vec!["does not say which schema", "schema = 1"]),
        (
            "newer schema",
            "name = \"x\"\nschema = 9\n".into(),
            vec!["schema 9", "bad.toml:2:1", "update psim"],
        ),
        ("schema as text", "schema = \"one\"".into(), vec!["schema \"one\"", "bad.toml:1:1"]),
        ("no nodes", "schema = 1\nname = \"x\"".into(), vec!["no nodes", "[[nodes]]"]),
        (
            "unknown key",
            with("gpus = 8\n"),
            vec!["unknown field `gpus`", "bad.toml:5:1", "gpus = 8", "^^^^", "hint:"],
        ),
        ("mistyped key", with("acelerators = 8\n"), vec!["did you mean `accelerators`?", "bad.toml:5"]),
        ("unknown top key", format!("nam = \"x\"\n{NODE}"), vec!["`nam`", "did you mean `name`?"]),
        (
            "zero nodes",
            "schema = 1\n[[nodes]]\ncount = 0\nsystem = \"dgx-h100\"".into(),
            vec!["count is 0", "bad.toml:3:9"],
        ),
        (
            "negative nodes",
            "schema = 1\n[[nodes]]\ncount = -4\nsystem = \"dgx-h100\"".into(),
            vec!["-4", "bad.toml:3:9"],
        ),
        (
            "fractional nodes",
            "schema = 1\n[[nodes]]\ncount = 1.5\nsystem = \"dgx-h100\"".into(),
            vec!["1.5", "bad.toml:3:9"],
        ),
        (
            "nodes as text",
            "schema = 1\n[[nodes]]\ncount = \"8\"\nsystem = \"dgx-h100\"".into(),
            vec!["string", "bad.toml:3:9"],
        ),
        (
            "no count",
            "schema = 1\n[[nodes]]\nsystem = \"dgx-h100\"".into(),
            vec!["missing field `count`", "add `count"],
        ),
        (
            "absurd nodes",
            "schema = 1\n[[nodes]]\ncount = 4000000000\nsystem = \"dgx-h100\"".into(),
            vec!["4000000000", "check the number"],
        ),
        (
            "absurd total",
            "schema = 1\n[[nodes]]\ncount = 16000000\nsystem = \"dgx-h100\"".into(),
            vec!["128000000 accelerators", "16777216"],
        ),
        (
            "huge integer",
            "schema = 1\n[[nodes]]\ncount = 99999999999999999999\nsystem = \"dgx-h100\"".into(),
            vec!["bad.toml:3"],
        ),
        (
            "unknown system",
            "schema = 1\n[[nodes]]\ncount = 1\nsystem = \"dgx-h1000\"".into(),
            vec!["no system `dgx-h1000`", "did you mean `dgx-h100`", "4:10"],
        ),
        (
            "unknown accelerator",
            with("accelerator = \"H10\"\n"),
            vec!["no accelerator `H10`", "did you mean `h100`?", "bad.toml:5:15"],
        ),
        (
            "accelerator without facts",
            with("accelerator = \"Ascend-910B\"\n"),
            vec!["Ascend-910B", "memory_bandwidth", "public pages disagree"],
        ),
        (
            "neither system nor accelerator",
            "schema = 1\n[[nodes]]\ncount = 1\n".into(),
            vec!["neither a `system` nor an `accelerator`", "bad.toml:2"],
        ),
        (
            "explicit without accelerators",
            "schema = 1\n[[nodes]]\ncount = 1\naccelerator = \"h100\"".into(),
            vec!["no `accelerators`"],
        ),
        (
            "unit missing",
            with("host_memory = \"512\"\n"),
            vec!["host_memory", "has unit ``", "GiB", "bad.toml:5:15"],
        ),
        ("number for a quantity", with("host_memory = 512\n"), vec!["expected a string", "80GiB"]),
        ("wrong unit", with("host_link = \"64GB\"\n"), vec!["`GB`", "Gb/s"]),
        ("nan rate", with("host_link = \"nanGB/s\"\n"), vec!["nanGB/s", "bad.toml:5"]),
        ("negative rate", with("host_link = \"-5GB/s\"\n"), vec!["-5GB/s"]),
        ("zero rate", with("nics = { rate = \"0Gb/s\" }\n"), vec!["nics.rate is 0B/s", "more than 0"]),
        ("zero domain", with("scale_up = { domain = 0 }\n"), vec!["scale_up.domain is 0"]),
        (
            "domain not dividing",
            with("scale_up = { domain = 3 }\n"),
            vec!["domain 3", "nodes of 8", "bad.toml:5:23"],
        ),
        ("domain too large", with("scale_up = { domain = 72 }\n"), vec!["domain is 72", "only 16"]),
        (
            "rack not full",
            "schema = 1\n[[nodes]]\ncount = 25\nsystem = \"gb200-nvl72\"".into(),
            vec!["domain 72 does not divide the 100"],
        ),
        (
            "unknown topology",
            with("scale_up = { topology = \"swich\" }\n"),
            vec!["swich", "did you mean `switch`"],
        ),
        (
            "reduction without switch",
            with("scale_up = { topology = \"torus\", in_switch_reduction = true }\n"),
            vec!["needs topology = \"switch\""],
        ),
        ("latency in hours", with("scale_up = { latency = \"1h\" }\n"), vec!["not a latency"]),
        ("no cards", with("nics = { count = 0 }\n"), vec!["no network card"]),
        ("pue below one", format!("pue = 0.9\n{NODE}"), vec!["pue is 0.9", "bad.toml:1:7"]),
        ("pue nan", format!("pue = nan\n{NODE}"), vec!["pue is NaN"]),
        ("pue infinite", format!("pue = inf\n{NODE}"), vec!["pue is inf"]),
        ("price negative", with("price_per_gpu_hour = -1.0\n"), vec!["price_per_gpu_hour is -1"]),
        ("price nan", with("price_per_gpu_hour = nan\n"), vec!["price_per_gpu_hour is NaN"]),
        (
            "unknown fabric",
            with("[fabric]\nkind = \"infinband\"\n"),
            vec!["no fabric kind `infinband`", "did you mean `infiniband`?"],
        ),
        ("level of zero nodes", with("[[fabric.level]]\nname = \"leaf\"\nnodes = 0\n"), vec!["nodes is 0"]),
        (
            "levels shrinking",
            with(
                "[[fabric.level]]\nname = \"leaf\"\nnodes = 8\n[[fabric.level]]\nname = \"spine\"\nnodes = 4\n",
            ),
            vec!["`spine` joins 4", "`leaf`"],
        ),
        (
            "levels too small",
            with("[[fabric.level]]\nname = \"leaf\"\nnodes = 1\n"),
            vec!["joins 1 nodes, the cluster has 2"],
        ),
        (
            "oversubscription below one",
            with("[[fabric.level]]\nname = \"leaf\"\nnodes = 8\noversubscription = 0.5\n"),
            vec!["oversubscription is 0.5"],
        ),
        (
            "storage of rate zero",
            with("[storage]\nread = \"0GB/s\"\nwrite = \"1GB/s\"\n"),
            vec!["storage must read and write"],
        ),
        ("storage without write", with("[storage]\nread = \"1GB/s\"\n"), vec!["missing field `write`"]),
        (
            "own part without memory",
            with("[[accelerator]]\nname = \"X1\"\npeak = { bf16 = \"1PFLOP/s\" }\n"),
            vec!["`X1` cannot be used", "memory"],
        ),
        (
            "own part with rate 0",
            with(
                "[[accelerator]]\nname = \"X1\"\nmemory = \"1GB\"\nmemory_bandwidth = \"1TB/s\"\npeak = { bf16 = \"0TFLOP/s\" }\n",
            ),
            vec!["peak.bf16 must be more than 0"],
        ),
        (
            "unknown format",
            with("[[accelerator]]\nname = \"X1\"\npeak = { bf61 = \"1TFLOP/s\" }\n"),
            vec!["bf61", "bf16"],
        ),
        ("10 MB of garbage", "\u{7}x\u{1b}[31m".repeat(1_500_000), vec!["bytes, more than"]),
        ("garbage under the limit", "\u{7}x\u{1b}[31m".repeat(100_000), vec!["bad.toml:1:"]),
        ("deep nesting", format!("schema = 1\nx = {}", "[".repeat(20_000)), vec!["bad.toml:2"]),
    ]
}

#[test]
fn bad_files_name_place_cause_and_remedy() {
    for (case, text, parts) in bad_files() {
        let error = match parse_cluster("bad.toml", &text) {
            Ok(cluster) => panic!("{case}: accepted as {cluster:?}"),
            Err(error) => error.to_string(),
        };
        for part in parts.iter().chain(&["bad.toml", "hint: "]) {
            assert!(error.contains(part), "{case}: `{part}` is not in\n{error}");
        }
        assert!(error.len() < 2000, "{case}: {} bytes of message", error.len());
        assert!(!error.contains('\u{1b}'), "{case}: control characters reach the terminal");
    }
}

#[test]
fn overrides_change_only_what_they_name() {
    let plain = parse_cluster("c.toml", NODE).unwrap();
    let text =
        with("price_per_gpu_hour = 2.5\nnics = { rate = \"200Gb/s\" }\nscale_up = { latency = \"3us\" }\n");
    let changed = parse_cluster("c.toml", &text).unwrap();
    let mut expected = plain.clone();
    expected.groups[0].node.price_per_gpu_hour = 2.5;
    expected.groups[0].node.nics.rate = crate::BytesPerSec(25e9);
    expected.groups[0].node.scale_up.latency = "3us".parse().unwrap();
    assert_eq!(changed, expected);
    assert_eq!(plain.name, "c");
    assert_eq!(plain.accelerators(), 16);
}

#[test]
fn a_hypothetical_part_needs_no_catalogue() {
    let text = "schema = 1
[[nodes]]
count = 4
accelerator = \"X1\"
accelerators = 16
nics = { count = 16, rate = \"1.6Tb/s\" }

[[accelerator]]
name = \"X1\"
memory = \"512GiB\"
memory_bandwidth = \"20TB/s\"
link_bandwidth = \"2TB/s\"
peak = { bf16 = \"5PFLOP/s\" }
";
    let cluster = parse_cluster("x1.toml", text).unwrap();
    assert_eq!(cluster.accelerators(), 64);
    assert_eq!(cluster.first_node().scale_up.domain, 16);
    assert_eq!(cluster.first_node().scale_up.bandwidth, crate::BytesPerSec(2e12));
    let again = parse_cluster("x1.toml", &print_cluster(&cluster)).unwrap();
    assert_eq!(again, cluster);
}

#[test]
fn smaller_nodes_and_part_filled_racks() {
    let text = "schema = 1\n[[nodes]]\ncount = 1\nsystem = \"dgx-h100\"\naccelerators = 4\n";
    assert_eq!(parse_cluster("c", text).unwrap().first_node().scale_up.domain, 4);
    let text = "schema = 1\n[[nodes]]\ncount = 8\nsystem = \"gb200-nvl72\"\n";
    assert_eq!(parse_cluster("c", text).unwrap().first_node().scale_up.domain, 32);
}

#[test]
fn built_in_clusters_print_and_parse_back() {
    for cluster in catalogue::clusters() {
        let text = print_cluster(cluster);
        let again = parse_cluster("printed.toml", &text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(&again, cluster, "{}", cluster.name);
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(schema = 1\n)?(\\[\\[nodes\\]\\]\n)?(count = [0-9.e-]{1,6}\n)?[a-z \\[\\]={}\"0-9\n.\\PC]{0,80}") {
        if let Err(error) = parse_cluster("f.toml", &text) {
            proptest::prop_assert!(error.to_string().contains("f.toml"));
        }
    }

    #[test]
    fn any_mutilated_file_is_answered(cut in 0..2000_usize, paste in 0..2000_usize) {
        let text = catalogue::cluster_text("mixed-h100-a100").unwrap_or_default();
        let floor = |i: usize| (0..=i.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        let mutilated = format!("{}{}", &text[..floor(cut)], &text[floor(paste)..]);
        let _ = parse_cluster("f.toml", &mutilated).map_err(|e| e.to_string());
    }
}
