//! Numbers that depend on a key and a position only, so that any part of a tensor can be made without the rest, on any
//! device, bit for bit.

/// SplitMix64 (Steele et al. 2014).
pub fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform in [-1, 1), in steps of 2⁻²³: exact in fp32.
pub fn uniform(key: u64, position: u64) -> f32 {
    let bits = mix(key ^ mix(position)) >> 40;
    bits as f32 / (1_u64 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    #[test]
    fn mean_and_variance_are_those_of_the_uniform_distribution() {
        let values: Vec<f64> = (0..100_000).map(|i| f64::from(super::uniform(7, i))).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0 / 3.0).abs() < 0.01, "{mean} {variance}");
    }
}
