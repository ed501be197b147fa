//! The CUDA sources and how they are put together for one format and head width.

use super::runtime::Format;

/// Instructions that C++ cannot say.
pub const PTX: &str = include_str!("../../cuda/ptx.cu");
const OPERATORS: &str = include_str!("../../cuda/operators.cu");
const MICRO: &str = include_str!("../../cuda/micro.cu");
const ATTENTION: &str = include_str!("../../cuda/attention.cu");
const FLASH: &str = include_str!("../../cuda/flash.cu");
const PAGED: &str = include_str!("../../cuda/paged.cu");

/// The source of one module: `instructions` ([`PTX`], or an emulation of it) and every kernel of this format and head
/// width (0: everything but attention).
pub fn module(instructions: &str, format: Format, dim: usize) -> String {
    let mut source = String::new();
    match format {
        Format::Bf16 => source.push_str("#define BF16 1\n"),
        Format::Fp16 => source.push_str("#define FP16 1\n"),
        Format::Fp32 | Format::Fp8 => {}
    }
    if dim > 0 {
        source.push_str(&format!("#define DIM {dim}\n"));
    }
    source.push_str(instructions);
    source.push_str(OPERATORS);
    if dim == 0 {
        source.push_str(MICRO);
    }
    if dim > 0 {
        source.push_str(ATTENTION);
        source.push_str(PAGED);
        if format != Format::Fp32 {
            source.push_str(FLASH);
        }
    }
    source
}

/// Kernels that a module holds, by name.
pub fn kernels(source: &str) -> Vec<&str> {
    source
        .split("__global__ void ")
        .skip(1)
        .filter_map(|part| {
            let part = match part.strip_prefix("__launch_bounds__(") {
                Some(rest) => rest.split_once(") ")?.1,
                None => part,
            };
            part.split('(').next()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel that the host launches exists in the sources.
    #[test]
    fn launched_kernels_exist() {
        let sources = module(PTX, Format::Bf16, 0) + &module(PTX, Format::Bf16, 64);
        let known = kernels(&sources);
        let host =
            concat!(include_str!("operators.rs"), include_str!("attention.rs"), include_str!("micro.rs"));
        let names: Vec<&str> =
            host.split("kernel!(\"").skip(1).filter_map(|part| part.split('"').next()).collect();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert!(known.contains(&name), "{name} is not among {known:?}");
        }
    }
}
