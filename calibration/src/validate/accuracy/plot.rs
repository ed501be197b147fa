//! Plots of the accuracy report as SVG text.

use crate::validate::report::Report;
use crate::validate::score::percentile;
use plotters::prelude::*;

/// Predicted against measured step-like times of all rows that are not weak, both axes logarithmic.
///
/// Rates are inverted, so that every metric reads as a time relative to its own unit.
///
/// # Errors
/// The drawing backend's message.
pub fn times(report: &Report) -> Result<String, String> {
    let mut points: Vec<(usize, f64, f64)> = Vec::new();
    let names: Vec<&String> = report.sources.keys().collect();
    for row in report.rows.iter().filter(|r| !r.weak) {
        let Some(candidate) = &row.candidate else { continue };
        if let Some(source) = names.iter().position(|n| **n == row.source) {
            points.push((source, candidate.measured, candidate.predicted));
        }
    }
    // Rates in tokens per second invert to microseconds: bring everything to a ratio around its source's median.
    let mut scaled = Vec::new();
    for source in 0..names.len() {
        let own: Vec<&(usize, f64, f64)> = points.iter().filter(|p| p.0 == source).collect();
        let middle = percentile(&own.iter().map(|p| p.1).collect::<Vec<_>>(), 0.5).unwrap_or(1.0);
        scaled.extend(own.iter().map(|p| (source, p.1 / middle, p.2 / middle)));
    }
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (900, 620)).into_drawing_area();
        area.fill(&WHITE).map_err(|e| e.to_string())?;
        let low = scaled.iter().map(|p| p.1.min(p.2)).fold(f64::INFINITY, f64::min).max(1e-4) * 0.8;
        let high = scaled.iter().map(|p| p.1.max(p.2)).fold(0.0, f64::max).max(low * 10.0) * 1.25;
        let mut chart = ChartBuilder::on(&area)
            .caption("Predicted against measured time, relative to the source's median", ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d((low..high).log_scale(), (low..high).log_scale())
            .map_err(|e| e.to_string())?;
        chart
            .configure_mesh()
            .x_desc("measured")
            .y_desc("predicted")
            .light_line_style(WHITE)
            .draw()
            .map_err(|e| e.to_string())?;
        for (factor, style) in [(1.0, BLACK.mix(0.8)), (1.1, BLACK.mix(0.25)), (1.0 / 1.1, BLACK.mix(0.25))] {
            chart
                .draw_series(LineSeries::new([(low, low * factor), (high, high * factor)], &style))
                .map_err(|e| e.to_string())?;
        }
        for (index, name) in names.iter().enumerate() {
            let colour = Palette99::pick(index).to_rgba();
            let own = scaled.iter().filter(|p| p.0 == index);
            chart
                .draw_series(own.map(|p| Circle::new((p.1, p.2), 3, colour.mix(0.7).filled())))
                .map_err(|e| e.to_string())?
                .label(name.as_str())
                .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .border_style(BLACK.mix(0.3))
            .draw()
            .map_err(|e| e.to_string())?;
        area.present().map_err(|e| e.to_string())?;
    }
    Ok(text)
}

/// Signed errors per source: every row a dot, the median and the 10th to 90th percentile as bars.
///
/// # Errors
/// The drawing backend's message.
pub fn errors(report: &Report) -> Result<String, String> {
    let names: Vec<&String> = report.sources.keys().collect();
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (900, 480)).into_drawing_area();
        area.fill(&WHITE).map_err(|e| e.to_string())?;
        let count = names.len().max(1);
        let label = |x: &f64| names.get(x.round() as usize).map_or(String::new(), |n| (*n).clone());
        let mut chart = ChartBuilder::on(&area)
            .caption("Error of the scored metric per source, percent", ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(60)
            .y_label_area_size(50)
            .build_cartesian_2d(-0.6..count as f64 - 0.4, -60.0..60.0)
            .map_err(|e| e.to_string())?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(count)
            .x_label_formatter(&label)
            .light_line_style(WHITE)
            .draw()
            .map_err(|e| e.to_string())?;
        for (index, name) in names.iter().enumerate() {
            let errors: Vec<f64> = report
                .rows
                .iter()
                .filter(|r| !r.weak && r.source == **name)
                .filter_map(|r| r.entries.get(r.scored?)?.error())
                .collect();
            let at = index as f64;
            // A fixed pattern spreads the dots; the same file gives the same picture.
            let dots = errors.iter().enumerate().map(|(i, e)| {
                let shift = ((i * 37 % 41) as f64 / 41.0 - 0.5) * 0.6;
                Circle::new((at + shift, e.clamp(-59.0, 59.0)), 2, BLUE.mix(0.35).filled())
            });
            chart.draw_series(dots).map_err(|e| e.to_string())?;
            if let (Some(low), Some(middle), Some(high)) =
                (percentile(&errors, 0.1), percentile(&errors, 0.5), percentile(&errors, 0.9))
            {
                let bar = |y: f64, half: f64| {
                    PathElement::new([(at - half, y), (at + half, y)], RED.stroke_width(2))
                };
                let stem =
                    PathElement::new([(at, low.max(-60.0)), (at, high.min(60.0))], RED.stroke_width(1));
                chart
                    .draw_series([bar(low, 0.12), bar(middle, 0.3), bar(high, 0.12), stem])
                    .map_err(|e| e.to_string())?;
            }
        }
        area.present().map_err(|e| e.to_string())?;
    }
    Ok(text)
}
