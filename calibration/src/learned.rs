//! Models of what a law leaves over, and the comparison that decides which of them a table uses.
//!
//! A random forest over shapes is what Ada-era studies of matrix products use (GPPerf, 16,128 CUTLASS products on an
//! RTX 4070: mean error of the time 15.6 %, median error of the power 5.4 %). Here it competes with interpolation by
//! local planes and with kriging on shapes that none has seen; a calibrated profile uses what wins ([`choice`];
//! [`compare`] and `compare-models` for measured tables of GPUs). Whatever wins is tabled on the profile's residual grid
//! and made monotone there: evaluation, extrapolation and rooflines are the same for all.

pub mod choice;
pub mod compare;
pub mod forest;
pub mod kriging;
pub mod planes;
