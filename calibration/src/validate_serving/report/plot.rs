//! Predicted against measured, one panel per family of metrics, as SVG text.

use super::super::accuracy::{Class, FAMILIES, class};
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
            let dots: Vec<Vec<(f64, f64)>> = sources.iter().map(|s| of(s)).collect();
            let flat = || dots.iter().flatten();
            let low = flat().map(|p| p.0.min(p.1)).fold(f64::INFINITY, f64::min).clamp(1e-6, 1e9) * 0.8;
            let high = flat().map(|p| p.0.max(p.1)).fold(0.0, f64::max).max(low * 10.0) * 1.25;
            let unit = if *family == "throughput" { "per second" } else { "ms" };
            let mut chart = ChartBuilder::on(part)
                .caption(format!("{family} ({unit})"), ("sans-serif", 16))
                .margin(8)
                .x_label_area_size(36)
                .y_label_area_size(58)
                .build_cartesian_2d((low..high).log_scale(), (low..high).log_scale())
                .map_err(|e| e.to_string())?;
            chart
                .configure_mesh()
                .x_desc("measured")
                .y_desc("predicted")
                .light_line_style(WHITE)
                .draw()
                .map_err(|e| e.to_string())?;
            for (factor, style) in
                [(1.0, BLACK.mix(0.8)), (1.25, BLACK.mix(0.25)), (1.0 / 1.25, BLACK.mix(0.25))]
            {
                chart
                    .draw_series(LineSeries::new([(low, low * factor), (high, high * factor)], &style))
                    .map_err(|e| e.to_string())?;
            }
            for (index, (name, own)) in sources.iter().zip(&dots).enumerate().filter(|(_, d)| !d.1.is_empty())
            {
                let colour = Palette99::pick(index).to_rgba();
                chart
                    .draw_series(own.iter().map(|p| Circle::new(*p, 2, colour.mix(0.6).filled())))
                    .map_err(|e| e.to_string())?
                    .label(*name)
                    .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .border_style(BLACK.mix(0.3))
                .draw()
                .map_err(|e| e.to_string())?;
        }
        area.present().map_err(|e| e.to_string())?;
    }
    Ok(text)
}
