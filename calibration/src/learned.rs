//! Learned alternatives to the fitted laws, and the comparison that decides which of them is used.
//!
//! A random forest over shapes is what Ada-era studies of matrix products use (GPPerf, 16,128 CUTLASS products on an
//! RTX 4070: mean error of the time 15.6 %, median error of the power 5.4 %). Here it competes with law and
//! interpolation on shapes that neither has seen; a profile uses what wins ([`compare`], `compare-models`).

pub mod compare;
pub mod forest;
