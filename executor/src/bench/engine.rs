//! Steps of the serving engine with a network of next to no arithmetic: what its loop costs.

use super::narrow::narrow;
use crate::serving::{Clock, ServeRequest, ServeSettings, serve};
use psim_kernels::cpu::CpuDevice;

/// Tokens of the prompts; decoding steps follow one another from there.
const PROMPT: usize = 4;
/// Timed steps.
const STEPS: usize = 24;

/// Processor seconds of decoding steps of `sequences` sequences through `layers` narrow layers and an output layer of
/// `vocab` scores.
///
/// # Errors
/// When the engine fails.
pub fn engine_step(layers: u32, sequences: u32, vocab: u32) -> Result<Vec<f64>, String> {
    let requests: Vec<ServeRequest> = (0..sequences)
        .map(|i| ServeRequest { arrival: 0.0, prompt: vec![i % vocab.max(1); PROMPT], output: STEPS + 2 })
        .collect();
    let sequences = sequences as usize;
    let settings = ServeSettings {
        tp: 1,
        replicas: 1,
        page: 16,
        pages: sequences * (PROMPT + STEPS + 2).div_ceil(16),
        tokens: sequences * PROMPT,
        sequences,
        seed: 1,
        scores: false,
        clock: Clock::Processor,
        warm_up: true,
    };
    let model = narrow(layers, vocab).map_err(|e| e.to_string())?;
    let run = serve(&model, &requests, &settings, |_| Ok(CpuDevice::new())).map_err(|e| e.to_string())?;
    Ok(run.steps.iter().filter(|s| s.decode == sequences).map(|s| s.seconds).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn more_layers_take_longer() {
        let best = |layers, sequences| {
            let times = super::engine_step(layers, sequences, 64).unwrap();
            assert!(times.len() >= 20 && times.iter().all(|&t| t > 0.0), "{times:?}");
            times.into_iter().fold(f64::INFINITY, f64::min)
        };
        assert!(best(8, 4) > best(1, 4));
    }
}
