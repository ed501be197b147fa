//! Which measured machine stands in for one without measurements: same vendor, nearest generation.

use psim_hardware::Accelerator;

/// Generations by name fragment, with measured machines to try, nearest first.
const FAMILIES: [(&str, &[&str]); 19] = [
    ("A100-PCIe", &["A100-SXM-80GB"]),
    ("A100", &["A100-SXM-80GB", "A100-PCIe-80GB"]),
    ("A800", &["A100-SXM-80GB"]),
    ("A40", &["A100-SXM-80GB"]),
    ("A30", &["A100-SXM-80GB"]),
    ("A10", &["A40", "A100-SXM-80GB"]),
    ("H100", &["H100-SXM-80GB"]),
    ("H800", &["H100-SXM-80GB"]),
    ("H200", &["H200-SXM-141GB", "H100-SXM-80GB"]),
    ("H20", &["H200-SXM-141GB", "H100-SXM-80GB"]),
    ("GH200", &["H200-SXM-141GB", "H100-SXM-80GB"]),
    ("B200", &["B200-SXM"]),
    ("B300", &["B300-SXM", "B200-SXM"]),
    ("GB200", &["GB200", "B200-SXM"]),
    ("GB300", &["GB300", "GB200"]),
    ("L4", &["L40S"]),
    ("RTX-4090", &["L40S"]),
    ("V100", &["A100-SXM-80GB"]),
    ("MI", &["MI210", "MI300X"]),
];

/// Names of measured relatives, nearest first.
pub fn of(accelerator: &Accelerator) -> impl Iterator<Item = &'static str> {
    FAMILIES
        .iter()
        .filter(|(family, _)| accelerator.name.starts_with(family))
        .max_by_key(|(family, _)| family.len())
        .map_or(&[][..], |(_, relatives)| relatives)
        .iter()
        .copied()
}
