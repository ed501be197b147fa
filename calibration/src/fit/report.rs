//! FIT.md: what was fitted, to how many points, how well.

use super::Summary;
use std::fmt::Write as _;

/// The whole page.
pub fn page(summaries: &[Summary], notes: &[String]) -> String {
    let mut out = String::from(
        "# Fitted kernel and network tables\n\n\
         Written by `cargo run --release -p psim-calibration --bin fit-profiles -- MEASURED cost-models/data`; do not edit.\n\n\
         Errors are |ln(measured / predicted)| as median / 90th percentile. *In* is the shipped fit on its own points; *held* is a\n\
         second fit that never saw one shape in five (by a hash of n and k for GEMM, of heads and length for attention, of\n\
         the size for the rest), on those shapes; *core* is the part of *held* that training uses (GEMM: m at least 1024, n and k\n\
         at least 512; attention: at least 1024 keys).\n\n\
         The law of each table is documented with its type (`GemmLaw`, `AttentionLaw`, `MemoryTable`, `FabricProfile`). Kernel tables\n\
         are burst rates on short runs; `sustained` in a GEMM table is what long runs keep under the power limit.\n\
         Measured fp8 and nvfp4 GEMMs include the quantisation of the activations; the fit separates it (`cast`: launch and bytes per\n\
         element of A at full memory speed) and the shipped table is the product alone, the cast being an operator of its own\n\
         (class `quantize`). Attention calls of serving engines include rotation and cache write (`preparation`), separated the same way.\n\n\
         Sources: aiconfigurator (TensorRT-LLM, vLLM, NCCL, oneCCL tables), SimuMax (Transformer Engine), flash-attention and DeepGEMM\n\
         figures, Azure AI benchmarking guide, LLMCompass, Vidur, ml-engineering, CoreWeave and AWS nccl-tests logs, NVIDIA GTC slides;\n\
         commits and licences in the measured data's README.\n\n\
         | machine | table | points | in | held | core | law |\n|---|---|---:|---:|---:|---:|---|\n",
    );
    for s in summaries {
        let pair = |a: f64, b: f64| {
            if a == 0.0 && b == 0.0 {
                "-".to_owned()
            } else {
                format!("{:.1} / {:.1} %", 100.0 * a, 100.0 * b)
            }
        };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} |",
            s.machine,
            s.table,
            s.points,
            pair(s.median, s.p90),
            pair(s.held_median, s.held_p90),
            pair(s.core_median, s.core_p90),
            s.law
        );
    }
    out.push_str("\n## Remarks\n\n");
    for note in notes {
        let _ = writeln!(out, "- {note}");
    }
    out
}
