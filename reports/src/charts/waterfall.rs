//! A waterfall: what stands between ideal compute and the step time, term by term.

use super::canvas::{FAINT, PALETTE, draw, ink, scale, tick};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const ROW: i32 = 28;
const LEFT: i32 = 230;
const RIGHT: i32 = 160;
const WIDTH: i32 = 960;

/// Each term starts where the one before ended; the last bar is the sum. Terms are `(name, value)`.
pub fn waterfall(title: &str, unit: &str, terms: &[(String, f64)]) -> String {
    let total: f64 = terms.iter().map(|t| t.1).sum();
    let mut running = 0.0;
    let mut peak = total;
    for (_, value) in terms {
        running += value;
        peak = peak.max(running);
    }
    let rows = terms.len() as i32 + 1;
    let (top, step) = scale(peak);
    let x = |value: f64| LEFT + ((value / top) * f64::from(WIDTH - LEFT - RIGHT)).round() as i32;
    draw(WIDTH as u32, (ROW * rows + 50) as u32, title, |area| {
        let base = ROW * rows + 8;
        let mut at = 0.0;
        while at <= top * (1.0 + 1e-9) {
            area.draw(&PathElement::new(vec![(x(at), 4), (x(at), base)], FAINT))?;
            let style = ink(13).pos(Pos::new(HPos::Center, VPos::Top));
            area.draw(&Text::new(tick(at, step), (x(at), base + 5), style))?;
            at += step;
        }
        let style = ink(13).pos(Pos::new(HPos::Left, VPos::Top));
        area.draw(&Text::new(unit.to_owned(), (x(top) + 14, base + 5), style))?;
        let mut start = 0.0;
        let last = ("step".to_owned(), total);
        for (i, (name, value)) in terms.iter().chain([&last]).enumerate() {
            let sum = i == terms.len();
            let from = if sum { 0.0 } else { start };
            let y = ROW * i as i32 + 6;
            let middle = y + ROW / 2 - 4;
            let colour = match (sum, i) {
                (true, _) => PALETTE[7],
                (_, 0) => PALETTE[2],
                _ => PALETTE[5],
            };
            let (a, b) = (x(from), x(from + value));
            let (a, b) = (a.min(b), a.max(b).max(a.min(b) + 1));
            area.draw(&Rectangle::new([(a, y + 1), (b, y + ROW - 9)], colour.filled()))?;
            let right = ink(13).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(name.clone(), (LEFT - 10, middle), right))?;
            let left = ink(13).pos(Pos::new(HPos::Left, VPos::Center));
            let share = if total > 0.0 { value / total * 100.0 } else { 0.0 };
            let note = format!("{} {unit}  {share:.1} %", crate::number::three(*value));
            area.draw(&Text::new(note, (b + 8, middle), left))?;
            if !sum {
                start += value;
                area.draw(&PathElement::new(vec![(x(start), y + ROW - 9), (x(start), y + ROW + 1)], FAINT))?;
            }
        }
        Ok(())
    })
}
