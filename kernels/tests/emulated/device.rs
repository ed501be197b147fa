//! A CUDA device without a GPU, for tests: the sources compiled by the system's C++ compiler (`cuda_on_cpu.h`), memory on
//! the host, products by hand. Also used by the tests of other crates.
#![expect(unsafe_code, reason = "calls into a freshly compiled library")]
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

use libloading::Library;
use psim_kernels::cuda::CudaDevice;
use psim_kernels::cuda::runtime::{Arg, Format, Kernel, Lane, Launch, Operand, Product, Runtime};
use psim_kernels::cuda::sources;
use psim_kernels::device::{DeviceError, Result};
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

const HEADER: &str = include_str!("cuda_on_cpu.h");

fn failed(call: &'static str, message: impl std::fmt::Display) -> DeviceError {
    DeviceError::Driver { call, message: message.to_string() }
}

/// The threads of this kernel never wait for one another, so that they need no stacks of their own.
fn threads_go_alone(module: &str, kernel: &str) -> bool {
    let Some((_, rest)) = module.split_once(&format!("void {kernel}(")) else { return false };
    let body = rest.split("extern \"C\"").next().unwrap_or(rest);
    let together = ["__sync", "__shfl", "__shared__", "block_", "warp_", "load_matrices", "multiply_", "<"];
    // A template's call hides what it does.
    body.lines().all(|line| {
        let line = line.replace(" < ", " ").replace("<<", "").replace("<=", "");
        together.iter().all(|word| !line.contains(word))
    })
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
        let alone = threads_go_alone(&module, kernel);
        source.push_str(&format!(
            "if (!strcmp(name, \"{kernel}\")) {{ alone = {alone}; kernel = (void (*)()){kernel}; entry = [](void (*f)(), void** a) \
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
    let text = library_source(format, dim);
    // Compiled once for all test processes: the name tells the contents.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let binary = folder.join(format!("emulated-{format:?}-{dim}-{hash:016x}.so"));
    if !binary.exists() {
        let name = format!("{format:?}-{dim}-{}", std::process::id());
        let (source, made) = (folder.join(format!("{name}.cpp")), folder.join(format!("{name}.so")));
        std::fs::write(&source, text).map_err(|e| failed("writing the source", e))?;
        let output = Command::new("g++")
            .args(["-std=c++17", "-O2", "-w", "-D_GNU_SOURCE", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-o"])
            .args([&made, &source])
            .output()
            .map_err(|e| failed("g++", e))?;
        if !output.status.success() {
            return Err(failed("g++", String::from_utf8_lossy(&output.stderr)));
        }
        let _ = std::fs::remove_file(&source);
        std::fs::rename(&made, &binary).map_err(|e| failed("keeping the library", e))?;
    }
    // SAFETY: the library is this test's own and has no initialisers beyond those of its globals.
    let library = unsafe { Library::new(&binary) }.map_err(|e| failed("loading", e))?;
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
#[derive(Debug)]
pub(crate) struct Emulation;

type LaunchFunction = unsafe extern "C" fn(*const c_char, *const u32, *mut *mut c_void) -> c_int;

/// The emulator keeps its state in globals: one launch at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl Runtime for Emulation {
    // 16-byte elements, so that wide loads are aligned.
    type Memory = Vec<u128>;
    // Everything happens at once: a point in the work is a point in time.
    type Event = Instant;

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
    fn record(&self, _: Lane) -> Result<Instant> {
        Ok(Instant::now())
    }
    fn wait(&self, _: Lane, _: &Instant) -> Result<()> {
        Ok(())
    }
    fn reached(&self, _: &Instant) -> Result<bool> {
        Ok(true)
    }
    fn between(&self, from: &Instant, to: &Instant) -> Result<f64> {
        Ok(to.saturating_duration_since(*from).as_secs_f64())
    }
    fn stream(&self, _: Lane) -> Result<u64> {
        Ok(0)
    }
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    }
    fn launch(&self, _: Lane, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<()> {
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
pub(crate) fn device() -> Option<CudaDevice<Emulation>> {
    static COMPILER: OnceLock<bool> = OnceLock::new();
    let there = *COMPILER.get_or_init(|| Command::new("g++").arg("--version").output().is_ok());
    if !there {
        eprintln!("g++ is not on this machine: the CUDA kernels were not emulated");
        return None;
    }
    Some(CudaDevice::on(Emulation))
}
