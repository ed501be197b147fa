//! Plans that no other beats: step time against memory, cost as the size of the mark.

use super::canvas::{FAINT, INK, PALETTE, draw, ink, scale, tick};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// One plan.
#[derive(Debug, Clone, PartialEq)]
pub struct ParetoMark {
    /// Text beside the mark.
    pub label: String,
    /// Horizontal value.
    pub x: f64,
    /// Vertical value.
    pub y: f64,
    /// The plan is the winner.
    pub best: bool,
}

const WIDTH: i32 = 960;
const HEIGHT: i32 = 380;
const LEFT: i32 = 70;
const RIGHT: i32 = 210;
const BASE: i32 = HEIGHT - 46;

/// A scatter plot; both axes start at zero, so that distances are honest.
pub fn pareto(title: &str, x_label: &str, y_label: &str, marks: &[ParetoMark]) -> String {
    let (x_top, x_step) = scale(marks.iter().map(|m| m.x).fold(0.0, f64::max));
    let (y_top, y_step) = scale(marks.iter().map(|m| m.y).fold(0.0, f64::max));
    let x = |v: f64| LEFT + (v / x_top * f64::from(WIDTH - LEFT - RIGHT)).round() as i32;
    let y = |v: f64| BASE - (v / y_top * f64::from(BASE - 34)).round() as i32;
    draw(WIDTH as u32, HEIGHT as u32, title, |area| {
        let mut at = 0.0;
        while at <= y_top * (1.0 + 1e-9) {
            area.draw(&PathElement::new(vec![(LEFT, y(at)), (WIDTH - RIGHT, y(at))], FAINT))?;
            let style = ink(13).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(tick(at, y_step), (LEFT - 8, y(at)), style))?;
            at += y_step;
        }
        at = 0.0;
        while at <= x_top * (1.0 + 1e-9) {
            area.draw(&PathElement::new(vec![(x(at), BASE), (x(at), 34)], FAINT))?;
            let style = ink(13).pos(Pos::new(HPos::Center, VPos::Top));
            area.draw(&Text::new(tick(at, x_step), (x(at), BASE + 6), style))?;
            at += x_step;
        }
        let style = ink(13).pos(Pos::new(HPos::Left, VPos::Top));
        area.draw(&Text::new(y_label.to_owned(), (LEFT, 4), style))?;
        let style = ink(13).pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new(x_label.to_owned(), ((LEFT + WIDTH - RIGHT) / 2, BASE + 26), style))?;
        // Labels keep clear of those already drawn.
        let mut taken: Vec<(i32, i32)> = Vec::new();
        for mark in marks {
            let (px, py) = (x(mark.x), y(mark.y));
            let colour = if mark.best { PALETTE[5] } else { PALETTE[0] };
            area.draw(&Circle::new((px, py), if mark.best { 7 } else { 5 }, colour.filled()))?;
            let clear = |candidate: i32, taken: &[(i32, i32)]| {
                taken.iter().all(|(tx, ty)| (tx - px).abs() > 220 || (ty - candidate).abs() >= 15)
            };
            if let Some(ly) = [0, -15, 15, -30, 30].iter().map(|d| py + d).find(|c| clear(*c, &taken)) {
                taken.push((px, ly));
                if ly != py {
                    area.draw(&PathElement::new(vec![(px, py), (px + 10, ly)], INK.mix(0.4)))?;
                }
                let style = ink(12).pos(Pos::new(HPos::Left, VPos::Center));
                area.draw(&Text::new(mark.label.clone(), (px + 12, ly), style))?;
            }
        }
        Ok(())
    })
}
