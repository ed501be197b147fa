//! Published measurements against predictions: `psim validate`.
//!
//! A row ([`row`]) is mapped to simulator inputs ([`map`]), predicted ([`predict`]), restated in its own metric and
//! convention ([`convention`]) and scored ([`score`], [`ranking`], [`report`]). Measured values and outcomes are read
//! by the scores only, so a row with blanked measurements is predicted just the same.
//!
//! # What stands in for a field that is not printed
//!
//! | field | default |
//! |---|---|
//! | `model.*` | the preset of the same name (text in brackets dropped), layers cut to the printed number |
//! | `model.heads` | heads of width 128, else 150, 160, 96, 64, 80, whichever divides the width |
//! | `model.ffn_hidden` | 4 x hidden, 8/3 x hidden for gated networks |
//! | `model.vocab` | 51,200 (Megatron's GPT corpus) |
//! | `model.tied_embeddings` | tied for GPT, BLOOM and MPT names, else not |
//! | `hardware.gpus_per_node`, `intra`, `inter` | the accelerator's usual node; a link rate without a unit count is per accelerator, or the node's where the text says so |
//! | `tp, pp, cp, ep, vpp` | 1; `vpp` from `layers_per_virtual_stage`; 2 for "interleaved" alone |
//! | `dp` | gpus / (tp pp cp), also where another number is printed |
//! | `etp` | tp for Megatron mixtures before parallel folding, else 1 |
//! | `micro_batch` | global batch / dp / micro-batch count where that is printed, else 1 (said in a note) |
//! | `global_batch_seqs` | micro-batch count x dp x micro batch, else 8 micro-batches per stage |
//! | layers per stage | even; embedding and output layer count as a layer each where only that divides; `pp_partition` and `layer_redistribution` as printed |
//! | `precision` | fp16 before mid-2022 and on V100, else bf16; a label refines the fp8 recipe |
//! | `zero`, `fsdp` | FSDP frameworks: everything sharded; DeepSpeed and Megatron from 2023: the optimizer; earlier Megatron: nothing |
//! | `recompute` | full for Megatron before 2022.3, DeepSpeed and FSDP scripts; half of the layers for MaxText; else none. Module lists without the attention core cost no time |
//! | `sequence_parallel` | on for Megatron from 2022.3 with tp > 1 |
//! | `schedule` | 1F1B, interleaved with chunks |
//! | packed length | 200 tokens for fine-tuning in Megatron frameworks (packed SQuAD) |
//! | expert load | balanced where forced or dropping tokens, else the busiest rank 1.03 x the mean |
//! | software | the profile whose framework text matches longest, then the nearest era (release text, paper date, accelerator generation) |

pub mod ablations;
pub mod accuracy;
pub mod cluster;
pub mod contradictions;
pub mod convention;
pub mod facts;
pub mod left_out;
pub mod map;
pub mod model;
pub mod percentile;
pub mod plan;
pub mod predict;
pub mod ranking;
pub mod refit;
pub mod report;
pub mod row;
pub mod score;
pub mod stack;
pub mod task;

pub use map::{Mapped, Reason};
pub use predict::Predictor;
pub use report::Report;
pub use row::{Row, RowsError};

use rayon::prelude::*;

/// Reads rows, predicts and scores them.
///
/// # Errors
/// A line that is not a JSON object with an `id`; an empty text.
pub fn run(text: &str, predictor: &Predictor) -> Result<Report, RowsError> {
    let rows = row::read(text)?;
    Ok(run_rows(&rows, predictor))
}

/// Predicts and scores rows that are read already. The order of results is that of the rows, with any thread count.
pub fn run_rows(rows: &[Row], predictor: &Predictor) -> Report {
    Report::new(rows.par_iter().map(|row| predictor.row(row)).collect())
}
