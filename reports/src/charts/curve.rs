//! Throughput over the global batch.

use super::canvas::{FAINT, PALETTE, draw, ink, scale, tick};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: i32 = 960;
const HEIGHT: i32 = 320;
const LEFT: i32 = 80;
const RIGHT: i32 = 40;
const BASE: i32 = HEIGHT - 46;

/// A line through `(batch, value)` points, the batch on a logarithmic axis.
pub fn curve(title: &str, x_label: &str, y_label: &str, points: &[(f64, f64)]) -> String {
    let low = points.iter().map(|p| p.0).fold(f64::INFINITY, f64::min).max(1e-9).ln();
    let high = points.iter().map(|p| p.0).fold(f64::NEG_INFINITY, f64::max).max(1e-9).ln();
    let span = (high - low).max(1e-9);
    let (top, step) = scale(points.iter().map(|p| p.1).fold(0.0, f64::max));
    let x = |value: f64| {
        LEFT + ((value.max(1e-9).ln() - low) / span * f64::from(WIDTH - LEFT - RIGHT)).round() as i32
    };
    let y = |value: f64| BASE - ((value / top) * f64::from(BASE - 34)).round() as i32;
    draw(WIDTH as u32, HEIGHT as u32, title, |area| {
        let mut at = 0.0;
        while at <= top * (1.0 + 1e-9) {
            area.draw(&PathElement::new(vec![(LEFT, y(at)), (WIDTH - RIGHT, y(at))], FAINT))?;
            let style = ink(13).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(tick(at, step), (LEFT - 8, y(at)), style))?;
            at += step;
        }
        let style = ink(13).pos(Pos::new(HPos::Left, VPos::Top));
        area.draw(&Text::new(y_label.to_owned(), (LEFT, 4), style))?;
        let style = ink(13).pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new(x_label.to_owned(), ((LEFT + WIDTH - RIGHT) / 2, BASE + 26), style))?;
        let line = ShapeStyle { color: PALETTE[0].to_rgba(), filled: false, stroke_width: 2 };
        let path: Vec<(i32, i32)> = points.iter().map(|p| (x(p.0), y(p.1))).collect();
        area.draw(&PathElement::new(path.clone(), line))?;
        let mut free = i32::MIN;
        for (point, at) in points.iter().zip(path) {
            area.draw(&Circle::new(at, 4, PALETTE[0].filled()))?;
            if at.0 > free {
                let style = ink(13).pos(Pos::new(HPos::Center, VPos::Top));
                area.draw(&Text::new(format!("{:.0}", point.0), (at.0, BASE + 6), style))?;
                free = at.0 + 46;
            }
        }
        Ok(())
    })
}
