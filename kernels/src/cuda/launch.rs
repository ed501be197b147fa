//! Compilation and launch of this crate's kernels.

use crate::device::{DeviceError, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

const OPERATORS: &str = include_str!("../../cuda/operators.cu");
const ATTENTION: &str = include_str!("../../cuda/attention.cu");

/// An argument of a kernel: the sources take 64-bit integers, floats and pointers only.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arg {
    Pointer(u64),
    Int(i64),
    Float(f32),
}

/// How a call failed.
pub(super) fn failed<E: Display>(call: &'static str) -> impl FnOnce(E) -> DeviceError {
    move |error| DeviceError::Driver { call, message: error.to_string() }
}

/// Functions by format, head width (0: not an attention kernel) and name, compiled when first used.
pub(super) struct Kernels {
    context: Arc<CudaContext>,
    architecture: &'static str,
    functions: Mutex<BTreeMap<(bool, usize, &'static str), CudaFunction>>,
    modules: Mutex<BTreeMap<(bool, usize), Arc<cudarc::driver::CudaModule>>>,
}

impl Kernels {
    pub(super) fn new(context: Arc<CudaContext>) -> Result<Self> {
        let (major, minor) = context.compute_capability().map_err(failed("compute capability"))?;
        let architecture = match (major, minor) {
            (8, 0) => "compute_80",
            (8, 6) => "compute_86",
            (8, 9) => "compute_89",
            (9, _) => "compute_90",
            (10, _) => "compute_100",
            (12, _) => "compute_120",
            _ if major > 12 => "compute_90",
            _ => {
                return Err(DeviceError::Unavailable(format!(
                    "this device has compute capability {major}.{minor}; the kernels need 8.0 (bfloat16)"
                )));
            }
        };
        Ok(Self { context, architecture, functions: Mutex::default(), modules: Mutex::default() })
    }

    /// The source of one module.
    fn source(bf16: bool, dim: usize) -> String {
        let mut source = String::new();
        if bf16 {
            source.push_str("#define BF16 1\n");
        }
        if dim > 0 {
            source.push_str(&format!("#define DIM {dim}\n"));
        }
        source.push_str(OPERATORS);
        if dim > 0 {
            source.push_str(ATTENTION);
        }
        source
    }

    fn compile(&self, bf16: bool, dim: usize) -> Result<Ptx> {
        let options = CompileOptions { arch: Some(self.architecture), ..CompileOptions::default() };
        compile_ptx_with_opts(Self::source(bf16, dim), options)
            .map_err(|error| DeviceError::Driver { call: "NVRTC", message: format!("{error:?}") })
    }

    fn function(&self, bf16: bool, dim: usize, name: &'static str) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&(bf16, dim, name)) {
            return Ok(function.clone());
        }
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match modules.get(&(bf16, dim)) {
            Some(module) => Arc::clone(module),
            None => {
                let module =
                    self.context.load_module(self.compile(bf16, dim)?).map_err(failed("loading a module"))?;
                modules.insert((bf16, dim), Arc::clone(&module));
                module
            }
        };
        let function = module.load_function(name).map_err(failed("loading a kernel"))?;
        functions.insert((bf16, dim, name), function.clone());
        Ok(function)
    }

    /// Launches a kernel on the stream; errors of the launch itself are returned here, later ones by synchronising.
    pub(super) fn launch(
        &self,
        stream: &CudaStream,
        (bf16, dim, name): (bool, usize, &'static str),
        grid: (u32, u32, u32),
        block: (u32, u32, u32),
        args: &[Arg],
    ) -> Result<()> {
        if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 {
            return Ok(());
        }
        let function = self.function(bf16, dim, name)?;
        let mut builder = stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::Pointer(pointer) => builder.arg(pointer),
                Arg::Int(value) => builder.arg(value),
                Arg::Float(value) => builder.arg(value),
            };
        }
        let config = LaunchConfig { grid_dim: grid, block_dim: block, shared_mem_bytes: 0 };
        // SAFETY: the callers in `operators` pass the arguments that the source of this kernel declares, in order, with
        // pointers into live allocations whose lengths they have checked.
        unsafe { builder.launch(config) }.map_err(failed("kernel launch")).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel that the host launches exists in the sources.
    #[test]
    fn launched_kernels_exist() {
        let sources = Kernels::source(true, 64);
        let host = include_str!("operators.rs");
        let mut names = Vec::new();
        for part in host.split("kernel!(\"").skip(1) {
            names.push(part.split('"').next().unwrap_or_default());
        }
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert!(sources.contains(&format!("__global__ void {name}(")), "{name}");
        }
    }
}
