//! Layouts of one replica to try.

use super::ServingRequest;
use psim_models::serving::Deployment;

/// Powers of two up to `most`, from 1.
fn powers(most: u32) -> impl Iterator<Item = u32> {
    (0..).map(|i| 1u32 << i).take_while(move |p| *p <= most)
}

/// Layouts to try on `accelerators` in domains of `domain`, those inside a domain first, then by size.
pub(super) fn candidates(request: &ServingRequest<'_>, accelerators: u32, domain: u32) -> Vec<Deployment> {
    let mut out = Vec::new();
    let moe = request.model.is_moe();
    let quantization = request.quantization;
    for tp in powers(domain.min(accelerators).max(1)) {
        for pp in [1u32, 2, 4] {
            for attention_dp in powers(if moe { (domain / tp).max(1) } else { 1 }) {
                let ranks = tp * attention_dp;
                if ranks * pp > accelerators || (pp > 1 && attention_dp > 1) {
                    continue;
                }
                let mut spread: Vec<u32> = if moe { vec![1, ranks] } else { vec![1] };
                spread.dedup();
                for ep in spread {
                    out.push(Deployment { replicas: 1, tp, pp, attention_dp, ep, quantization });
                }
            }
        }
    }
    if moe {
        out.extend(across_nodes(request, accelerators, domain));
    }
    out
}

/// Copies of the attention over several domains with whole experts on each rank. What is left out by symmetry: experts cut
/// over domains (every token's sum would cross them), fewer groups of experts than ranks (the same bytes on every rank,
/// more of them on the wire), attention cut over domains, and pipelines (their stages are domains already).
fn across_nodes(request: &ServingRequest<'_>, accelerators: u32, domain: u32) -> Vec<Deployment> {
    let experts = request.model.moe().map_or(0, |m| m.experts);
    let most = u64::from(accelerators).min(experts) as u32;
    let mut out = Vec::new();
    for domains in powers(most / domain.max(1)).skip(1) {
        let ranks = domain * domains;
        for tp in powers(domain).filter(|tp| domain.is_multiple_of(*tp)) {
            let quantization = request.quantization;
            out.push(Deployment {
                replicas: 1,
                tp,
                pp: 1,
                attention_dp: ranks / tp,
                ep: ranks,
                quantization,
            });
        }
    }
    out
}

/// The layout spans more than one domain of `domain` accelerators and spreads its experts over them.
pub(super) fn spans_domains(layout: &Deployment, domain: u32) -> bool {
    layout.attention_dp > 1 && layout.tp * layout.attention_dp > domain
}

pub(super) fn describe(d: &Deployment) -> String {
    format!("tp {} pp {} attention dp {} ep {}", d.tp, d.pp, d.attention_dp, d.ep)
}
