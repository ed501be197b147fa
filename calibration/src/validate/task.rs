//! What a published row trains for.

use super::row::Row;

/// What kind of training a row is: `pre`, `sft` or `lora`.
pub fn task(row: &Row) -> &'static str {
    let text = row.config.extra_text("task").unwrap_or_default().to_lowercase();
    if text.contains("lora") || text.contains("peft") {
        "lora"
    } else if text.contains("sft") || text.contains("fine") {
        "sft"
    } else {
        "pre"
    }
}
