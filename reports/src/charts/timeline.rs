//! A step as a Gantt chart: one line per track, time to the right.

use super::canvas::{FAINT, PALETTE, draw, ink, scale, tick};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use psim_sim::Timeline;

const WIDTH: i32 = 960;
const LEFT: i32 = 150;
const RIGHT: i32 = 30;
/// Spans drawn at most for each track; of longer steps only the beginning is shown, so that passes can be told apart.
const MOST_SPANS: usize = 64;
/// Tracks drawn at most.
const MOST_TRACKS: usize = 32;

/// The beginning of the timeline, as much as can be drawn; tracks beyond the first 32 are left out.
pub fn timeline(title: &str, timeline: &Timeline) -> String {
    let tracks = timeline.tracks.len().min(MOST_TRACKS);
    let spans: Vec<_> = timeline.spans.iter().filter(|s| (s.track as usize) < tracks).collect();
    // Every track is cut at the same time: where the first of them has shown as much as can be told apart.
    let cut = (0..tracks)
        .filter_map(|track| {
            let mut ends = spans.iter().filter(|s| s.track as usize == track).map(|s| s.end);
            ends.nth(MOST_SPANS - 1)
        })
        .min();
    let shown: Vec<_> = spans.iter().filter(|s| cut.is_none_or(|cut| s.start < cut)).collect();
    let end = match cut {
        Some(cut) => cut.seconds().0,
        None => shown.iter().map(|s| s.end.seconds().0).fold(0.0, f64::max),
    };
    if shown.is_empty() || end <= 0.0 {
        return String::new();
    }
    let whole = timeline.spans.iter().map(|s| s.end.seconds().0).fold(0.0, f64::max);
    let row = if tracks <= 12 { 24 } else { 15 };
    let height = row * tracks as i32 + 46;
    let (_, step) = scale(end);
    let x = |t: f64| LEFT + (t / end * f64::from(WIDTH - LEFT - RIGHT)).round() as i32;
    draw(WIDTH as u32, height as u32, title, |area| {
        let base = row * tracks as i32 + 6;
        let mut at = 0.0;
        while at <= end {
            area.draw(&PathElement::new(vec![(x(at), 2), (x(at), base)], FAINT))?;
            let style = ink(12).pos(Pos::new(HPos::Center, VPos::Top));
            area.draw(&Text::new(tick(at, step), (x(at), base + 4), style))?;
            at += step;
        }
        for (i, track) in timeline.tracks.iter().take(tracks).enumerate() {
            let style = ink(12).pos(Pos::new(HPos::Right, VPos::Center));
            let label = format!("{} {}", track.process, track.stream);
            area.draw(&Text::new(label, (LEFT - 8, row * i as i32 + row / 2), style))?;
        }
        for span in &shown {
            let colour = match span.category {
                "forward" => PALETTE[0],
                "backward" => PALETTE[2],
                "weight" => PALETTE[4],
                "communication" => PALETTE[5],
                _ => PALETTE[7],
            };
            let y = row * span.track as i32;
            let (a, b) = (x(span.start.seconds().0), x(span.end.seconds().0.min(end)));
            // A gap of a pixel tells neighbours apart where there is room for it.
            let b = if b - a > 3 { b - 1 } else { b.max(a + 1) };
            area.draw(&Rectangle::new([(a, y + 2), (b, y + row - 2)], colour.filled()))?;
        }
        let style = ink(12).pos(Pos::new(HPos::Center, VPos::Top));
        let part = if shown.len() < spans.len() {
            format!(" (the first {:.0} %)", end / whole * 100.0)
        } else {
            String::new()
        };
        area.draw(&Text::new(format!("seconds{part}"), ((LEFT + WIDTH - RIGHT) / 2, base + 20), style))?;
        Ok(())
    })
}
