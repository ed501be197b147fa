//! Physical quantities as distinct types, written the way people write them (`80GiB`, `400Gb/s`, `5us`).
//!
//! `Bytes / BytesPerSec` is a [`Seconds`]; adding bytes to seconds does not compile:
//! ```compile_fail
//! use psim_hardware::{Bytes, Seconds};
//! let _ = Bytes(1) + Seconds(1.0);
//! ```

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

/// Why a quantity could not be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnitError {
    /// The number itself is malformed, not finite or negative.
    #[error("`{text}` does not start with a finite, non-negative number; write for example `{example}`")]
    Number {
        /// What was written.
        text: String,
        /// A correct example.
        example: &'static str,
    },
    /// The unit is missing or unknown.
    #[error("`{text}` has unit `{unit}`, expected one of {expected}; write for example `{example}`")]
    Unit {
        /// What was written.
        text: String,
        /// The unit found (may be empty).
        unit: String,
        /// The units understood.
        expected: &'static str,
        /// A correct example.
        example: &'static str,
    },
}

/// Splits `"3.35 TB/s"` into number and unit and scales by the unit's factor.
fn parse(
    text: &str,
    units: &[(&str, f64)],
    expected: &'static str,
    example: &'static str,
) -> Result<f64, UnitError> {
    let trimmed = text.trim();
    let split = trimmed
        .char_indices()
        .find(|&(i, c)| {
            let exponent = (c == 'e' || c == 'E')
                && i > 0
                && trimmed[i + 1..].starts_with(|d: char| d.is_ascii_digit() || d == '-' || d == '+');
            !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | '_') || exponent)
        })
        .map_or(trimmed.len(), |(i, _)| i);
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim();
    let value: f64 =
        number.replace('_', "").parse().map_err(|_| UnitError::Number { text: text.to_owned(), example })?;
    if !value.is_finite() || value < 0.0 {
        return Err(UnitError::Number { text: text.to_owned(), example });
    }
    units
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| value * factor)
        .ok_or_else(|| UnitError::Unit { text: text.to_owned(), unit: unit.to_owned(), expected, example })
}

const BYTE_UNITS: &[(&str, f64)] = &[
    ("B", 1.0),
    ("KB", 1e3),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("PB", 1e15),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("PiB", 1_125_899_906_842_624.0),
];
const RATE_UNITS: &[(&str, f64)] = &[
    ("B/s", 1.0),
    ("KB/s", 1e3),
    ("MB/s", 1e6),
    ("GB/s", 1e9),
    ("TB/s", 1e12),
    ("KiB/s", 1024.0),
    ("MiB/s", 1_048_576.0),
    ("GiB/s", 1_073_741_824.0),
    ("TiB/s", 1_099_511_627_776.0),
    ("b/s", 0.125),
    ("Kb/s", 125.0),
    ("Mb/s", 125e3),
    ("Gb/s", 125e6),
    ("Tb/s", 125e9),
    ("Gbps", 125e6),
];
const FLOP_UNITS: &[(&str, f64)] = &[
    ("FLOP/s", 1.0),
    ("GFLOP/s", 1e9),
    ("TFLOP/s", 1e12),
    ("PFLOP/s", 1e15),
    ("GFLOPS", 1e9),
    ("TFLOPS", 1e12),
    ("PFLOPS", 1e15),
    ("TOP/s", 1e12),
    ("TOPS", 1e12),
];
const SECOND_UNITS: &[(&str, f64)] = &[
    ("ps", 1e-12),
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("min", 60.0),
    ("h", 3600.0),
    ("d", 86_400.0),
];
const WATT_UNITS: &[(&str, f64)] = &[("W", 1.0), ("kW", 1e3), ("MW", 1e6)];

/// Prints `value` with the largest unit that leaves at least 1 before the point.
fn human(f: &mut fmt::Formatter<'_>, value: f64, units: &[(&str, f64)]) -> fmt::Result {
    let (name, factor) = units
        .iter()
        .rev()
        .find(|(_, factor)| value >= *factor)
        .or_else(|| units.first())
        .copied()
        .unwrap_or(("", 1.0));
    let scaled = value / factor;
    if (scaled - scaled.round()).abs() < 1e-9 {
        write!(f, "{scaled:.0}{name}")
    } else if scaled >= 100.0 {
        write!(f, "{scaled:.1}{name}")
    } else {
        write!(f, "{scaled:.2}{name}")
    }
}

/// The shortest text that parses back to exactly `value`.
fn exact(value: f64, units: &[(&str, f64)]) -> String {
    let mut best: Option<String> = None;
    for (name, factor) in units {
        let text = format!("{}{name}", value / factor);
        let same = parse(&text, units, "", "") == Ok(value);
        if same && best.as_ref().is_none_or(|b| text.len() < b.len()) {
            best = Some(text);
        }
    }
    // The base unit has factor 1 and always reads back.
    best.unwrap_or_else(|| format!("{value}{}", units.iter().find(|u| u.1 == 1.0).map_or("", |u| u.0)))
}

/// Declares a float quantity with parsing, printing, arithmetic and a string `serde` form.
macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $units:expr, $shown:expr, $expected:expr, $example:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
        pub struct $name(pub f64);
        impl $name {
            /// Zero.
            pub const ZERO: Self = Self(0.0);
            /// The larger of two quantities.
            pub fn max(self, other: Self) -> Self { Self(self.0.max(other.0)) }
            /// The smaller of two quantities.
            pub fn min(self, other: Self) -> Self { Self(self.0.min(other.0)) }
        }
        impl std::str::FromStr for $name {
            type Err = UnitError;
            fn from_str(text: &str) -> Result<Self, UnitError> { parse(text, $units, $expected, $example).map(Self) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { human(f, self.0, $shown) }
        }
        impl Add for $name { type Output = Self; fn add(self, o: Self) -> Self { Self(self.0 + o.0) } }
        impl Sub for $name { type Output = Self; fn sub(self, o: Self) -> Self { Self(self.0 - o.0) } }
        impl AddAssign for $name { fn add_assign(&mut self, o: Self) { self.0 += o.0; } }
        impl Mul<f64> for $name { type Output = Self; fn mul(self, o: f64) -> Self { Self(self.0 * o) } }
        impl Div<f64> for $name { type Output = Self; fn div(self, o: f64) -> Self { Self(self.0 / o) } }
        impl Div for $name { type Output = f64; fn div(self, o: Self) -> f64 { self.0 / o.0 } }
        impl Sum for $name { fn sum<I: Iterator<Item = Self>>(i: I) -> Self { Self(i.map(|x| x.0).sum()) } }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_str(&exact(self.0, $units)) }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

quantity!(/// Bytes per second, one direction.
    BytesPerSec, RATE_UNITS, &[("B/s", 1.0), ("KB/s", 1e3), ("MB/s", 1e6), ("GB/s", 1e9), ("TB/s", 1e12)],
    "B/s, KB/s, MB/s, GB/s, TB/s, KiB/s … TiB/s, b/s, Kb/s, Mb/s, Gb/s, Tb/s", "400Gb/s");
quantity!(/// Floating-point (or integer) operations per second.
    FlopPerSec, FLOP_UNITS, &[("FLOP/s", 1.0), ("GFLOP/s", 1e9), ("TFLOP/s", 1e12), ("PFLOP/s", 1e15)],
    "FLOP/s, GFLOP/s, TFLOP/s, PFLOP/s, TOP/s", "989TFLOP/s");
quantity!(/// A count of floating-point operations.
    Flops, &[("FLOP", 1.0), ("GFLOP", 1e9), ("TFLOP", 1e12), ("PFLOP", 1e15)],
    &[("FLOP", 1.0), ("GFLOP", 1e9), ("TFLOP", 1e12), ("PFLOP", 1e15)], "FLOP, GFLOP, TFLOP, PFLOP", "1TFLOP");
quantity!(/// A duration in seconds, as cost models compute it; the event engine uses [`Time`].
    Seconds, SECOND_UNITS, &[("ps", 1e-12), ("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0)],
    "ps, ns, us, ms, s, min, h, d", "5us");
quantity!(/// Electrical power.
    Watts, WATT_UNITS, WATT_UNITS, "W, kW, MW", "700W");

/// A number of bytes; decimal (`GB`) and binary (`GiB`) units are both understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Zero bytes.
    pub const ZERO: Self = Self(0);
    /// As a float, for rates.
    pub fn as_f64(self) -> f64 {
        self.0 as f64
    }
    /// In 2^30 bytes.
    pub fn gib(self) -> f64 {
        self.0 as f64 / 1_073_741_824.0
    }
    /// From a float count, rounded up; negative and NaN become zero.
    pub fn from_f64(value: f64) -> Self {
        Self(value.ceil().max(0.0) as u64)
    }
    /// Difference, never below zero.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}
impl std::str::FromStr for Bytes {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, BYTE_UNITS, "B, KB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB", "80GiB")
            .map(|v| Self(v.round() as u64))
    }
}
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = [
            ("B", 1.0),
            ("KiB", 1024.0),
            ("MiB", 1_048_576.0),
            ("GiB", 1_073_741_824.0),
            ("TiB", 1_099_511_627_776.0),
        ];
        human(f, self.0 as f64, &shown)
    }
}
impl Add for Bytes {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self(self.0.saturating_add(o.0))
    }
}
impl AddAssign for Bytes {
    fn add_assign(&mut self, o: Self) {
        *self = *self + o;
    }
}
impl Mul<u64> for Bytes {
    type Output = Self;
    fn mul(self, o: u64) -> Self {
        Self(self.0.saturating_mul(o))
    }
}
impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(i: I) -> Self {
        i.fold(Self(0), Add::add)
    }
}
impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let unit =
            BYTE_UNITS.iter().rev().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor as u64));
        let (name, factor) = unit.copied().unwrap_or(("B", 1.0));
        s.collect_str(&format_args!("{}{name}", self.0 / factor as u64))
    }
}
impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
impl Div<BytesPerSec> for Bytes {
    type Output = Seconds;
    fn div(self, rate: BytesPerSec) -> Seconds {
        Seconds(self.0 as f64 / rate.0)
    }
}
impl Div<FlopPerSec> for Flops {
    type Output = Seconds;
    fn div(self, rate: FlopPerSec) -> Seconds {
        Seconds(self.0 / rate.0)
    }
}

/// Simulated time in integer picoseconds: exact, ordered, the same on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Time(pub u64);

impl Time {
    /// The start of a simulation.
    pub const ZERO: Self = Self(0);
    /// In seconds.
    pub fn seconds(self) -> Seconds {
        Seconds(self.0 as f64 * 1e-12)
    }
}
impl From<Seconds> for Time {
    /// Rounds to the nearest picosecond; negative and NaN become zero, infinity the largest time (213 days).
    fn from(s: Seconds) -> Self {
        Self((s.0 * 1e12).round().max(0.0) as u64)
    }
}
impl Add for Time {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self(self.0.saturating_add(o.0))
    }
}
impl AddAssign for Time {
    fn add_assign(&mut self, o: Self) {
        *self = *self + o;
    }
}
impl Sub for Time {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        Self(self.0.saturating_sub(o.0))
    }
}
impl Mul<u64> for Time {
    type Output = Self;
    fn mul(self, o: u64) -> Self {
        Self(self.0.saturating_mul(o))
    }
}
impl Sum for Time {
    fn sum<I: Iterator<Item = Self>>(i: I) -> Self {
        i.fold(Self(0), Add::add)
    }
}
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.seconds().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_units_their_way() {
        assert_eq!("80GiB".parse::<Bytes>().unwrap(), Bytes(80 << 30));
        assert_eq!("1.5 TB".parse::<Bytes>().unwrap(), Bytes(1_500_000_000_000));
        assert_eq!("400Gb/s".parse::<BytesPerSec>().unwrap(), BytesPerSec(50e9));
        assert_eq!("3.35TB/s".parse::<BytesPerSec>().unwrap(), BytesPerSec(3.35e12));
        assert_eq!("5us".parse::<Seconds>().unwrap(), Seconds(5.0 * 1e-6));
        assert_eq!("1e3 GB/s".parse::<BytesPerSec>().unwrap(), BytesPerSec(1e12));
    }

    #[test]
    fn wrong_units_name_what_is_expected() {
        let error = "80".parse::<Bytes>().unwrap_err().to_string();
        assert!(error.contains("GiB"), "{error}");
        assert!("nan GB".parse::<Bytes>().is_err());
        assert!("-1GB".parse::<Bytes>().is_err());
        assert!("80GB/s".parse::<Bytes>().is_err());
        assert!("".parse::<Bytes>().is_err());
    }

    #[test]
    fn quantities_print_as_they_parse() {
        assert_eq!(Bytes(80 << 30).to_string(), "80GiB");
        assert_eq!(BytesPerSec(50e9).to_string(), "50GB/s");
        assert_eq!(Seconds(5e-6).to_string(), "5us");
    }

    proptest::proptest! {
        #[test]
        fn serialised_quantities_parse_back_exactly(mantissa in 0.0..10.0_f64, exponent in -12..15_i32, n in 0..1_u64 << 53) {
            let value = mantissa * 10.0_f64.powi(exponent);
            let text = toml::Value::try_from(BytesPerSec(value)).unwrap();
            proptest::prop_assert_eq!(text.as_str().unwrap().parse(), Ok(BytesPerSec(value)));
            let text = toml::Value::try_from(Seconds(value)).unwrap();
            proptest::prop_assert_eq!(text.as_str().unwrap().parse(), Ok(Seconds(value)));
            let text = toml::Value::try_from(Bytes(n)).unwrap();
            proptest::prop_assert_eq!(text.as_str().unwrap().parse(), Ok(Bytes(n)));
        }

        #[test]
        fn printed_quantities_parse_back_closely(mantissa in 1.0..10.0_f64, exponent in -11..14_i32, n in 1..1_u64 << 50) {
            let value = mantissa * 10.0_f64.powi(exponent);
            let close = |a: f64, b: f64| (a - b).abs() <= 0.0051 * b;
            proptest::prop_assert!(close(Seconds(value).to_string().parse::<Seconds>().unwrap().0, value));
            proptest::prop_assert!(close(Bytes(n).to_string().parse::<Bytes>().unwrap().as_f64(), n as f64));
            if value >= 1.0 {
                proptest::prop_assert!(close(Watts(value).to_string().parse::<Watts>().unwrap().0, value));
                proptest::prop_assert!(close(FlopPerSec(value).to_string().parse::<FlopPerSec>().unwrap().0, value));
                proptest::prop_assert!(close(BytesPerSec(value).to_string().parse::<BytesPerSec>().unwrap().0, value));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<Seconds>();
        }
    }

    #[test]
    fn bytes_over_rate_is_a_time() {
        assert_eq!(Bytes(100) / BytesPerSec(50.0), Seconds(2.0));
        assert_eq!(Time::from(Seconds(1.0)), Time(1_000_000_000_000));
    }
}
