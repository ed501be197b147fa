//! Memory per pipeline stage, stacked by part, against the capacity.

use super::canvas::{FAINT, INK, PALETTE, draw, ink, scale, tick};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: i32 = 960;
const HEIGHT: i32 = 320;
const LEFT: i32 = 60;
const RIGHT: i32 = 110;
const BASE: i32 = HEIGHT - 40;

/// Stacked columns, one per stage: `stages[i]` is `(label, value of each part)`, all in the unit of `capacity`.
/// Parts are coloured by their index. With more than 64 stages only every n-th is labelled.
pub fn memory(title: &str, unit: &str, stages: &[(String, Vec<f64>)], capacity: f64) -> String {
    let tallest = stages.iter().map(|s| s.1.iter().sum::<f64>()).fold(capacity, f64::max);
    let (top, step) = scale(tallest);
    let y = |value: f64| BASE - ((value / top) * f64::from(BASE - 16)).round() as i32;
    let count = stages.len().max(1) as i32;
    let slot = f64::from(WIDTH - LEFT - RIGHT) / f64::from(count);
    let bar = (slot * 0.72).clamp(1.0, 70.0);
    let every = (count as usize).div_ceil(32);
    draw(WIDTH as u32, HEIGHT as u32, title, |area| {
        let mut at = 0.0;
        while at <= top * (1.0 + 1e-9) {
            area.draw(&PathElement::new(vec![(LEFT, y(at)), (WIDTH - RIGHT, y(at))], FAINT))?;
            let style = ink(13).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(tick(at, step), (LEFT - 8, y(at)), style))?;
            at += step;
        }
        for (i, (label, parts)) in stages.iter().enumerate() {
            let centre = f64::from(LEFT) + slot * (i as f64 + 0.5);
            let (a, b) = ((centre - bar / 2.0).round() as i32, (centre + bar / 2.0).round() as i32);
            let mut from = 0.0;
            for (part, value) in parts.iter().enumerate() {
                let colour = PALETTE[part % PALETTE.len()];
                area.draw(&Rectangle::new([(a, y(from + value)), (b, y(from))], colour.filled()))?;
                from += value;
            }
            if i % every == 0 {
                let style = ink(13).pos(Pos::new(HPos::Center, VPos::Top));
                area.draw(&Text::new(label.clone(), (centre.round() as i32, BASE + 6), style))?;
            }
        }
        let line = ShapeStyle { color: INK.to_rgba(), filled: false, stroke_width: 2 };
        area.draw(&PathElement::new(vec![(LEFT, y(capacity)), (WIDTH - RIGHT, y(capacity))], line))?;
        let style = ink(13).pos(Pos::new(HPos::Left, VPos::Center));
        let note = format!("{} {unit} usable", crate::number::three(capacity));
        area.draw(&Text::new(note, (WIDTH - RIGHT + 4, y(capacity)), style))?;
        let style = ink(13).pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new("pipeline stage".to_owned(), ((LEFT + WIDTH - RIGHT) / 2, BASE + 22), style))?;
        Ok(())
    })
}
