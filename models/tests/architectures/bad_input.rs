//! Bad configurations give an error that names the file, the key and what would do; never a panic or a wrong number.

use proptest::prelude::*;
use psim_models::hf::{HfProblem, import};
use psim_models::presets::{self, DenseDims, MoeDims};
use serde_json::{Value, json};

const LLAMA: &str = r#"{
 "model_type": "llama",
 "hidden_size": 4096,
 "num_hidden_layers": 32,
 "num_attention_heads": 32,
 "num_key_value_heads": 8,
 "intermediate_size": 14336,
 "vocab_size": 128256
}"#;

fn with(key: &str, value: &str) -> String {
    let mut map: Value = serde_json::from_str(LLAMA).unwrap();
    map[key] = serde_json::from_str(value).unwrap_or(Value::Null);
    serde_json::to_string_pretty(&map).unwrap()
}

#[test]
fn errors_name_file_key_and_remedy() {
    assert!(import("config.json", LLAMA).is_ok());
    let cases: Vec<(String, &str)> = vec![
        (String::new(), "not JSON"),
        ("{}".into(), "neither `model_type` nor `architectures`"),
        ("[]".into(), "found a list"),
        ("3".into(), "found a number"),
        ("\"llama\"".into(), "found a string"),
        ("null".into(), "found nothing"),
        ("{\"model_type\": ".into(), "not JSON"),
        ("\u{0}\u{1}\u{2}".into(), "not JSON"),
        ("{".repeat(100_000), "not JSON"),
        ("[".repeat(100_000), "not JSON"),
        ("x".repeat(10 << 20), "not JSON"),
        (r#"{"model_type": "perceiver"}"#.into(), "unknown architecture `perceiver`"),
        (r#"{"model_type": 7, "architectures": "LlamaForCausalLM"}"#.into(), "neither `model_type`"),
        (r#"{"architectures": ["MysteryModel"]}"#.into(), "unknown architecture `MysteryModel`"),
        (r#"{"quantization": {"quant_algo": "FP8"}}"#.into(), "describes a quantisation (FP8), not a model"),
        (r#"{"model_type": "llama"}"#.into(), "missing key `hidden_size`"),
        (
            r#"{"model_type": "llama", "text_config": {"model_type": "llama"}}"#.into(),
            "missing key `hidden_size`",
        ),
        (with("vocab_size", "null"), "missing key `vocab_size`"),
        (with("num_attention_heads", "0"), "`num_attention_heads` is 0"),
        (with("num_attention_heads", "-32"), "`num_attention_heads` is -32"),
        (with("num_attention_heads", "3"), "3 heads do not divide the width 4096"),
        (with("num_key_value_heads", "0"), "`num_key_value_heads` is 0"),
        (with("num_key_value_heads", "7"), "32 query heads cannot share 7"),
        (with("num_key_value_heads", "64"), "cannot share 64"),
        (with("hidden_size", "4096.5"), "`hidden_size` is 4096.5"),
        (with("hidden_size", "\"4096\""), "`hidden_size` is \"4096\""),
        (with("hidden_size", "true"), "`hidden_size` is true"),
        (with("hidden_size", "[4096]"), "`hidden_size` is [4096]"),
        (with("hidden_size", "{}"), "`hidden_size` is an object"),
        (with("hidden_size", "1e300"), "`hidden_size` is 1e+300"),
        (with("hidden_size", "18446744073709551615"), "`hidden_size` is 18446744073709551615"),
        (with("hidden_size", "1099511627777"), "2^40"),
        (with("hidden_size", "1099511627776"), "parameters are beyond any model"),
        (with("num_hidden_layers", "0"), "`num_hidden_layers` is 0"),
        (with("num_hidden_layers", "1000000000"), "at most 65536 layers"),
        (with("attention_bias", "1"), "`attention_bias` is 1, expected true or false"),
        (with("tie_word_embeddings", "\"no\""), "`tie_word_embeddings` is \"no\""),
        (with("model_type", "\"deepseek_v3\""), "missing key `kv_lora_rank`"),
        (with("model_type", "\"mixtral\""), "missing key `num_local_experts` (or `num_experts`"),
        (with("model_type", "\"jamba\""), "`jamba` is not supported"),
        (with("model_type", "\"gemma2\""), "missing key `head_dim`"),
        (with("model_type", "\"nemotron_h\""), "missing key `hybrid_override_pattern`"),
        (with("model_type", "\"nemotron-nas\""), "missing key `block_configs`"),
        (with("model_type", "\"dbrx\""), "missing key `attn_config`"),
        (with("model_type", "\"qwen3_next\""), "missing key `linear_num_value_heads`"),
    ];
    assert!(cases.len() >= 40);
    for (text, expected) in cases {
        let Err(error) = import("config.json", &text) else {
            panic!("`{expected}` was accepted: {text:.200}")
        };
        let message = error.to_string();
        assert!(message.starts_with("config.json"), "{message}");
        assert!(message.contains(expected), "expected `{expected}` in `{message}`");
        assert!(message.len() < 600, "{message:.800}");
        assert!(!error.hint().is_empty());
    }
}

#[test]
fn the_line_of_the_key_is_named() {
    let error = import("c.json", &LLAMA.replace("\"hidden_size\": 4096", "\"hidden_size\": 0")).unwrap_err();
    assert_eq!(error.line, Some(3));
    assert!(error.to_string().starts_with("c.json:3: key `hidden_size` is 0"), "{error}");
    let error = import("c.json", &LLAMA.replace("32,\n \"num_att", "32 oops,\n \"num_att")).unwrap_err();
    assert_eq!(error.line, Some(4));
    assert!(matches!(error.problem, HfProblem::Syntax(_)));
}

#[test]
fn python_constants_do_not_break_a_file() {
    let text =
        LLAMA.replace("\"vocab_size\"", "\"time_step_limit\": [0.0, Infinity], \"x\": NaN,\n \"vocab_size\"");
    assert_eq!(import("c", &text).unwrap().parameters().total, 8_030_261_248);
    let error = import("c", &LLAMA.replace("128256", "NaN")).unwrap_err();
    assert!(error.to_string().contains("missing key `vocab_size`"), "{error}");
}

#[test]
fn absurd_lists_are_refused_quickly() {
    let start = std::time::Instant::now();
    let kv_heads: Vec<String> = (1..=65_536).map(|n| n.to_string()).collect();
    let deci = with("model_type", "\"deci\"").replace(
        "\"vocab_size\"",
        &format!("\"num_key_value_heads_per_layer\": [{}], \"vocab_size\"", kv_heads.join(",")),
    );
    let error = import("c", &deci.replace(": 32,\n  \"num_key", ": 65536,\n  \"num_key")).unwrap_err();
    assert!(error.to_string().contains("more than 512 different kinds of layers"), "{error}");
    let dense: Vec<String> = (0..300_000).map(|n| n.to_string()).collect();
    let mut qwen: Value = presets::configuration("qwen3-30b-a3b").unwrap();
    qwen["num_hidden_layers"] = json!(65_536);
    qwen["mlp_only_layers"] = serde_json::from_str(&format!("[{}]", dense.join(","))).unwrap();
    assert!(!import("c", &qwen.to_string()).unwrap().is_moe());
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}

#[test]
fn too_many_experts_per_token_are_refused() {
    let text = with("model_type", "\"mixtral\"")
        .replace("\"vocab_size\"", "\"num_local_experts\": 4, \"num_experts_per_tok\": 5, \"vocab_size\"");
    let error = import("c", &text).unwrap_err();
    assert!(error.to_string().contains("5 experts per token, but only 4"), "{error}");
}

#[test]
fn bad_dimensions_make_no_model() {
    assert_eq!(presets::gpt(24, 2048, 16, 51_200, 2048).unwrap().parameters().total, 1_317_654_528);
    for (layers, hidden, heads, vocab, seq) in [
        (0, 2048, 16, 51_200, 2048),
        (24, 0, 16, 51_200, 2048),
        (24, 2048, 0, 51_200, 2048),
        (24, 2048, 17, 51_200, 2048),
        (24, 2048, 16, 0, 2048),
        (24, 2048, 16, 51_200, 0),
        (u64::MAX, 2048, 16, 51_200, 2048),
        (24, u64::MAX, 16, 51_200, 2048),
        (24, 1 << 40, 1 << 20, 1 << 40, 2048),
    ] {
        let error = presets::gpt(layers, hidden, heads, vocab, seq).unwrap_err();
        assert!(!error.to_string().is_empty() && !error.hint().is_empty());
    }
    let dims = DenseDims { layers: 4, hidden: 512, heads: 8, vocab: 1000, ..DenseDims::default() };
    let experts = MoeDims { experts: 8, top_k: 9, ffn_hidden: 128, ..MoeDims::default() };
    assert!(presets::moe(&dims, &experts).is_err());
    assert!(presets::moe(&dims, &MoeDims { top_k: 2, layers: Some(2), ..experts }).unwrap().is_moe());
}

/// A value of any kind that a broken file may hold.
fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..300).prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        "[a-zA-Z*ME,0-9-]{0,12}".prop_map(Value::from),
        proptest::collection::vec(0u64..200, 0..80).prop_map(Value::from),
        Just(json!({})),
        Just(json!([{}, {"attention": {}, "ffn": {"ffn_mult": 1e308}}])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever stands under two keys of whatever family: an error or a model of believable size, never a panic.
    #[test]
    fn broken_values_never_panic(
        family in proptest::sample::select(psim_models::hf::model_types()),
        base in proptest::sample::select(presets::names().unwrap()),
        first in any_value(), second in any_value(),
        picks in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        keep in any::<bool>(),
    ) {
        let mut map = presets::configuration(base).unwrap();
        let keys: Vec<String> = map.as_object().unwrap().keys().cloned().collect();
        if !keep {
            map["model_type"] = family.into();
        }
        map[picks.0.get(&keys).as_str()] = first;
        map[picks.1.get(&keys).as_str()] = second;
        let text = serde_json::to_string(&map).unwrap();
        match import("fuzz", &text) {
            Ok(model) => {
                let count = model.parameters();
                prop_assert!(count.total > 0 && count.total <= 1 << 60);
                prop_assert!(count.active <= count.total);
                prop_assert!(model.pattern.iter().all(|k| usize::from(*k) < model.kinds.len()));
            }
            Err(error) => prop_assert!(error.to_string().len() < 1000),
        }
    }

    /// Text that is not a configuration at all.
    #[test]
    fn garbage_never_panics(text in "\\PC{0,200}") {
        prop_assert!(import("garbage", &text).is_err());
    }
}
