//! Numbers as people write and read them.

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

/// `1,234,567`.
pub(crate) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `70.6B`, `4.19M`, `512`.
pub(crate) fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e15 => (value / 1e15, "P"),
        v if v >= 1e12 => (value / 1e12, "T"),
        v if v >= 1e9 => (value / 1e9, "B"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    format!("{}{unit}", three(scaled))
}

/// Three significant digits, no exponent, no needless zeros after the point of whole numbers.
pub(crate) fn three(value: f64) -> String {
    let magnitude = value.abs();
    let whole = (value - value.round()).abs() < 1e-9 * magnitude.max(1.0);
    let decimals = match magnitude {
        _ if whole => 0,
        m if m >= 100.0 => 0,
        m if m >= 10.0 => 1,
        m if m >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// Seconds in the unit that suits them: `4.52 s`, `31.0 ms`.
pub(crate) fn seconds(value: f64) -> String {
    match value {
        v if v >= 1.0 => format!("{} s", three(v)),
        v if v >= 1e-3 => format!("{} ms", three(v * 1e3)),
        v => format!("{} us", three(v * 1e6)),
    }
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

    #[test]
    fn printing() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
        assert_eq!(short(70.56e9), "70.6B");
        assert_eq!(short(512.0), "512");
        assert_eq!(three(4.519), "4.52");
        assert_eq!(seconds(0.031), "31 ms");
    }
}
