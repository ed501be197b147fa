//! The CUDA kernels and the host code that launches them, without a GPU: the sources are compiled by the system's C++
//! compiler with an emulation of CUDA (`emulated/cuda_on_cpu.h`) and go through the same conformance suite.
//!
//! It checks what the kernels compute, not how fast, and nothing of what only NVIDIA's software can: that is NVRTC's
//! test in the crate (no GPU needed) and `cuda/check-on-gpu.sh`.
#![cfg(unix)]
#![expect(unsafe_code, reason = "calls into a freshly compiled library")]
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

use libloading::Library;
use psim_kernels::cuda::CudaDevice;
use psim_kernels::cuda::runtime::{Arg, Format, Kernel, Launch, Operand, Product, Runtime};
use psim_kernels::cuda::sources;
use psim_kernels::device::{DeviceError, Result};
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

const HEADER: &str = include_str!("emulated/cuda_on_cpu.h");

fn failed(call: &'static str, message: impl std::fmt::Display) -> DeviceError {
    DeviceError::Driver { call, message: message.to_string() }
}

/// The source of a library that runs the kernels of one module by name.
fn library_source(format: Format, dim: usize) -> String {
    let module = sources::module(HEADER, format, dim);
    let mut source = module.clone();
    source.push_str(
        "extern \"C\" int emulator_launch(const char* name, const u32* shape, void** arguments) {\n\
         using namespace emulator;\n",
    );
    for kernel in sources::kernels(&module) {
        source.push_str(&format!(
            "if (!strcmp(name, \"{kernel}\")) {{ kernel = (void (*)()){kernel}; entry = [](void (*f)(), void** a) \
             {{ (void)f; call_with({kernel}, a); }}; }} else\n"
        ));
    }
    source.push_str(
        "return 2;\n\
         emulator::arguments = arguments;\n\
         gridDim = {shape[0], shape[1], shape[2]};\n\
         blockDim = {shape[3], shape[4], shape[5]};\n\
         for (u32 z = 0; z < shape[2]; ++z) for (u32 y = 0; y < shape[1]; ++y) for (u32 x = 0; x < shape[0]; ++x) {\n\
         blockIdx = {x, y, z};\n\
         memset(dynamic_shared, 0xff, shape[6]);\n\
         if (run_block(shape[3] * shape[4] * shape[5])) return 3;\n\
         }\n\
         return 0;\n}\n",
    );
    source
}

/// Compiles a module once per test process.
fn library(format: Format, dim: usize) -> Result<&'static Library> {
    static LIBRARIES: Mutex<BTreeMap<(Format, usize), &'static Library>> = Mutex::new(BTreeMap::new());
    let mut libraries = LIBRARIES.lock().unwrap();
    if let Some(library) = libraries.get(&(format, dim)) {
        return Ok(library);
    }
    let folder = folder();
    let name = format!("{format:?}-{dim}-{}", std::process::id());
    let (source, binary) = (folder.join(format!("{name}.cpp")), folder.join(format!("{name}.so")));
    std::fs::write(&source, library_source(format, dim)).map_err(|e| failed("writing the source", e))?;
    let output = Command::new("g++")
        .args(["-std=c++17", "-O2", "-w", "-D_GNU_SOURCE", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-o"])
        .args([&binary, &source])
        .output()
        .map_err(|e| failed("g++", e))?;
    if !output.status.success() {
        return Err(failed("g++", String::from_utf8_lossy(&output.stderr)));
    }
    // SAFETY: the library is this test's own and has no initialisers beyond those of its globals.
    let library = unsafe { Library::new(&binary) }.map_err(|e| failed("loading", e))?;
    let _ = std::fs::remove_file(&source);
    let _ = std::fs::remove_file(&binary);
    let library: &'static Library = Box::leak(Box::new(library));
    libraries.insert((format, dim), library);
    Ok(library)
}

fn folder() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Host memory and emulated launches.
struct Emulation;

type LaunchFunction = unsafe extern "C" fn(*const c_char, *const u32, *mut *mut c_void) -> c_int;

/// The emulator keeps its state in globals: one launch at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl Runtime for Emulation {
    // 16-byte elements, so that wide loads are aligned.
    type Memory = Vec<u128>;

    fn name(&self) -> String {
        "emulated CUDA".to_owned()
    }
    fn units(&self) -> u32 {
        2
    }
    fn allocate(&self, bytes: usize) -> Result<Vec<u128>> {
        Ok(vec![u128::MAX; bytes.div_ceil(16).max(1)])
    }
    fn address(&self, memory: &Vec<u128>) -> u64 {
        memory.as_ptr() as u64
    }
    fn to_device(&self, bytes: &[u8], memory: &mut Vec<u128>, offset: usize) -> Result<()> {
        assert!(offset + bytes.len() <= memory.len() * 16);
        // SAFETY: the range was checked.
        unsafe {
            let to = memory.as_mut_ptr().cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        Ok(())
    }
    fn to_host(&self, memory: &Vec<u128>, offset: usize, bytes: &mut [u8]) -> Result<()> {
        assert!(offset + bytes.len() <= memory.len() * 16);
        // SAFETY: the range was checked.
        unsafe {
            let from = memory.as_ptr().cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the operators have checked both ranges.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = std::time::Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }
    fn launch(&self, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<()> {
        let library = library(kernel.format, kernel.dim)?;
        let _one = ONE_AT_A_TIME.lock().unwrap();
        // SAFETY: the symbol has this type in the source above.
        let run = unsafe { library.get::<LaunchFunction>(b"emulator_launch") }
            .map_err(|e| failed("emulator_launch", e))?;
        let mut words: Vec<u64> = args
            .iter()
            .map(|arg| match *arg {
                Arg::Pointer(pointer) => pointer,
                Arg::Int(value) => value as u64,
                Arg::Float(value) => u64::from(value.to_bits()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|w| (&raw mut *w).cast()).collect();
        let name = CString::new(kernel.name).map_err(|e| failed("name", e))?;
        let (grid, block) = (launch.grid, launch.block);
        let shape = [grid.0, grid.1, grid.2, block.0, block.1, block.2, launch.shared];
        // SAFETY: the operators pass the arguments that the kernel declares, as on a GPU.
        match unsafe { run(name.as_ptr(), shape.as_ptr(), pointers.as_mut_ptr()) } {
            0 => Ok(()),
            code => Err(failed("emulated launch", format!("{} returned {code}", kernel.name))),
        }
    }
    fn multiply(&self, product: &Product) -> Result<()> {
        let [a, b, c] = product.operands;
        for i in 0..product.m {
            for j in 0..product.n {
                let mut sum = if product.accumulate { element(c, i, j) } else { 0.0 };
                for l in 0..product.k {
                    sum += element(a, i, l) * element(b, l, j);
                }
                store(c, i, j, sum);
            }
        }
        Ok(())
    }
}

fn index(operand: Operand, row: usize, column: usize) -> usize {
    let (row, column) = if operand.transposed { (column, row) } else { (row, column) };
    row * operand.stride + column
}

fn element(operand: Operand, row: usize, column: usize) -> f32 {
    let at = index(operand, row, column);
    // SAFETY: the operators have checked the extents of every operand.
    unsafe {
        match operand.format {
            Format::Fp32 => *(operand.address as *const f32).add(at),
            Format::Bf16 => (*(operand.address as *const half::bf16).add(at)).to_f32(),
            Format::Fp16 => (*(operand.address as *const half::f16).add(at)).to_f32(),
            Format::Fp8 => {
                let bits = *(operand.address as *const u8).add(at);
                let (exponent, mantissa) = (i32::from((bits >> 3) & 15), f32::from(bits & 7));
                let value = if exponent == 0 {
                    mantissa / 512.0
                } else {
                    (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7)
                };
                if bits & 128 == 0 { value } else { -value }
            }
        }
    }
}

fn store(operand: Operand, row: usize, column: usize, value: f32) {
    let at = index(operand, row, column);
    // SAFETY: as above.
    unsafe {
        match operand.format {
            Format::Fp32 => *(operand.address as *mut f32).add(at) = value,
            Format::Bf16 => *(operand.address as *mut half::bf16).add(at) = half::bf16::from_f32(value),
            Format::Fp16 => *(operand.address as *mut half::f16).add(at) = half::f16::from_f32(value),
            Format::Fp8 => {}
        }
    }
}

/// A device, unless the compiler is missing.
fn device() -> Option<CudaDevice<Emulation>> {
    static COMPILER: OnceLock<bool> = OnceLock::new();
    let there = *COMPILER.get_or_init(|| Command::new("g++").arg("--version").output().is_ok());
    if !there {
        eprintln!("g++ is not on this machine: the CUDA kernels were not emulated");
        return None;
    }
    Some(CudaDevice::on(Emulation))
}

psim_kernels::conformance_suite!(emulated_cuda, super::device);

/// Fp8 products and casts, both ways.
#[test]
fn fp8() {
    let Some(device) = device() else { return };
    let checks =
        psim_kernels::conformance::run_topic(&device, psim_kernels::conformance::gemm_fp8, 5).unwrap();
    assert!(!checks.is_empty());
    for check in checks {
        assert!(check.passed(), "{check:?}");
    }
}

/// The micro-benchmarks launch what their sources declare.
#[test]
fn micro_benchmarks_run() {
    use psim_kernels::Micro;
    let Some(device) = device() else { return };
    assert!(device.load_latency(4_096, 100).unwrap() > 0.0);
    assert!(device.shared_latency(100).unwrap().unwrap() > 0.0);
    assert!(device.launch_cost(10, false).unwrap().unwrap() > 0.0);
    assert_eq!(device.launch_cost(10, true).unwrap(), None);
}
