use super::*;
use crate::fixture;
use psim_planner::{Infeasible, KilledBy, NearestChange};

/// Writes the page where `PSIM_SHOW` says, to look at it.
fn show(name: &str, page: &str) {
    if let Ok(directory) = std::env::var("PSIM_SHOW") {
        std::fs::write(format!("{directory}/{name}.html"), page).unwrap();
    }
}

/// No address of the outside world, no unescaped text, every tag closed.
fn check(page: &str) {
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http://") && !outside.contains("https://"), "an outside address");
    assert!(!page.contains("url(") && !page.contains("@import") && !page.contains(" src="));
    for tag in ["div", "table", "tr", "td", "th", "figure", "svg", "p", "ul", "li", "main", "script", "style"]
    {
        let open = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(open, page.matches(&format!("</{tag}>")).count(), "<{tag}>");
    }
    assert!(!page.contains("NaN") && !page.contains("inf "), "a number that is none");
}

#[test]
fn the_plan_page_holds_everything() {
    let page = plan_page(&fixture::report(6));
    show("plan", &page);
    check(&page);
    for part in [
        "llama3-70b on h100x64",
        "TP8 PP2 DP4",
        "Where the time goes",
        "Memory per stage",
        "Pareto",
        "Throughput",
        "1,440",
        "proven",
        "Assumed",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(page.contains("one remark &lt;with&gt; markup &amp; more"));
    assert!(page.matches("<svg").count() >= 5);
    assert!(page.len() < 200_000, "{} bytes", page.len());
}

#[test]
fn a_page_without_plans_says_why() {
    let mut report = fixture::report(0);
    report.infeasible = Some(Infeasible {
        constraints: vec![KilledBy {
            constraint: "memory",
            candidates: 40,
            example: "needs 163.1 GB, has 85.5 GB".to_owned(),
        }],
        nearest: vec![NearestChange {
            change: "16 nodes instead of 8".to_owned(),
            plan: Some(fixture::plan(8, 4, 4)),
        }],
    });
    report.throughput_curve.clear();
    let page = plan_page(&report);
    check(&page);
    for part in ["No feasible plan", "needs 163.1 GB", "16 nodes instead of 8", "TP8 PP4 DP4"] {
        assert!(page.contains(part), "{part}");
    }
}
