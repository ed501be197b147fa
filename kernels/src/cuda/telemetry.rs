//! Clocks, power and throttle reasons from NVML, beside every measurement.

use crate::micro::Telemetry;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use std::sync::OnceLock;

/// What NVML says of a device; `None` without the library, or when it refuses.
///
/// CUDA and NVML may number several cards differently; with one card both say 0.
pub(super) fn read(index: u32) -> Option<Telemetry> {
    static LIBRARY: OnceLock<Option<Nvml>> = OnceLock::new();
    let nvml = LIBRARY.get_or_init(|| Nvml::init().ok()).as_ref()?;
    let device = nvml.device_by_index(index).ok()?;
    let mut reasons = device.current_throttle_reasons().unwrap_or(ThrottleReasons::empty());
    reasons.remove(ThrottleReasons::GPU_IDLE);
    let watts =
        |milliwatts: Result<u32, nvml_wrapper::error::NvmlError>| f64::from(milliwatts.unwrap_or(0)) * 1e-3;
    Some(Telemetry {
        driver: nvml.sys_driver_version().unwrap_or_default(),
        sm_mhz: device.clock_info(Clock::SM).ok()?,
        memory_mhz: device.clock_info(Clock::Memory).ok()?,
        power_w: watts(device.power_usage()),
        power_limit_w: watts(device.enforced_power_limit()),
        celsius: device.temperature(TemperatureSensor::Gpu).unwrap_or(0),
        throttled: reasons.iter_names().map(|(name, _)| name.to_owned()).collect(),
    })
}

#[cfg(test)]
mod tests {
    /// Without a card there is no telemetry, and no panic.
    #[test]
    fn a_card_that_is_not_there_says_nothing() {
        assert_eq!(super::read(4_000), None);
    }
}
