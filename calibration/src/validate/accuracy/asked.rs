//! What is asked of the training predictions, and what is reached.

use crate::validate::contradictions::Contradiction;
use crate::validate::left_out::LeftOut;
use crate::validate::percentile::percentile;
use crate::validate::ranking::groups;
use crate::validate::report::Report;
use crate::validate::score::RowResult;
use std::fmt::Write as _;

/// One line: what is asked, the limit, what is reached.
struct Line {
    what: &'static str,
    limit: String,
    reached: String,
    held: Option<bool>,
}

impl Line {
    /// A value in percent that may not exceed `most`.
    fn most(what: &'static str, most: f64, reached: Option<f64>) -> Self {
        Self {
            what,
            limit: format!("at most {most} %"),
            reached: reached.map_or("–".to_owned(), |v| format!("{v:.1} %")),
            held: reached.map(|v| v <= most),
        }
    }

    /// A value in percent that may not fall below `least`.
    fn least(what: &'static str, least: f64, reached: Option<f64>) -> Self {
        Self {
            limit: format!("at least {least} %"),
            held: reached.map(|v| v >= least),
            ..Self::most(what, least, reached)
        }
    }
}

fn is_blackwell(row: &RowResult) -> bool {
    ["B200", "B300", "GB200", "GB300"].iter().any(|part| row.gpu.starts_with(part))
}

fn apes<'a>(report: &'a Report, keep: impl Fn(&RowResult) -> bool + 'a) -> Vec<f64> {
    let strong = report.rows.iter().filter(move |r| !r.weak && keep(r));
    strong.filter_map(|r| r.entries.get(r.scored?)?.ape()).collect()
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The largest 90th percentile of a source's rows, dense or mixtures, with the source's name.
fn worst_tail(report: &Report, mixture: bool) -> Option<(f64, &str)> {
    let of = |name: &'_ str| percentile(&apes(report, |r| r.source == name && r.mixture == mixture), 0.9);
    let tails = report.sources.keys().filter_map(|name| Some((of(name)?, name.as_str())));
    tails.max_by(|a, b| a.0.total_cmp(&b.0))
}

/// The table at the head of the report; `moved` parameters were adjusted on end-to-end rows.
pub(super) fn table(out: &mut String, report: &Report, left_out: Option<&LeftOut>, moved: usize) {
    let all = &report.all;
    let median = |keep: &dyn Fn(&RowResult) -> bool| percentile(&apes(report, keep), 0.5);
    let average = |source: &str| mean(&apes(report, |r| r.source == source));
    let memory = |source: &str| report.sources.get(source).and_then(|s| s.memory.median_ape);
    let mut lines = vec![
        Line::least("rows predicted", 97.0, Some(100.0 * all.covered as f64 / all.rows.max(1) as f64)),
        Line::most("macro median, fitted", 5.0, all.macro_median_ape),
        Line::most("macro median, source left out", 9.0, left_out.and_then(super::macro_median)),
    ];
    for (what, mixture, most) in [
        ("90th percentile of a source's dense rows, worst source", false, 15.0),
        ("90th percentile of a source's mixtures, worst source", true, 25.0),
    ] {
        let worst = worst_tail(report, mixture);
        let mut line = Line::most(what, most, worst.map(|w| w.0));
        if let Some((_, name)) = worst {
            let _ = write!(line.reached, " ({name})");
        }
        lines.push(line);
    }
    lines.push(Line::most("Blackwell dense, median", 5.0, median(&|r| is_blackwell(r) && !r.mixture)));
    lines.push(Line::most("Blackwell mixtures, median", 10.0, median(&|r| is_blackwell(r) && r.mixture)));
    lines.push(Line {
        what: "parameters adjusted on end-to-end rows, releases apart",
        limit: "at most 60".to_owned(),
        reached: moved.to_string(),
        held: Some(moved <= 60),
    });
    lines.push(Line::most("vTrain's multi-node rows, mean", 6.0, average("vtrain")));
    lines.push(Line::most(
        "Calculon's validation points (Korthikanti et al.), mean",
        3.0,
        average("korthikanti22"),
    ));
    lines.push(Line::most("SimuMax B200 rows, time, mean", 4.0, average("simumax")));
    lines.push(Line::most("SimuMax B200 rows, memory, median", 2.0, memory("simumax")));
    let tau = all.ranking.kendall_tau;
    lines.push(Line {
        what: "ranking: Kendall's tau, mean over groups",
        limit: "at least 0.85".to_owned(),
        reached: super::plain(tau),
        held: tau.map(|t| t >= 0.85),
    });
    lines.push(Line::most("ranking: mean regret", 1.0, all.ranking.mean_regret));
    let mut worst = Line::most("ranking: regret of the worst group", 6.0, all.ranking.max_regret);
    let contradictions = report.contradictions();
    if let (false, Some(other)) = (contradictions.is_empty(), regrets(report, &contradictions).first()) {
        let _ = write!(worst.reached, " ({other:.1} % without rows that their source contradicts, below)");
    }
    lines.push(worst);
    let (right, folds) = folding(report);
    lines.push(Line {
        what: "parallel folding: models whose order of strategies is right",
        limit: "all".to_owned(),
        reached: format!("{right} of {folds}"),
        held: Some(right == folds),
    });
    let wrong = |ran: bool| {
        let is = |r: &&RowResult| !r.weak && r.ran == Some(ran) && r.fits.is_some();
        let rows: Vec<&RowResult> = report.rows.iter().filter(is).collect();
        (rows.iter().filter(|r| r.fits == r.ran).count(), rows.len())
    };
    let ((ran_right, ran), (out_right, out_all)) = (wrong(true), wrong(false));
    lines.push(Line::least(
        "rows that ran, judged to fit",
        98.0,
        Some(100.0 * ran_right as f64 / ran.max(1) as f64),
    ));
    let doubted = |row: &&RowResult| contradictions.iter().any(|c| c.rows[0] == row.id);
    let missed = report.rows.iter().filter(|r| !r.weak && r.ran == Some(false) && r.fits == Some(true));
    let denied = match missed.filter(doubted).count() {
        0 => String::new(),
        count => format!(" (contradicted by their own source, below: {count})"),
    };
    lines.push(Line {
        what: "rows that ran out of memory, judged so",
        limit: "all".to_owned(),
        reached: format!("{out_right} of {out_all}{denied}"),
        held: Some(out_right == out_all),
    });
    lines.push(Line::most("peak memory, median", 5.0, all.memory.median_ape));
    if let Some(left) = left_out {
        lines.extend(intervals(left));
    }
    *out += "## Asked and reached\n\nOn the rows that are not weak.\n\n| | asked | reached | |\n|---|---|---|---|\n";
    for Line { what, limit, reached, held } in lines {
        let mark = held.map_or("", |h| if h { "yes" } else { "**no**" });
        let _ = writeln!(out, "| {what} | {limit} | {reached} | {mark} |");
    }
    out.push('\n');
}

/// Coverage of the 80 % intervals of sources that the fit has not seen.
fn intervals(left: &LeftOut) -> Vec<Line> {
    let inside = |c: f64| (70.0..=90.0).contains(&c);
    let pooled = left.all.interval.coverage;
    let covered: Vec<f64> = left.sources.values().filter_map(|s| s.interval.coverage).collect();
    let sources = covered.iter().filter(|c| inside(**c)).count();
    vec![
        Line {
            what: "80 % intervals of left-out sources, all rows",
            limit: "70 to 90 %".to_owned(),
            reached: pooled.map_or("–".to_owned(), |v| format!("{v:.1} %")),
            held: pooled.map(inside),
        },
        Line {
            what: "the same, sources inside",
            limit: "all".to_owned(),
            reached: format!("{sources} of {}", covered.len()),
            held: Some(sources == covered.len()),
        },
    ]
}

/// Regrets of all groups without the rows of some contradictions, worst first.
fn regrets(report: &Report, without: &[Contradiction]) -> Vec<f64> {
    let named = |row: &RowResult| without.iter().any(|c| c.rows.contains(&row.id));
    let strong = report.rows.iter().filter(|r| !r.weak && !r.doubtful && !named(r));
    let candidates: Vec<_> = strong.filter_map(|r| r.candidate.as_ref()).collect();
    let mut all: Vec<f64> = groups(&candidates).iter().map(|g| g.regret).collect();
    all.sort_by(|a, b| b.total_cmp(a));
    all
}

/// Models of MoE Parallel Folding (table 3; weak rows, so their order only): those whose strategies are all in order, and all.
fn folding(report: &Report) -> (usize, usize) {
    let rows = report.rows.iter().filter(|r| r.id.starts_with("moefold-t3"));
    let mut candidates: Vec<_> = rows.filter_map(|r| r.candidate.clone()).collect();
    for candidate in &mut candidates {
        // Strategies are of several frameworks: what groups them is the model alone.
        let model = candidate.group.split('|').next().unwrap_or_default().to_owned();
        candidate.configuration = format!("{}|{}", candidate.group, candidate.configuration);
        candidate.group = model;
    }
    let all = groups(&candidates.iter().collect::<Vec<_>>());
    (all.iter().filter(|g| g.tau.is_none_or(|t| t > 0.999)).count(), all.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_on_the_right_side() {
        assert_eq!(Line::most("a", 5.0, Some(5.1)).held, Some(false));
        assert_eq!(Line::least("a", 97.0, Some(97.0)).held, Some(true));
        assert_eq!(Line::most("a", 5.0, None).held, None);
    }

    #[test]
    fn coverage_of_a_source_may_be_too_high() {
        let mut left = LeftOut::default();
        for (name, coverage) in [("a", 95.0), ("b", 80.0)] {
            let mut summary = crate::validate::score::Summary::default();
            summary.interval.coverage = Some(coverage);
            left.sources.insert(name.to_owned(), summary);
        }
        left.all.interval.coverage = Some(88.0);
        let lines = intervals(&left);
        assert_eq!(lines[0].held, Some(true));
        assert_eq!((lines[1].held, lines[1].reached.as_str()), (Some(false), "1 of 2"));
    }
}
