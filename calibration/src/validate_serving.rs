//! Published serving measurements against simulated ones.
//!
//! A row is mapped to a model, a deployment, an engine profile and traffic ([`mod@map`]), simulated ([`mod@predict`]) and
//! restated in its own metrics. Measured values are read by the scores only.
//!
//! # What stands in for a field that is not printed
//!
//! | field | default |
//! |---|---|
//! | `tp` | GPUs / (pp · attention DP); with attention DP the printed `tp` counts GPUs (InferenceMAX) |
//! | attention copies | TensorRT-LLM 1.0, experts behind at most 4 key/value heads, `ep` not printed: one copy a rank |
//! | engine | profile of the engine's name and release; else the nearest era, said in a note |
//! | release | the profile's `[[release]]` tables where one is printed; else the era's last |
//! | cache format | FP8 where TensorRT-LLM runs FP8 or FP4 matrices, and on Blackwell; else 16 bits |
//! | FP8 scales | blocks of 128 for DeepSeek, Qwen3.5, GLM, MiniMax, and Qwen3 experts outside TensorRT-LLM; per tensor otherwise |
//! | FP4 | MXFP4 experts and 16-bit attention for gpt-oss; NVFP4 otherwise, attention of DeepSeek and Kimi in 16 bits |
//! | lengths | uniform in 0.8 to 1.0 of the nominal ones for InferenceMAX, in 0.9 to 1.1 where the distribution is not stated, else fixed |
//! | closed loop | 10 requests a client, all clients start at once |
//! | offline | 30,000 requests of 128 + 128 tokens, 1,000 of 20,000 and more, else 3,000 |

pub mod accuracy;
pub mod fit;
pub mod groups;
pub mod map;
pub mod predict;
pub mod report;
pub mod rows;

pub use map::{Mapped, map};
pub use predict::{ServingPredictor, predict_row};
pub use rows::predict_rows;
