//! How a call of the driver or a library failed.

use crate::device::DeviceError;
use std::fmt::Display;

/// How a call failed.
pub(super) fn failed<E: Display>(call: &'static str) -> impl FnOnce(E) -> DeviceError {
    move |error| DeviceError::Driver { call, message: error.to_string() }
}
