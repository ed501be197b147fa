//! Lines over a common horizontal axis: timelines of a serving run, distributions of latencies.

use super::canvas::{FAINT, INK, PALETTE, draw, ink, scale, tick};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Name, written at the line's end.
    pub name: String,
    /// Points from left to right.
    pub points: Vec<(f64, f64)>,
}

/// A limit drawn as a dashed vertical line.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// Text at the top.
    pub name: String,
    /// Horizontal value.
    pub at: f64,
    /// Index of the line that it belongs to, for its colour.
    pub line: usize,
}

const WIDTH: i32 = 960;
const LEFT: i32 = 62;
const RIGHT: i32 = 110;
const TOP: i32 = 30;

/// Lines from zero; `y_top` fixes the top of the vertical axis (1 or 100 for shares), else it follows the data.
pub fn lines(
    title: &str,
    x_label: &str,
    y_label: &str,
    height: u32,
    y_top: Option<f64>,
    all: &[Line],
    limits: &[Limit],
) -> String {
    let points = || all.iter().flat_map(|l| &l.points);
    let low = points().map(|p| p.0).fold(f64::INFINITY, f64::min).min(0.0);
    let x_end = points().map(|p| p.0).chain(limits.iter().map(|l| l.at)).fold(0.0, f64::max);
    let (x_top, x_step) = scale(x_end - low);
    let x_top = if limits.is_empty() { x_end - low } else { x_top };
    let (y_top, y_step) = match y_top {
        Some(top) => (top, top / 4.0),
        None => scale(points().map(|p| p.1).fold(0.0, f64::max)),
    };
    if all.iter().all(|l| l.points.len() < 2) || !x_top.is_finite() || x_top <= 0.0 {
        return String::new();
    }
    let base = height as i32 - 44;
    let x = |v: f64| LEFT + ((v - low) / x_top * f64::from(WIDTH - LEFT - RIGHT)).round() as i32;
    let y = |v: f64| base - ((v / y_top).clamp(0.0, 1.0) * f64::from(base - TOP)).round() as i32;
    draw(WIDTH as u32, height, title, |area| {
        let mut at = 0.0;
        while at <= y_top * (1.0 + 1e-9) {
            area.draw(&PathElement::new(vec![(LEFT, y(at)), (WIDTH - RIGHT, y(at))], FAINT))?;
            let style = ink(12).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(tick(at, y_step), (LEFT - 8, y(at)), style))?;
            at += y_step;
        }
        at = 0.0;
        while at <= x_top * (1.0 + 1e-9) {
            let style = ink(12).pos(Pos::new(HPos::Center, VPos::Top));
            area.draw(&PathElement::new(vec![(x(low + at), base), (x(low + at), base + 4)], INK))?;
            area.draw(&Text::new(tick(low + at, x_step), (x(low + at), base + 7), style))?;
            at += x_step;
        }
        let style = ink(13).pos(Pos::new(HPos::Left, VPos::Top));
        area.draw(&Text::new(y_label.to_owned(), (LEFT - 40, 4), style))?;
        let style = ink(13).pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new(x_label.to_owned(), ((LEFT + WIDTH - RIGHT) / 2, base + 24), style))?;
        for limit in limits {
            let colour = PALETTE[limit.line % PALETTE.len()];
            let mut from = TOP;
            while from < base {
                area.draw(&PathElement::new(
                    vec![(x(limit.at), from), (x(limit.at), (from + 5).min(base))],
                    colour,
                ))?;
                from += 10;
            }
            // Near an edge the name stands inside, beside the dashes: above them are the axis and the names of lines.
            let (side, shift) = match x(limit.at) {
                at if at < LEFT + 60 => (HPos::Left, 5),
                at if at > WIDTH - RIGHT - 40 => (HPos::Right, -5),
                _ => (HPos::Center, 0),
            };
            let (place, level) = if shift == 0 { (VPos::Bottom, TOP - 3) } else { (VPos::Top, TOP + 4) };
            let style = ink(12).pos(Pos::new(side, place));
            area.draw(&Text::new(limit.name.clone(), (x(limit.at) + shift, level), style))?;
        }
        // Names at the line ends, pushed apart where they would meet.
        let mut taken: Vec<i32> = Vec::new();
        for (i, line) in all.iter().enumerate() {
            let colour = PALETTE[i % PALETTE.len()];
            let style = ShapeStyle { color: colour.to_rgba(), filled: false, stroke_width: 2 };
            area.draw(&PathElement::new(
                line.points.iter().map(|p| (x(p.0), y(p.1))).collect::<Vec<_>>(),
                style,
            ))?;
            let Some(last) = line.points.last() else { continue };
            let mut at = y(last.1);
            while taken.iter().any(|t| (t - at).abs() < 15) {
                at += 3;
            }
            taken.push(at);
            area.draw(&Rectangle::new(
                [(WIDTH - RIGHT + 8, at - 4), (WIDTH - RIGHT + 16, at + 4)],
                colour.filled(),
            ))?;
            let style = ink(12).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(line.name.clone(), (WIDTH - RIGHT + 21, at), style))?;
        }
        Ok(())
    })
}
