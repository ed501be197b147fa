//! [`Runtime`] on NVIDIA's driver: modules compiled by NVRTC when first used, products in cuBLASLt.

use super::failed::failed;
use super::matmul::Multiplier;
use super::runtime::{Arg, Format, Kernel, Lane, Launch, Product, Runtime};
use super::{sources, telemetry};
use crate::device::{DeviceError, Result};
use crate::micro::Telemetry;
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, LaunchConfig,
    PushKernelArg, result, sys,
};
use cudarc::nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Compiles one module to PTX for an architecture (`compute_90`); needs NVRTC, not a device.
///
/// # Errors
/// The compiler's log.
pub(super) fn compile(format: Format, dim: usize, architecture: &'static str) -> Result<Ptx> {
    let options = CompileOptions { arch: Some(architecture), ..CompileOptions::default() };
    compile_ptx_with_opts(sources::module(sources::PTX, format, dim), options)
        .map_err(|error| DeviceError::Driver { call: "NVRTC", message: format!("{error:?}") })
}

/// One device, its streams and what was compiled for it.
pub struct Driver {
    index: u32,
    name: String,
    units: u32,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// Streams beside the main one, made when first used.
    sides: Mutex<BTreeMap<u32, Arc<CudaStream>>>,
    architecture: &'static str,
    functions: Mutex<BTreeMap<Kernel, CudaFunction>>,
    modules: Mutex<BTreeMap<(Format, usize), Arc<CudaModule>>>,
    multiplier: Multiplier,
}

impl Driver {
    pub(super) fn new(index: usize) -> Result<Self> {
        let context = CudaContext::new(index).map_err(failed("opening the device"))?;
        // Recording who uses which memory on which stream would break the capture of graphs, and nearly everything runs
        // on one stream.
        // SAFETY: whoever uses another lane orders it with the main one by events, and gives buffers back only behind them.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("stream"))?;
        keep_freed_memory(&context)?;
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
        let units = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(failed("device attribute"))?;
        let name = format!("cuda:{index} {}", context.name().map_err(failed("device name"))?);
        let multiplier = Multiplier::new(&stream)?;
        Ok(Self {
            index: index as u32,
            name,
            units: units.max(1) as u32,
            context,
            stream,
            sides: Mutex::default(),
            architecture,
            functions: Mutex::default(),
            modules: Mutex::default(),
            multiplier,
        })
    }

    fn lane(&self, lane: Lane) -> Result<Arc<CudaStream>> {
        let Lane::Side(index) = lane else { return Ok(Arc::clone(&self.stream)) };
        let mut sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = sides.get(&index) {
            return Ok(Arc::clone(stream));
        }
        let stream = self.context.new_stream().map_err(failed("stream"))?;
        sides.insert(index, Arc::clone(&stream));
        Ok(stream)
    }

    fn function(&self, kernel: Kernel) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&kernel) {
            return Ok(function.clone());
        }
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kernel.format, kernel.dim);
        let module = match modules.get(&key) {
            Some(module) => Arc::clone(module),
            None => {
                let ptx = compile(kernel.format, kernel.dim, self.architecture)?;
                let module = self.context.load_module(ptx).map_err(failed("loading a module"))?;
                modules.insert(key, Arc::clone(&module));
                module
            }
        };
        let function = module.load_function(kernel.name).map_err(failed("loading a kernel"))?;
        functions.insert(kernel, function.clone());
        Ok(function)
    }
}

/// Freed memory stays in the driver's pool: by default it goes back to the system at every synchronisation, and mapping
/// it again costs more than most kernels (CUDA driver API, stream ordered memory allocator).
fn keep_freed_memory(context: &Arc<CudaContext>) -> Result<()> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut all = u64::MAX;
    // SAFETY: the device exists, and the attribute is a 64-bit number that is copied.
    unsafe {
        let pool =
            result::device::get_default_mem_pool(context.cu_device()).map_err(failed("memory pool"))?;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut all).cast())
            .result()
            .map_err(failed("memory pool"))
    }
}

impl Runtime for Driver {
    type Memory = CudaSlice<u8>;
    type Event = CudaEvent;

    fn name(&self) -> String {
        self.name.clone()
    }
    fn units(&self) -> u32 {
        self.units
    }
    fn allocate(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        // An empty allocation has no address.
        // SAFETY: bytes have no invalid values; contents are undefined by contract.
        unsafe { self.stream.alloc::<u8>(bytes.max(16)) }.map_err(failed("allocation"))
    }
    fn address(&self, memory: &CudaSlice<u8>) -> u64 {
        let (pointer, guard) = memory.device_ptr(&self.stream);
        drop(guard);
        pointer
    }
    fn to_device(&self, bytes: &[u8], memory: &mut CudaSlice<u8>, offset: usize) -> Result<()> {
        let mut view = memory.slice_mut(offset..offset + bytes.len());
        self.stream.memcpy_htod(bytes, &mut view).map_err(failed("upload"))?;
        // The host's bytes may go away: the copy must be done.
        self.synchronize()
    }
    fn to_host(&self, memory: &CudaSlice<u8>, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let view = memory.slice(offset..offset + bytes.len());
        self.stream.memcpy_dtoh(&view, bytes).map_err(failed("download"))?;
        self.synchronize()
    }
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller has checked both ranges against live allocations.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }.map_err(failed("copy"))
    }
    fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed("synchronize"))
    }
    fn record(&self, lane: Lane) -> Result<CudaEvent> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        self.lane(lane)?.record_event(flags).map_err(failed("event"))
    }
    fn wait(&self, lane: Lane, event: &CudaEvent) -> Result<()> {
        self.lane(lane)?.wait(event).map_err(failed("event"))
    }
    fn reached(&self, event: &CudaEvent) -> Result<bool> {
        event.try_is_complete().map_err(failed("event"))
    }
    fn between(&self, from: &CudaEvent, to: &CudaEvent) -> Result<f64> {
        // In milliseconds, resolved to half a microsecond.
        Ok(f64::from(from.elapsed_ms(to).map_err(failed("event"))?) * 1e-3)
    }
    fn stream(&self, lane: Lane) -> Result<u64> {
        Ok(self.lane(lane)?.cu_stream() as u64)
    }
    fn device_bytes(&self) -> Option<[u64; 2]> {
        let (free, total) = self.context.mem_get_info().ok()?;
        Some([total.saturating_sub(free) as u64, total as u64])
    }
    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(failed("context"))
    }
    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        let event = || {
            let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            self.context.new_event(flags).map_err(failed("event"))
        };
        let (start, end) = (event()?, event()?);
        start.record(&self.stream).map_err(failed("event"))?;
        work()?;
        end.record(&self.stream).map_err(failed("event"))?;
        Ok(f64::from(start.elapsed_ms(&end).map_err(failed("event"))?) * 1e-3)
    }
    fn time_graph(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<f64>> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed("graph capture"))?;
        let worked = work();
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags).map_err(failed("graph capture"))?;
        worked?;
        let Some(graph) = graph else { return Ok(None) };
        let replay = || graph.launch().map_err(failed("graph launch"));
        replay()?;
        self.synchronize()?;
        self.time(&mut || replay()).map(Some)
    }
    fn host_copy(&self, bytes: usize, to_device: bool) -> Result<Option<f64>> {
        // SAFETY: bytes have no invalid values; what is copied does not matter.
        let mut host = unsafe { self.context.alloc_pinned_with_flags::<u8>(bytes.max(16), 0) }
            .map_err(failed("page-locked memory"))?;
        let mut device = self.allocate(bytes.max(16))?;
        let mut copy = || {
            if to_device {
                self.stream.memcpy_htod(&host, &mut device).map_err(failed("upload"))
            } else {
                self.stream.memcpy_dtoh(&device, &mut host).map_err(failed("download"))
            }
        };
        copy()?;
        self.synchronize()?;
        self.time(&mut copy).map(Some)
    }
    fn last_cache(&self) -> Option<u64> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        self.context.attribute(attribute).ok().and_then(|bytes| u64::try_from(bytes).ok()).filter(|b| *b > 0)
    }
    fn telemetry(&self) -> Option<Telemetry> {
        telemetry::read(self.index)
    }
    fn launch(&self, lane: Lane, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<()> {
        if launch.grid.0 == 0 || launch.grid.1 == 0 || launch.grid.2 == 0 {
            return Ok(());
        }
        let function = self.function(kernel)?;
        if launch.shared > 48 * 1024 {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, launch.shared as i32).map_err(failed("shared memory"))?;
        }
        let stream = self.lane(lane)?;
        let mut builder = stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::Pointer(pointer) => builder.arg(pointer),
                Arg::Int(value) => builder.arg(value),
                Arg::Float(value) => builder.arg(value),
            };
        }
        let config =
            LaunchConfig { grid_dim: launch.grid, block_dim: launch.block, shared_mem_bytes: launch.shared };
        // SAFETY: the operators pass the arguments that the source of this kernel declares, in order, with pointers
        // into live allocations whose lengths they have checked.
        unsafe { builder.launch(config) }.map_err(failed("kernel launch")).map(|_| ())
    }
    fn multiply(&self, product: &Product) -> Result<()> {
        self.multiplier.multiply(&self.stream, &self.name, product)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every module compiles for Hopper, the largest ones for Ampere and Blackwell too, wherever the run-time compiler is: no device is needed for it.
    #[test]
    fn every_module_compiles() {
        // SAFETY: this only tries to open a library by name.
        if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
            eprintln!("SKIP: no NVRTC on this machine: the CUDA sources were not compiled");
            return;
        }
        let mut modules = vec![("compute_80", Format::Bf16, 128), ("compute_100", Format::Bf16, 128)];
        for format in [Format::Fp32, Format::Bf16, Format::Fp16] {
            modules.extend([0, 32, 64, 128].map(|dim| ("compute_90", format, dim)));
        }
        for (architecture, format, dim) in modules {
            if let Err(error) = compile(format, dim, architecture) {
                panic!("{architecture} {format:?} {dim}: {error}");
            }
        }
    }
}
