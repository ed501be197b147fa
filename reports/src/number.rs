//! Numbers as people read them.

/// `1,234,567`.
pub fn grouped(value: u64) -> String {
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
pub fn short(value: f64) -> String {
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
pub fn three(value: f64) -> String {
    // A sum of nothing is minus zero.
    let value = value + 0.0;
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

/// `1 GPU`, `2 GPUs`.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(number), if number == 1 { one } else { many })
}

/// Seconds in the unit that suits them: `4.52 s`, `31.0 ms`.
pub fn seconds(value: f64) -> String {
    match value {
        v if v >= 1.0 => format!("{} s", three(v)),
        v if v >= 1e-3 => format!("{} ms", three(v * 1e3)),
        v => format!("{} us", three(v * 1e6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing() {
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
        assert_eq!(short(70.56e9), "70.6B");
        assert_eq!(short(512.0), "512");
        assert_eq!(three(4.519), "4.52");
        assert_eq!(three(-0.0), "0");
        assert_eq!(counted(1, "GPU", "GPUs"), "1 GPU");
        assert_eq!(counted(1024, "GPU", "GPUs"), "1,024 GPUs");
        assert_eq!(seconds(0.031), "31 ms");
    }
}
