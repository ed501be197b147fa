//! Python writes `Infinity` and `NaN` into JSON; JSON has neither.

use std::borrow::Cow;

/// The text with the bare words `Infinity`, `-Infinity` and `NaN` (outside strings) replaced by `null`, length kept so
/// that line and column numbers stay true.
pub(super) fn python_constants(text: &str) -> Cow<'_, str> {
    if !text.contains("Infinity") && !text.contains("NaN") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        if in_string {
            if c == '\\' {
                let escaped = rest.chars().nth(1).map_or(1, |next| 1 + next.len_utf8());
                out.push_str(&rest[..escaped]);
                rest = &rest[escaped..];
                continue;
            }
            in_string = c != '"';
        } else {
            let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word));
            if let Some(word) = word {
                // "NaN" is shorter than "null": the line stays, the column moves by one.
                out.push_str("null");
                out.extend(std::iter::repeat_n(' ', word.len().saturating_sub(4)));
                rest = &rest[word.len()..];
                continue;
            }
            in_string = c == '"';
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::python_constants;

    #[test]
    fn only_bare_words_are_replaced() {
        let text = r#"{"a": Infinity, "b": [-Infinity, NaN], "NaN \" Infinity": "Infinity\\"}"#;
        let clean = python_constants(text);
        let value: serde_json::Value = serde_json::from_str(&clean).unwrap();
        assert!(value["a"].is_null() && value["b"][1].is_null());
        assert_eq!(value["NaN \" Infinity"], "Infinity\\");
    }
}
