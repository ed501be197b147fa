//! Weights and caches counted by hand, halves against wholes.

use super::*;
use crate::presets;
use crate::serving::Quantization;

fn shape(name: &str, d: &Deployment) -> ServingShape {
    lower(&presets::find(name).unwrap(), d).unwrap()
}

#[test]
fn weights_agree_with_the_parameter_count() {
    for name in ["llama3-8b", "llama3-70b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-120b", "qwen3-30b-a3b"] {
        let model = presets::find(name).unwrap();
        let one = Deployment::tensor_parallel(1, Quantization::uniform(NumberFormat::Bf16));
        let total = shape(name, &one).total_weight_bytes / 2.0;
        let expected = model.parameters().total as f64;
        assert!((total / expected - 1.0).abs() < 0.01, "{name}: {total} against {expected}");
        let eight = Deployment { tp: 8, ..one };
        let split = shape(name, &eight).total_weight_bytes / 2.0;
        assert!(split >= 0.99 * total && split < 1.2 * total, "{name}: {split}");
        let active = shape(name, &one).active_parameters;
        let expected = (model.parameters().active - model.parameters().embedding) as f64;
        assert!((active / expected - 1.0).abs() < 0.03, "{name}: active {active} against {expected}");
    }
}

#[test]
fn cache_bytes() {
    let bf16 = Quantization::uniform(NumberFormat::Bf16);
    // 80 layers, 8 heads of 128, keys and values, 2 bytes.
    let s = shape("llama3-70b", &Deployment::tensor_parallel(1, bf16));
    assert_eq!(s.kv_bytes_per_token, 80.0 * 8.0 * 128.0 * 2.0 * 2.0);
    // More ranks than heads replicate them.
    let s = shape("llama3-70b", &Deployment::tensor_parallel(16, bf16));
    assert_eq!(s.kv_bytes_per_token, 80.0 * 128.0 * 2.0 * 2.0);
    // One latent of 576 in each of 61 layers, on every rank.
    let s = shape("deepseek-v3", &Deployment::tensor_parallel(8, bf16));
    assert_eq!(s.kv_bytes_per_token, 61.0 * 576.0 * 2.0);
    // Half of the layers keep 128 tokens.
    let s = shape("gpt-oss-120b", &Deployment::tensor_parallel(1, bf16));
    assert_eq!(s.kv_windowed, [(128, 18.0 * 8.0 * 64.0 * 2.0 * 2.0)]);
    let far = s.sequence_bytes(4096) - s.sequence_bytes(4095);
    assert_eq!(far, 18.0 * 8.0 * 64.0 * 2.0 * 2.0);
}

#[test]
fn halves_together_hold_the_whole_model() {
    let q = Quantization::uniform(NumberFormat::Bf16);
    for name in ["mixtral-8x22b", "deepseek-v3", "llama3-70b"] {
        let model = presets::find(name).unwrap();
        let whole = shape(name, &Deployment::tensor_parallel(1, q));
        let attention = Deployment { attention_dp: 4, ..Deployment::tensor_parallel(2, q) };
        let (a, f) = lower_apart(&model, &attention, (1, 1)).unwrap();
        let one = lower_apart(&model, &Deployment::tensor_parallel(1, q), (1, 1)).unwrap().0;
        assert!(((one.weight_bytes + f.weight_bytes) / whole.weight_bytes - 1.0).abs() < 1e-9, "{name}");
        assert!(a.experts.is_empty() && a.exchanges == 0.0 && f.attention.is_empty());
        // Two ranks of a copy halve its matrices and sum once a layer; caches are those of the copy.
        assert!(a.weight_bytes < 0.55 * one.weight_bytes, "{name}");
        assert_eq!(a.kv_bytes_per_token, shape(name, &Deployment::tensor_parallel(2, q)).kv_bytes_per_token);
    }
    // Eight instances of one of Mixtral's experts each; a ninth has none.
    let model = presets::find("mixtral-8x22b").unwrap();
    let d = Deployment::tensor_parallel(1, q);
    let (_, f) = lower_apart(&model, &d, (8, 1)).unwrap();
    assert_eq!((f.experts[0].local, f.weight_bytes), (1, 56.0 * 3.0 * 6144.0 * 16384.0 * 2.0));
    assert!(lower_apart(&model, &d, (9, 1)).is_err() && lower_apart(&model, &d, (0, 1)).is_err());
    // Two ranks of an instance halve each expert and add their sums up.
    let (_, f) = lower_apart(&model, &d, (4, 2)).unwrap();
    assert_eq!((f.experts[0].local, f.experts[0].inner, f.all_reduces), (2, 8192, 56.0));
}

#[test]
fn impossible_deployments_are_refused() {
    let model = presets::find("deepseek-v3").unwrap();
    let base = Deployment::tensor_parallel(8, Quantization::uniform(NumberFormat::Fp8Block));
    assert!(lower(&model, &Deployment { tp: 0, ..base }).is_err());
    assert!(lower(&model, &Deployment { tp: 3, ..base }).is_err());
    assert!(lower(&model, &Deployment { ep: 3, ..base }).is_err());
    assert!(lower(&model, &Deployment { pp: 100, ..base }).is_err());
    assert!(lower(&model, &Deployment { tp: 1, attention_dp: 8, ep: 8, ..base }).is_ok());
}
