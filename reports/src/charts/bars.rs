//! Horizontal bars with intervals: one per plan.

use super::canvas::{FAINT, INK, PALETTE, draw, ink, scale, tick};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Text on the left.
    pub label: String,
    /// Length.
    pub value: f64,
    /// Interval.
    pub low: f64,
    /// Interval.
    pub high: f64,
    /// Text after the bar.
    pub note: String,
}

const ROW: i32 = 30;
const LEFT: i32 = 330;
const RIGHT: i32 = 170;
const WIDTH: i32 = 960;

/// Bars from zero, longest scale to the right, with their interval as a whisker.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let height = ROW * bars.len() as i32 + 50;
    let (top, step) = scale(bars.iter().map(|b| b.high.max(b.value)).fold(0.0, f64::max));
    let x = |value: f64| LEFT + ((value / top) * f64::from(WIDTH - LEFT - RIGHT)).round() as i32;
    draw(WIDTH as u32, height as u32, title, |area| {
        let base = ROW * bars.len() as i32 + 8;
        let mut at = 0.0;
        while at <= top * (1.0 + 1e-9) {
            area.draw(&PathElement::new(vec![(x(at), 4), (x(at), base)], FAINT))?;
            let style = ink(13).pos(Pos::new(HPos::Center, VPos::Top));
            area.draw(&Text::new(tick(at, step), (x(at), base + 5), style))?;
            at += step;
        }
        let style = ink(13).pos(Pos::new(HPos::Left, VPos::Top));
        area.draw(&Text::new(unit.to_owned(), (x(top) + 14, base + 5), style))?;
        for (i, bar) in bars.iter().enumerate() {
            let y = ROW * i as i32 + 6;
            let middle = y + ROW / 2 - 4;
            let colour = if i == 0 { PALETTE[0] } else { PALETTE[4] };
            area.draw(&Rectangle::new([(x(0.0), y + 1), (x(bar.value), y + ROW - 9)], colour.filled()))?;
            if bar.high > bar.low {
                let (low, high) = (x(bar.low), x(bar.high));
                area.draw(&PathElement::new(vec![(low, middle), (high, middle)], INK))?;
                for end in [low, high] {
                    area.draw(&PathElement::new(vec![(end, middle - 4), (end, middle + 4)], INK))?;
                }
            }
            let right = ink(13).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(bar.label.clone(), (LEFT - 10, middle), right))?;
            let left = ink(13).pos(Pos::new(HPos::Left, VPos::Center));
            let end = x(bar.high.max(bar.value));
            area.draw(&Text::new(bar.note.clone(), (end + 8, middle), left))?;
        }
        Ok(())
    })
}
