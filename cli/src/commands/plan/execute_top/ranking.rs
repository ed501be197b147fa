//! Plans ranked before and after a loop: which changed places, which wins.

use crate::table::{Align, Table};
use serde_json::{Value, json};

/// How many plans of the second ranking are printed.
const SHOWN: usize = 5;

/// Plans with their predicted figure, best first.
pub(super) struct Rankings<P> {
    /// With what was known before the loop.
    pub(super) before: Vec<(P, f64)>,
    /// With what it learned.
    pub(super) after: Vec<(P, f64)>,
}

/// What the figure of a plan is called and how it is printed.
pub(super) struct Figure {
    /// Heading of the new figure.
    pub(super) now: &'static str,
    /// Heading of the old one.
    pub(super) before: &'static str,
    /// Factor from the figure to what is printed.
    pub(super) scale: f64,
}

impl<P: PartialEq> Rankings<P> {
    /// The best plan before and after.
    fn winners(&self) -> Option<(&P, &P)> {
        Some((&self.before.first()?.0, &self.after.first()?.0))
    }

    /// The best plans of the second ranking with their old places, then who wins.
    pub(super) fn text(&self, figure: &Figure, name: impl Fn(&P) -> String) -> String {
        let right = Align::Right;
        let mut table = Table::new(&[
            ("ranked again", Align::Left),
            (figure.now, right),
            (figure.before, right),
            ("was", right),
        ]);
        let number = |value: f64| format!("{:.2}", value * figure.scale);
        for (plan, value) in self.after.iter().take(SHOWN) {
            let old = self.before.iter().enumerate().find(|(_, (p, _))| p == plan);
            let (before, was) =
                old.map_or_else(Default::default, |(i, (_, v))| (number(*v), format!("#{}", i + 1)));
            table.row([name(plan), number(*value), before, was]);
        }
        let mut out = table.render();
        if let Some((first, last)) = self.winners() {
            out.push_str(&if first == last {
                format!("the winner stays: {}\n", name(first))
            } else {
                format!("the winner changed: {} instead of {}\n", name(last), name(first))
            });
        }
        out
    }

    /// Adds both rankings and the winners to an answer.
    pub(super) fn add_to(
        &self,
        answer: &mut Value,
        most: usize,
        name: impl Fn(&P) -> String,
        one: impl Fn(&P, f64) -> Value,
    ) {
        let list = |plans: &[(P, f64)]| -> Vec<Value> {
            plans.iter().take(most).map(|(plan, figure)| one(plan, *figure)).collect()
        };
        answer["ranking_before"] = json!(list(&self.before));
        answer["ranking_after"] = json!(list(&self.after));
        answer["winner_changed"] = json!(self.winners().map(|(a, b)| a != b));
        answer["winner_before"] = json!(self.before.first().map(|(p, _)| name(p)));
        answer["winner_after"] = json!(self.after.first().map(|(p, _)| name(p)));
    }
}

/// Predicted against measured in per cent, nothing where nothing was measured.
pub(super) fn error_percent(measured: f64, predicted: f64) -> String {
    if measured > 1e-9 { format!("{:+.0}", (predicted / measured - 1.0) * 100.0) } else { String::new() }
}
