//! Tokens served from the paged cache are those of attention over the whole sequence in float64.

use super::reference::Reference;
use super::{SEED, models, settings};
use psim_executor::network::Network;
use psim_executor::run_threads;
use psim_executor::serving::{Clock, ServeRequest, ServeSettings, serve};
use psim_kernels::conformance::relative_error;
use psim_kernels::cpu::CpuDevice;
use psim_models::Model;
use std::collections::BTreeMap;

/// Shapes of all parameters, as a training run reports them.
fn shapes(model: &Model) -> BTreeMap<String, [usize; 2]> {
    let run =
        run_threads(model, &models::base(), &models::workload(), &settings(1), |_| Ok(CpuDevice::new()));
    run.unwrap().ranks.iter().flat_map(|r| r.gradients.iter().map(|p| (p.name.clone(), p.whole))).collect()
}

fn requests() -> Vec<ServeRequest> {
    [(3, 9), (17, 4), (1, 12), (8, 1), (11, 20), (5, 16)]
        .into_iter()
        .enumerate()
        .map(|(i, (prompt, output))| ServeRequest {
            // All at once, so that the order of the steps does not depend on the clock; the last one is waited for.
            arrival: if i == 5 { 0.02 } else { 0.0 },
            prompt: (0..prompt).map(|t| ((7 * t + 13 * i + 5) % 61) as u32).collect(),
            output,
        })
        .collect()
}

#[test]
fn served_tokens_equal_whole_attention() {
    for model in [models::gpt(3), models::widened(models::llama(3), 48, 75, 16, 96)] {
        let network = Network::new(&model).unwrap();
        let mut reference = Reference::new(&network, 0, SEED, &shapes(&model));
        // Room for all; and so little that prompts are cut and sequences thrown out.
        for (tp, pages, tokens) in [(1, 64, 64), (1, 12, 7), (1, 9, 24), (2, 64, 16)] {
            let settings = ServeSettings {
                tp,
                replicas: 1,
                page: 4,
                pages,
                tokens,
                sequences: 5,
                seed: SEED,
                scores: true,
                clock: Clock::Wall,
                warm_up: false,
            };
            let requests = requests();
            let run = serve(&model, &requests, &settings, |_| Ok(CpuDevice::poisoning())).unwrap();
            let mut worst: f64 = 0.0;
            for (request, served) in requests.iter().zip(&run.requests) {
                assert_eq!(served.tokens.len(), request.output);
                assert!(served.ttft() > 0.0 && served.times.windows(2).all(|w| w[0] < w[1]));
                let whole = [&request.prompt[..], &served.tokens[..request.output - 1]].concat();
                let expected = reference.scores(&whole);
                for (i, (token, scores)) in served.tokens.iter().zip(&served.scores).enumerate() {
                    let row = (request.prompt.len() + i - 1) * network.vocab;
                    let expected = &expected[row..row + network.vocab];
                    let error = relative_error(scores, expected);
                    assert!(error <= 1e-5, "{} tp{tp}: scores are off by {error:.1e}", model.name);
                    worst = worst.max(error);
                    let top = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    assert!(expected[*token as usize] >= top - 1e-4, "{} tp{tp}: another token", model.name);
                }
            }
            let thrown: u32 = run.requests.iter().map(|r| r.preemptions).sum();
            assert_eq!(thrown > 0, pages == 9, "{thrown} preemptions");
            if tokens == 7 {
                // Prompts are cut to what the decoding sequences leave.
                assert!(run.steps.iter().any(|s| s.prompt > 0 && s.decode > 0));
                assert!(run.steps.iter().all(|s| s.prompt + s.decode <= tokens));
            }
            println!(
                "{} tp{tp}: {} steps, {thrown} preemptions, {} pages, worst score error {worst:.1e}",
                model.name,
                run.steps.len(),
                run.peak_pages
            );
        }
    }
}

#[test]
fn impossible_requests_are_refused() {
    let settings = ServeSettings {
        tp: 1,
        replicas: 1,
        page: 4,
        pages: 2,
        tokens: 8,
        sequences: 2,
        seed: 1,
        scores: false,
        clock: Clock::Wall,
        warm_up: false,
    };
    let one = |prompt: Vec<u32>, output| [ServeRequest { arrival: 0.0, prompt, output }];
    let refuse = |model: &Model, requests: &[ServeRequest], settings: &ServeSettings| {
        serve(model, requests, settings, |_| Ok(CpuDevice::new())).unwrap_err().to_string()
    };
    let llama = models::llama(1);
    assert!(refuse(&llama, &one(vec![1; 6], 4), &settings).contains("more pages"));
    assert!(refuse(&llama, &one(vec![], 4), &settings).contains("without prompt"));
    assert!(refuse(&llama, &one(vec![61], 1), &settings).contains("vocabulary"));
    assert!(refuse(&llama, &one(vec![1], 1), &ServeSettings { tp: 4, ..settings }).contains("tp 4"));
    assert!(refuse(&models::mixture(2), &one(vec![1], 1), &settings).contains("mixtures"));
}
