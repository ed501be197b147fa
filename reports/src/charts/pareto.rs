//! Plans that no other beats: step time against memory.

use super::canvas::{FAINT, PALETTE, draw, ink, scale, tick};
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
        // The winner is labelled first; others where their text meets neither a mark nor another text.
        let place = |m: &ParetoMark| (x(m.x), y(m.y));
        let mut order: Vec<&ParetoMark> = marks.iter().collect();
        order.sort_by_key(|m| !m.best);
        for mark in &order {
            let colour = if mark.best { PALETTE[5] } else { PALETTE[0] };
            area.draw(&Circle::new(place(mark), if mark.best { 7 } else { 5 }, colour.filled()))?;
        }
        let mut boxes: Vec<(i32, i32, i32)> = Vec::new();
        for mark in order {
            let (px, py) = place(mark);
            let (from, to) = (px + 10, px + 14 + 7 * mark.label.chars().count() as i32);
            let meets_mark =
                marks.iter().map(place).any(|(mx, my)| mx > from - 4 && mx < to && (my - py).abs() < 9);
            let meets_text = boxes.iter().any(|(a, b, ty)| from < *b && *a < to && (ty - py).abs() < 15);
            if mark.best || !(meets_mark || meets_text) {
                boxes.push((from, to, py));
                let style = ink(12).pos(Pos::new(HPos::Left, VPos::Center));
                area.draw(&Text::new(mark.label.clone(), (px + 12, py), style))?;
            }
        }
        Ok(())
    })
}
