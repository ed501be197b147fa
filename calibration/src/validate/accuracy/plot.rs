//! Plots of the accuracy reports as SVG text.

use crate::validate::percentile::percentile;
use crate::validate::report::Report;
use plotters::coord::Shift;
use plotters::prelude::*;

/// One panel of predicted against measured values, both axes logarithmic, with the diagonal and a band around it.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// Above the panel.
    pub caption: &'a str,
    /// Its size in points.
    pub caption_size: u32,
    /// Margin, height of the labels below, width of the labels on the left, in pixels.
    pub margins: [u32; 3],
    /// Values below it are not shown.
    pub smallest: f64,
    /// Factor of the thin lines beside the diagonal.
    pub tolerance: f64,
    /// Radius of a dot in pixels and its opacity.
    pub dot: (u32, f64),
}

impl Panel<'_> {
    /// Draws the dots (measured, predicted) of every source, one colour each; sources without dots keep their colour.
    ///
    /// # Errors
    /// The drawing backend's message.
    pub fn draw(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        sources: &[(&str, Vec<(f64, f64)>)],
    ) -> Result<(), String> {
        let flat = || sources.iter().flat_map(|s| &s.1);
        let low = flat().map(|p| p.0.min(p.1)).fold(f64::INFINITY, f64::min).clamp(self.smallest, 1e9) * 0.8;
        let high = flat().map(|p| p.0.max(p.1)).fold(0.0, f64::max).max(low * 10.0) * 1.25;
        let [margin, below, left] = self.margins;
        let mut chart = ChartBuilder::on(area)
            .caption(self.caption, ("sans-serif", self.caption_size))
            .margin(margin)
            .x_label_area_size(below)
            .y_label_area_size(left)
            .build_cartesian_2d((low..high).log_scale(), (low..high).log_scale())
            .map_err(|e| e.to_string())?;
        chart
            .configure_mesh()
            .x_desc("measured")
            .y_desc("predicted")
            .light_line_style(WHITE)
            .draw()
            .map_err(|e| e.to_string())?;
        let (full, thin) = (BLACK.mix(0.8), BLACK.mix(0.25));
        for (factor, style) in [(1.0, full), (self.tolerance, thin), (1.0 / self.tolerance, thin)] {
            chart
                .draw_series(LineSeries::new([(low, low * factor), (high, high * factor)], &style))
                .map_err(|e| e.to_string())?;
        }
        let (radius, opacity) = self.dot;
        for (index, (name, own)) in sources.iter().enumerate().filter(|(_, s)| !s.1.is_empty()) {
            let colour = Palette99::pick(index).to_rgba();
            chart
                .draw_series(own.iter().map(|p| Circle::new(*p, radius, colour.mix(opacity).filled())))
                .map_err(|e| e.to_string())?
                .label(*name)
                .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .border_style(BLACK.mix(0.3))
            .draw()
            .map_err(|e| e.to_string())
    }
}

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
        let panel = Panel {
            caption: "Predicted against measured time, relative to the source's median",
            caption_size: 18,
            margins: [12, 40, 60],
            smallest: 1e-4,
            tolerance: 1.1,
            dot: (3, 0.7),
        };
        let sources: Vec<(&str, Vec<(f64, f64)>)> = names
            .iter()
            .enumerate()
            .map(|(index, name)| {
                (name.as_str(), scaled.iter().filter(|p| p.0 == index).map(|p| (p.1, p.2)).collect())
            })
            .collect();
        panel.draw(&area, &sources)?;
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
