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

/// A rectangle that a text or a mark covers.
#[derive(Debug, Clone, Copy)]
struct Frame {
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
}

impl Frame {
    /// Of a mark.
    fn around(x: i32, y: i32) -> Self {
        Self { left: x - 6, right: x + 6, top: y - 6, bottom: y + 6 }
    }

    fn meets(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }
}

/// Places for the text of a mark, best first: what each covers, and where the text begins (its left end, half-way up).
fn spots((x, y): (i32, i32), label: &str) -> Vec<(Frame, (i32, i32))> {
    // Letters of 12 pixels are 7 wide at most.
    let width = 7 * label.chars().count() as i32;
    [
        (x + 12, y),
        (x - 12 - width, y),
        (x + 9, y - 13),
        (x + 9, y + 13),
        (x - 9 - width, y - 13),
        (x - 9 - width, y + 13),
        (x - width / 2, y - 16),
        (x - width / 2, y + 16),
    ]
    .into_iter()
    .map(|(left, middle)| {
        (Frame { left, right: left + width, top: middle - 7, bottom: middle + 7 }, (left, middle))
    })
    .collect()
}

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
        // The winner is labelled first; others where a text beside their mark meets neither a mark nor another text.
        let place = |m: &ParetoMark| (x(m.x), y(m.y));
        let mut order: Vec<&ParetoMark> = marks.iter().collect();
        order.sort_by_key(|m| !m.best);
        for mark in &order {
            let colour = if mark.best { PALETTE[5] } else { PALETTE[0] };
            area.draw(&Circle::new(place(mark), if mark.best { 7 } else { 5 }, colour.filled()))?;
        }
        let places: Vec<(i32, i32)> = marks.iter().map(place).collect();
        let mut boxes: Vec<Frame> = Vec::new();
        for mark in order {
            let at = place(mark);
            let free = |(frame, _): &(Frame, (i32, i32))| {
                let meets_mark =
                    places.iter().any(|(mx, my)| (*mx, *my) != at && frame.meets(&Frame::around(*mx, *my)));
                frame.left >= LEFT
                    && frame.right <= WIDTH
                    && !meets_mark
                    && !boxes.iter().any(|b| b.meets(frame))
            };
            let tried = spots(at, &mark.label);
            let found = tried.iter().find(|s| free(s)).or(tried.first().filter(|_| mark.best));
            if let Some((frame, text)) = found {
                let style = ink(12).pos(Pos::new(HPos::Left, VPos::Center));
                area.draw(&Text::new(mark.label.clone(), *text, style))?;
                boxes.push(*frame);
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_marks_all_get_their_names() {
        // The figures of a capacity page: two accelerators at nearly the same price, a third near one of them.
        let mark =
            |label: &str, x: f64, y: f64, best: bool| ParetoMark { label: label.to_owned(), x, y, best };
        let svg = pareto(
            "price against power",
            "US dollars an hour",
            "kilowatts",
            &[
                mark("H100-SXM-80GB", 120.0, 39.5, true),
                mark("H200-SXM-141GB", 121.6, 38.6, false),
                mark("B200-SXM", 132.0, 37.4, false),
            ],
        );
        for name in ["H100-SXM-80GB", "H200-SXM-141GB", "B200-SXM"] {
            assert!(svg.contains(name), "{name}");
        }
    }

    #[test]
    fn texts_keep_clear_of_marks_and_of_one_another() {
        let at = (400, 200);
        for (frame, _) in spots(at, "8 x TP4") {
            assert!(!frame.meets(&Frame::around(at.0, at.1)), "{frame:?}");
        }
        let (a, b) = (Frame::around(10, 10), Frame::around(21, 10));
        assert!(a.meets(&b) && !a.meets(&Frame::around(22, 10)));
    }
}
