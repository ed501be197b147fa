//! The frame of every page: style, theme switch, sorting of tables. Nothing is loaded from anywhere.

use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The footer of pages whose times are given with an interval.
pub(super) const INTERVALS: &str = "Times carry an 80 % interval from the errors of the profiles.";
/// The footer of pages of requests.
pub(super) const NO_INTERVALS: &str = "Latencies and rates are single values without an interval; docs/accuracy-serving.md has their usual errors.";

/// A whole page; `footer` says how sure its numbers are.
pub(super) fn page(title: &str, body: &Markup, footer: &str) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main { (body) }
                footer { "Written by psim. " (footer) " Prices are assumptions unless the cluster file gives them." }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
    .into_string()
}

/// A chart with a caption; nothing when there is nothing to draw.
pub(super) fn figure(svg: String, caption: &str) -> Markup {
    html! {
        @if !svg.is_empty() {
            figure { (PreEscaped(svg)) figcaption { (caption) } }
        }
    }
}

/// A table whose columns sort on a click. Numbers sort by the cell's `data-value`.
pub(super) fn table(columns: &[(&str, bool)], rows: &[Vec<Cell>]) -> Markup {
    html! {
        div.scroll {
            table.sortable {
                thead { tr { @for (title, number) in columns { th class=[number.then_some("number")] { (title) } } } }
                tbody {
                    @for row in rows {
                        tr {
                            @for cell in row {
                                td class=[cell.value.is_some().then_some("number")] data-value=[cell.value.map(|v| v.to_string())] {
                                    (cell.text)
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A cell: text, and for numbers the value to sort by.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) value: Option<f64>,
}

/// A cell of words.
pub(super) fn words(text: impl Into<String>) -> Cell {
    Cell { text: text.into(), value: None }
}

/// A cell of a number.
pub(super) fn number(value: f64, text: impl Into<String>) -> Cell {
    Cell { text: text.into(), value: Some(value) }
}
