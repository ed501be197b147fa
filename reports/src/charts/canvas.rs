//! What the charts share: palette, theme colours, and the way from plotters to a string.

use plotters::prelude::*;

/// Series colours, told apart also by people with colour-blindness (Okabe and Ito 2008), readable on dark and light.
pub(crate) const PALETTE: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(160, 150, 40),
    RGBColor(120, 120, 130),
];

/// Stands for the page's text colour; replaced in [`draw`].
pub(crate) const INK: RGBColor = RGBColor(1, 2, 3);
/// Stands for a faint line in the page's text colour.
pub(crate) const FAINT: RGBColor = RGBColor(4, 5, 6);

/// A colour of the palette as CSS.
pub(crate) fn css(index: usize) -> String {
    let RGBColor(r, g, b) = PALETTE[index % PALETTE.len()];
    format!("#{r:02X}{g:02X}{b:02X}")
}

/// What drawing can fail with; a string backend never does, so charts fall back to an empty picture.
pub(crate) type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Runs `paint` on a canvas of the given size and returns SVG that scales with the page.
pub(crate) fn draw(
    width: u32,
    height: u32,
    label: &str,
    paint: impl FnOnce(&DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) -> Outcome,
) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        if paint(&area).and_then(|()| Ok(area.present()?)).is_err() {
            return String::new();
        }
    }
    let head = format!("<svg width=\"{width}\" height=\"{height}\"");
    let responsive = format!("<svg role=\"img\" aria-label=\"{}\" class=\"chart\"", escape(label));
    svg.replacen(&head, &responsive, 1)
        .replace("\"#010203\"", "\"currentColor\"")
        .replace("stroke=\"#040506\"", "stroke=\"currentColor\" stroke-opacity=\"0.18\"")
        .replace("\"#040506\"", "\"currentColor\"")
}

/// Text for an attribute.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

/// Text of the given size in the ink colour.
pub(crate) fn ink(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// A round number at or above `value`, and a step that divides it into four to eight parts.
pub(crate) fn scale(value: f64) -> (f64, f64) {
    if !(value.is_finite() && value > 0.0) {
        return (1.0, 0.25);
    }
    let magnitude = 10_f64.powf(value.log10().floor());
    for step in [0.1, 0.2, 0.25, 0.5, 1.0, 2.0] {
        let parts = (value / (step * magnitude) - 1e-9).ceil().max(1.0);
        if parts <= 7.0 {
            return (parts * step * magnitude, step * magnitude);
        }
    }
    (10.0 * magnitude, 2.0 * magnitude)
}

/// A number for an axis: as many decimals as the step needs.
pub(crate) fn tick(value: f64, step: f64) -> String {
    let whole = |decimals: &usize| {
        let scaled = step * 10_f64.powi(*decimals as i32);
        scaled >= 0.5 && (scaled - scaled.round()).abs() < 1e-6 * scaled
    };
    let decimals = (0..6).find(whole).unwrap_or(6);
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_cover_their_value_in_few_steps() {
        for value in [1e-9, 0.3, 0.99, 1.0, 4.52, 79.9, 1234.0, 9.99e12] {
            let (top, step) = scale(value);
            let parts = top / step;
            assert!(top >= value * (1.0 - 1e-9) && top <= 2.1 * value, "{value}: {top}");
            assert!((1.0..=8.0).contains(&parts), "{value}: {parts}");
        }
        assert_eq!(scale(f64::NAN), (1.0, 0.25));
        assert_eq!(tick(0.25, 0.25), "0.25");
        assert_eq!(tick(2.0, 1.0), "2");
        assert_eq!(tick(0.5, 0.5), "0.5");
        assert_eq!(tick(7.5, 2.5), "7.5");
        assert_eq!(tick(50.0, 25.0), "50");
        assert_eq!(tick(2e-9, 1e-9), "0.000000");
    }
}
