//! Predicted against measured, one panel per family of metrics, as SVG text.

use super::super::accuracy::{Class, FAMILIES, class};
use crate::validate::accuracy::plot::Panel;
use crate::validate::row::Row;
use crate::validate::score::RowResult;
use plotters::prelude::*;

/// Most dots of one source in a panel, evenly picked.
const DOTS: usize = 220;

/// Three panels (throughput, time per output token, time to first token), both axes logarithmic, rows of one pool
/// without speculation that are not weak.
///
/// # Errors
/// The drawing backend's message.
pub fn panels(rows: &[Row], results: &[RowResult]) -> Result<String, String> {
    let mut sources: Vec<&str> = results.iter().map(|r| r.source.as_str()).collect();
    sources.sort_unstable();
    sources.dedup();
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (1260, 440)).into_drawing_area();
        area.fill(&WHITE).map_err(|e| e.to_string())?;
        let parts = area.split_evenly((1, FAMILIES.len()));
        for ((family, metrics), part) in FAMILIES.iter().zip(&parts) {
            let of = |source: &str| -> Vec<(f64, f64)> {
                let all: Vec<(f64, f64)> = rows
                    .iter()
                    .zip(results)
                    .filter(|(row, r)| !r.weak && r.source == source && class(row) == Class::Aggregated)
                    .filter_map(|(_, r)| {
                        let e = r.entries.iter().find(|e| metrics.contains(&e.metric))?;
                        let [predicted, ..] = e.predicted?;
                        (predicted > 0.0).then_some((e.measured, predicted))
                    })
                    .collect();
                let step = all.len().div_ceil(DOTS).max(1);
                all.into_iter().step_by(step).collect()
            };
            let dots: Vec<(&str, Vec<(f64, f64)>)> = sources.iter().map(|s| (*s, of(s))).collect();
            let unit = if *family == "throughput" { "per second" } else { "ms" };
            let caption = format!("{family} ({unit})");
            let panel = Panel {
                caption: &caption,
                caption_size: 16,
                margins: [8, 36, 58],
                smallest: 1e-6,
                tolerance: 1.25,
                dot: (2, 0.6),
            };
            panel.draw(part, &dots)?;
        }
        area.present().map_err(|e| e.to_string())?;
    }
    Ok(text)
}
