//! Numbers as people write them; as people read them they come from the reports.

pub(crate) use psim_reports::number::{counted, grouped, seconds, short, three};

/// Reads `15T`, `300B`, `4.2M`, `512k`, `1e12`, `4_096`.
pub(crate) fn parse_count(text: &str) -> Result<f64, String> {
    let trimmed = text.trim();
    let wrong = || format!("`{text}` is not a count; write for example 15T, 300B, 4M or 4096");
    let (number, factor) = match trimmed.char_indices().last() {
        Some((at, 'k' | 'K')) => (&trimmed[..at], 1e3),
        Some((at, 'm' | 'M')) => (&trimmed[..at], 1e6),
        Some((at, 'g' | 'G' | 'b' | 'B')) => (&trimmed[..at], 1e9),
        Some((at, 't' | 'T')) => (&trimmed[..at], 1e12),
        _ => (trimmed, 1.0),
    };
    let value: f64 = number.replace('_', "").parse().map_err(|_| wrong())?;
    let value = value * factor;
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err(wrong()) }
}

/// Reads `N` or `A..B`, both at least 1.
pub(crate) fn parse_range(text: &str) -> Result<(u32, u32), String> {
    let wrong = || format!("`{text}` is not a number of sequences; write for example 512 or 512..4096");
    let one = |part: &str| -> Result<u32, String> {
        let n: u32 = part.trim().replace('_', "").parse().map_err(|_| wrong())?;
        if n == 0 { Err(format!("a batch of 0 sequences does nothing; {}", wrong())) } else { Ok(n) }
    };
    match text.split_once("..") {
        None => one(text).map(|n| (n, n)),
        Some((low, high)) => {
            let (low, high) = (one(low)?, one(high.trim_start_matches('='))?);
            if low <= high {
                Ok((low, high))
            } else {
                Err(format!("`{text}` is empty: {low} is more than {high}"))
            }
        }
    }
}

/// Reads `30d`, `720h`, `4w` into days.
pub(crate) fn parse_days(text: &str) -> Result<f64, String> {
    let trimmed = text.trim();
    let wrong = || format!("`{text}` is not a time; write for example 30d, 720h or 6w");
    let (number, factor) = match trimmed.char_indices().last() {
        Some((at, 'd')) => (&trimmed[..at], 1.0),
        Some((at, 'h')) => (&trimmed[..at], 1.0 / 24.0),
        Some((at, 'w')) => (&trimmed[..at], 7.0),
        _ => return Err(wrong()),
    };
    let days = number.parse::<f64>().map_err(|_| wrong())? * factor;
    if days.is_finite() && days > 0.0 { Ok(days) } else { Err(wrong()) }
}

/// Reads `5M$`, `$5M`, `750000` into US dollars.
pub(crate) fn parse_dollars(text: &str) -> Result<f64, String> {
    parse_count(text.trim().trim_start_matches('$').trim_end_matches('$'))
        .map_err(|_| format!("`{text}` is not an amount; write for example 5M$ or 750000"))
}

/// Days, weeks told apart from years.
pub(crate) fn days(value: f64) -> String {
    if value >= 730.0 { format!("{} years", three(value / 365.25)) } else { format!("{} days", three(value)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_ranges() {
        assert_eq!(parse_count("15T"), Ok(15e12));
        assert_eq!(parse_count("4_096"), Ok(4096.0));
        assert_eq!(parse_count("1e12"), Ok(1e12));
        for bad in ["", "T", "nan", "inf", "-1", "0", "15Q", "1e999"] {
            assert!(parse_count(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_range("512"), Ok((512, 512)));
        assert_eq!(parse_range("512..4096"), Ok((512, 4096)));
        for bad in ["", "0", "..", "5..", "9..3", "1.5", "-4", "99999999999"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_days("48h"), Ok(2.0));
        assert!(parse_days("30").is_err());
        assert_eq!(parse_dollars("5M$"), Ok(5e6));
        assert_eq!(parse_dollars("$5M"), Ok(5e6));
    }
}
