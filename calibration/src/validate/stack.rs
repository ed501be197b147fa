//! Which software a row ran: framework text and release text to a stack profile, and the era that decides defaults.

use super::row::Row;
use psim_hardware::profile::StackProfile;
use psim_hardware::profile::stack::AttentionKernel;

/// What a row says about its software.
#[derive(Debug, Clone, PartialEq)]
pub struct StackSelection {
    /// Framework as printed, lower case.
    pub framework: String,
    /// Everything that may name a release: container, release, date, variant, the framework's own version; lower case.
    pub release: String,
    /// Year and month as a number (2024.5).
    pub era: f64,
    /// How the era was found.
    pub era_from: &'static str,
    /// Switches that the row prints and that override the profile.
    pub switches: Switches,
}

/// Printed switches. `None` leaves the profile as it is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Switches {
    /// Attention kernel.
    pub attention: Option<AttentionKernel>,
    /// Expert all-to-all overlapped.
    pub ep_overlap: Option<bool>,
    /// Nothing overlapped (tensor, pipeline and gradient communication).
    pub no_overlap: bool,
    /// Tensor-parallel collectives pipelined with their products.
    pub tp_overlap: Option<bool>,
    /// Fused cross-entropy.
    pub cross_entropy: Option<bool>,
    /// Step replayed from CUDA graphs.
    pub cuda_graphs: Option<bool>,
}

/// The profile that answers to a row.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectedStack {
    /// The profile; neither release deltas nor the row's switches are applied.
    pub profile: StackProfile,
    /// Text that selects a release.
    pub release: String,
    /// Set when no profile answers to the framework.
    pub note: Option<String>,
}

/// Reads framework, release and switches of a row.
pub fn selection(row: &Row) -> StackSelection {
    let config = &row.config;
    let framework = config.framework.to_lowercase();
    let mut release = Vec::new();
    for key in ["container", "release", "date", "variant", "version", "commit"] {
        if let Some(text) = config.extra_text(key) {
            release.push(text.to_lowercase());
        }
    }
    release.push(framework.clone());
    let release = release.join(" | ");
    let (era, era_from) = era(row, &framework, &release);
    let switches = switches(row, era);
    StackSelection { framework, release, era, era_from, switches }
}

/// Finds the profile: longest matching framework text, then nearest era; without a match the nearest era of all.
pub fn choose(profiles: &[StackProfile], selection: &StackSelection) -> Option<SelectedStack> {
    let framework = &selection.framework;
    let mut best: Option<(usize, f64, &StackProfile)> = None;
    for profile in profiles {
        let matched = profile
            .frameworks
            .iter()
            .filter(|f| !f.is_empty() && framework.contains(f.as_str()))
            // What a name begins with says more than what it mentions later: `NeMo 24.07 (Megatron-Core)` is NeMo.
            .map(|f| f.len() + if framework.starts_with(f.as_str()) { 8 } else { 0 })
            .max()
            .unwrap_or(0);
        let distance = (profile.era - selection.era).abs();
        let better = best
            .is_none_or(|(length, era, _)| matched > length || (matched == length && distance + 1e-9 < era));
        if better {
            best = Some((matched, distance, profile));
        }
    }
    let (matched, _, profile) = best?;
    let note = (matched == 0).then(|| {
        format!(
            "no stack profile answers to `{}`; nearest era taken: {}",
            if framework.is_empty() { "(no framework printed)" } else { framework },
            profile.name
        )
    });
    Some(SelectedStack { profile: profile.clone(), release: selection.release.clone(), note })
}

/// Applies printed switches to a profile.
pub fn apply(profile: &mut StackProfile, switches: &Switches) {
    if let Some(kernel) = switches.attention {
        // "flash attention: true" keeps the stack's own fused kernel when it has one.
        let fused = |k: AttentionKernel| k != AttentionKernel::Unfused;
        let keep = kernel == AttentionKernel::Flash2 && fused(profile.attention);
        if !keep {
            profile.attention = kernel;
        }
    }
    if let Some(on) = switches.ep_overlap {
        profile.overlap.ep = on;
    }
    if switches.no_overlap {
        profile.overlap.tp = false;
        profile.overlap.p2p = false;
        profile.overlap.grad_reduce = false;
        profile.overlap.param_gather = false;
    }
    if let Some(on) = switches.tp_overlap {
        profile.overlap.tp = on;
    }
    if let Some(on) = switches.cross_entropy {
        profile.fusion.cross_entropy = on;
    }
    if let Some(on) = switches.cuda_graphs {
        profile.host.cuda_graphs = on;
    }
}

fn switches(row: &Row, era: f64) -> Switches {
    let config = &row.config;
    let attention = config.flash_attention.as_deref().and_then(|text| match text.to_lowercase().as_str() {
        "false" | "none" | "no" | "0" => Some(AttentionKernel::Unfused),
        "fa1" | "1" | "flash1" => Some(AttentionKernel::Flash1),
        "fa3" | "3" | "flash3" => Some(AttentionKernel::Flash3),
        "cudnn" => Some(AttentionKernel::Cudnn),
        "true" | "yes" if era < 2023.4 => Some(AttentionKernel::Flash1),
        "true" | "yes" | "fa2" | "2" | "flash2" => Some(AttentionKernel::Flash2),
        _ => None,
    });
    let overlap = config.overlap.as_deref().unwrap_or("").to_lowercase();
    let expert = overlap.contains("ep ") || overlap.contains("a2a") || overlap.contains("expert");
    let negative = overlap.contains("no ") || overlap.contains("none") || overlap.contains("off");
    Switches {
        attention,
        ep_overlap: expert.then_some(!negative),
        no_overlap: negative && !expert,
        // Packed sequences change their length from batch to batch; the chunked user buffers need one size.
        tp_overlap: (config.framework.to_lowercase().contains("bridge") && super::task::task(row) != "pre")
            .then_some(false),
        cross_entropy: config.extra_flag("cross_entropy_fusion"),
        // Partial graphs ("moe_router+moe_preprocess") remove only part of the launches: left to the profile.
        cuda_graphs: config.extra_flag("cuda_graph"),
    }
}

/// Year and month of the software, from the most telling text.
fn era(row: &Row, framework: &str, release: &str) -> (f64, &'static str) {
    for text in [release, framework] {
        if let Some(era) = dated(text) {
            return (era, "release text");
        }
    }
    if let Some(era) = arxiv(&row.source.to_lowercase()).or_else(|| arxiv(&row.notes.to_lowercase())) {
        return (era, "paper date");
    }
    if let Some(era) = dated(&row.id.to_lowercase()).or_else(|| dated(&row.source.to_lowercase())) {
        return (era, "source text");
    }
    let gpu = row.hardware.gpu.to_uppercase();
    let era = if gpu.starts_with('V') || gpu.starts_with('P') {
        2020.5
    } else if gpu.starts_with("A100") {
        2022.5
    } else if gpu.starts_with('B') || gpu.starts_with("GB") {
        2025.9
    } else if gpu.starts_with("MI3") || gpu.starts_with("H200") || gpu.starts_with("GH") {
        2025.0
    } else {
        2024.5
    };
    (era, "accelerator generation")
}

/// `2022-02-17`, `NeMo 25.09`, `v25.04.02`, `(2021)`.
fn dated(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    let mut index = 0;
    while index < bytes.len() {
        if !bytes[index].is_ascii_digit() {
            index += 1;
            continue;
        }
        let start = index;
        while index < bytes.len() && bytes[index].is_ascii_digit() {
            index += 1;
        }
        let number: f64 = text[start..index].parse().unwrap_or(0.0);
        let month = |separator: u8| -> Option<f64> {
            let rest = text.get(index + 1..index + 3)?;
            let month: f64 = (bytes.get(index) == Some(&separator)).then(|| rest.parse().ok())??;
            (1.0..=12.0).contains(&month).then_some(month)
        };
        let after_letters = start > 0 && bytes[start - 1].is_ascii_alphabetic() && bytes[start - 1] != b'v';
        if index - start == 4 && (2018.0..2031.0).contains(&number) {
            return Some(month(b'-').map_or(number + 0.5, |m| number + (m - 1.0) / 12.0));
        }
        if index - start == 2
            && (18.0..31.0).contains(&number)
            && !after_letters
            && let Some(month) = month(b'.')
        {
            return Some(2000.0 + number + (month - 1.0) / 12.0);
        }
    }
    None
}

/// `arXiv 2401.10241`, `arxiv:2205.05198`.
fn arxiv(text: &str) -> Option<f64> {
    let at = text.find("arxiv")? + 5;
    let digits: String =
        text[at..].chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    if digits.len() != 4 {
        return None;
    }
    let (year, month): (f64, f64) = (digits[..2].parse().ok()?, digits[2..].parse().ok()?);
    ((1.0..=12.0).contains(&month) && year < 40.0).then(|| 2000.0 + year + (month - 1.0) / 12.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::row;

    fn select(json: &str) -> StackSelection {
        selection(&row::read(json).unwrap()[0])
    }

    #[test]
    fn eras() {
        let near = |a: f64, b: f64| (a - b).abs() < 0.01;
        assert!(near(dated("nemo 25.09").unwrap(), 2025.667));
        assert!(near(dated("recipe v25.04.02").unwrap(), 2025.25));
        assert!(near(dated("2022-02-17").unwrap(), 2022.083));
        assert!(near(dated("megatron-lm (2021)").unwrap(), 2021.5));
        assert!(near(arxiv("folding, arxiv 2504.14960").unwrap(), 2025.25));
        assert_eq!(dated("te 2.11 fp8 h100"), None);
        let s = select(r#"{"id":"x-1","config":{"framework":"T"},"hardware":{"gpu":"A100-SXM-80GB"}}"#);
        assert_eq!((s.era, s.era_from), (2022.5, "accelerator generation"));
    }

    #[test]
    fn printed_switches() {
        let s = select(
            r#"{"id":"a","config":{"framework":"M","flash_attention":false,"overlap":"none (all kept off)","extra":{"cross_entropy_fusion":true}}}"#,
        );
        assert_eq!(s.switches.attention, Some(AttentionKernel::Unfused));
        assert!(s.switches.no_overlap && s.switches.ep_overlap.is_none());
        assert_eq!(s.switches.cross_entropy, Some(true));
        assert_eq!(
            select(r#"{"id":"a","config":{"overlap":"EP a2a overlap"}}"#).switches.ep_overlap,
            Some(true)
        );
        assert_eq!(
            select(r#"{"id":"a","config":{"overlap":"no EP overlap"}}"#).switches.ep_overlap,
            Some(false)
        );
    }
}
