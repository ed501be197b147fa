//! Numbers of earlier releases: one after another over the rows of that release alone, all others held.

use super::newton::{coordinate, errors, value};
use super::{OWN, PULL, Progress, Sample, WORTH, samples};
use crate::validate::row::Row;
use crate::validate_serving::predict::ServingPredictor;
use psim_cost_models::serving::engine::{EngineProfile, find};
use rayon::prelude::*;

/// Errors above this count no further, as in the other fits.
const CLIP: f64 = 0.8;
/// Values between the bounds that are tried first, and rounds that halve the distance about the best.
const GRID: usize = 12;
const HALVINGS: usize = 4;

/// Fits the `[[release]]` numbers of a built-in engine and nothing else, if it has any and rows of these releases. Numbers
/// counted in an engine's code (`expert_rows`) stay.
pub fn fit_releases(
    rows: &[Row],
    predictor: &ServingPredictor,
    engine: &str,
    keep: &mut dyn FnMut(&Progress, &str),
) -> Option<EngineProfile> {
    Some(refit(find(engine)?.clone(), &samples(rows, engine), predictor, keep))
}

/// Refits the fitted numbers of the tables of `profile`.
pub(super) fn refit(
    mut profile: EngineProfile,
    samples: &[Sample],
    predictor: &ServingPredictor,
    keep: &mut dyn FnMut(&Progress, &str),
) -> EngineProfile {
    for table in 0..profile.release.len() {
        let held: Vec<&Sample> = samples.iter().filter(|s| table_of(&profile, s) == Some(table)).collect();
        let names: Vec<String> =
            profile.release[table].parameters.keys().filter(|n| OWN.contains(&n.as_str())).cloned().collect();
        for name in names.iter().filter(|_| !held.is_empty()) {
            let own = profile.parameters.get(name).unwrap_or_default();
            let (best, loss) = least(name, |v| {
                let mut trial = profile.clone();
                trial.release[table].parameters.insert(name.clone(), v);
                loss(&trial, &held, predictor) + PULL * (coordinate(name, v) - coordinate(name, own)).abs()
            });
            let rounded = format!("{best:.3e}").parse().unwrap_or(best);
            profile.release[table].parameters.insert(name.clone(), rounded);
            let mut without = profile.clone();
            without.release[table].parameters.remove(name);
            let bare = self::loss(&without, &held, predictor);
            let line = format!(
                "{} before {:?}: {} rows, {name} {rounded}, loss {loss:.4}, without {bare:.4}{}",
                profile.name,
                profile.release[table].before,
                held.len(),
                if bare < loss + WORTH { " (hardly helps)" } else { "" }
            );
            keep(&Progress { profile: profile.clone(), done: Vec::new() }, &line);
        }
    }
    profile
}

/// Place of the table that holds for a sample.
fn table_of(profile: &EngineProfile, sample: &Sample) -> Option<usize> {
    let [major, minor] = sample.mapped.engine.version?;
    let held = profile.deltas((major, minor), sample.mapped.experts(), sample.mapped.accelerator())?;
    profile.release.iter().position(|r| std::ptr::eq(r, held))
}

fn loss(profile: &EngineProfile, samples: &[&Sample], predictor: &ServingPredictor) -> f64 {
    let one = |s: &&Sample| {
        let numbers = profile.on(s.mapped.accelerator()).0;
        let figures = s.exactly(predictor, s.mapped.released(profile, numbers));
        errors(s, figures.as_ref()).iter().map(|(w, e)| w * e.abs().min(CLIP)).sum::<f64>()
    };
    let parts: Vec<f64> = samples.par_iter().map(one).collect();
    parts.iter().sum::<f64>() / samples.len().max(1) as f64
}

/// The best value of a number within its bounds: a grid on its scale, then ever nearer about the best.
fn least(name: &str, mut at: impl FnMut(f64) -> f64) -> (f64, f64) {
    let bounds = psim_cost_models::serving::EngineParameters::BOUNDS;
    let Some((_, low, high)) = bounds.iter().find(|b| b.0 == name) else { return (0.0, f64::INFINITY) };
    let (low, high) = (coordinate(name, *low), coordinate(name, *high));
    let mut step = (high - low) / GRID as f64;
    let mut best = (low, f64::INFINITY);
    for i in 0..=GRID {
        let x = low + step * i as f64;
        let there = at(value(name, x));
        if there < best.1 {
            best = (x, there);
        }
    }
    for _ in 0..HALVINGS {
        step *= 0.5;
        for x in [best.0 - step, best.0 + step] {
            let x = x.clamp(low, high);
            let there = at(value(name, x));
            if there < best.1 {
                best = (x, there);
            }
        }
    }
    (value(name, best.0), best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_value_is_found_within_its_bounds() {
        for wanted in [0.0, 3.0, 31.0, 149.0] {
            let (found, _) = least("moe_us", |v| (v - wanted).abs());
            assert!((found - wanted).abs() < 1.0, "{found} for {wanted}");
        }
        assert_eq!(least("moe_us", |v| -v).0, 150.0);
    }
}
