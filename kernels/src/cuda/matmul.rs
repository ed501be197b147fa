//! Matrix products in cuBLASLt: fp32, bf16, fp16 and fp8 operands, fp32 accumulation.

use super::failed::failed;
use super::runtime::{Format, Operand, Product};
use crate::device::{DeviceError, Result};
use cudarc::cublaslt::{result as lt, sys};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// NVIDIA recommends 32 MiB for Hopper and later (cuBLAS library, section "cublasSetWorkspace").
const WORKSPACE: usize = 32 << 20;

/// What decides the algorithm: sizes, strides, formats, transposes, alignment.
type Shape = ([usize; 6], [(Format, bool); 3], bool, u64);

/// A handle, its workspace and the algorithms chosen so far.
pub(super) struct Multiplier {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    algorithms: Mutex<BTreeMap<Shape, sys::cublasLtMatmulAlgo_t>>,
}

// SAFETY: cuBLASLt handles may be used by several threads (cuBLASLt API reference, cublasLtCreate).
unsafe impl Send for Multiplier {}
// SAFETY: as above; the algorithm table has a lock of its own.
unsafe impl Sync for Multiplier {}

impl Drop for Multiplier {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once. A failure here has nobody to hear of it.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

/// Descriptors that are destroyed with the scope.
struct Layout(sys::cublasLtMatrixLayout_t);
impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by `layout`, destroyed once.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}
struct Description(sys::cublasLtMatmulDesc_t);
impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created by `multiply`, destroyed once.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}
struct Preference(sys::cublasLtMatmulPreference_t);
impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by `choose`, destroyed once.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

fn kind(format: Format) -> sys::cudaDataType {
    match format {
        Format::Fp32 => sys::cudaDataType::CUDA_R_32F,
        Format::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Format::Fp16 => sys::cudaDataType::CUDA_R_16F,
        Format::Fp8 => sys::cudaDataType::CUDA_R_8F_E4M3,
    }
}

/// A row-major matrix as cuBLASLt's column-major transpose; `rows` and `columns` are those stored.
fn layout(operand: &Operand, rows: usize, columns: usize) -> Result<Layout> {
    let (rows, columns) = if operand.transposed { (columns, rows) } else { (rows, columns) };
    lt::create_matrix_layout(kind(operand.format), columns as u64, rows as u64, operand.stride.max(1) as i64)
        .map(Layout)
        .map_err(failed("cublasLtMatrixLayoutCreate"))
}

impl Multiplier {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let handle = lt::create_handle().map_err(failed("cublasLtCreate"))?;
        // SAFETY: scratch memory; contents do not matter.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE) }.map_err(failed("cuBLASLt workspace"))?;
        Ok(Self { handle, workspace, algorithms: Mutex::default() })
    }

    /// Row-major C = A·B is column-major Cᵀ = Bᵀ·Aᵀ: the operands change places.
    pub(super) fn multiply(&self, stream: &Arc<CudaStream>, device: &str, product: &Product) -> Result<()> {
        let [a, b, c] = &product.operands;
        if a.format == Format::Fp8 && (a.transposed || !b.transposed) {
            // cuBLASLt takes fp8 only with both reductions along memory (cuBLASLt API reference, FP8 data types).
            return Err(DeviceError::Unsupported {
                device: device.to_owned(),
                what: "fp8 products other than A·Bᵀ with both matrices stored along the reduction".to_owned(),
            });
        }
        let description = lt::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType::CUDA_R_32F,
        )
        .map(Description)
        .map_err(failed("cublasLtMatmulDescCreate"))?;
        for (attribute, operand) in [
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, b),
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, a),
        ] {
            let value: i32 = i32::from(operand.transposed);
            // SAFETY: the attribute is a 32-bit operation code (0: as it is, 1: transposed) that is copied.
            unsafe {
                lt::set_matmul_desc_attribute(
                    description.0,
                    attribute,
                    (&raw const value).cast::<c_void>(),
                    size_of::<i32>(),
                )
            }
            .map_err(failed("cublasLtMatmulDescSetAttribute"))?;
        }
        let layouts = [
            layout(b, product.k, product.n)?,
            layout(a, product.m, product.k)?,
            layout(c, product.m, product.n)?,
        ];
        let algorithm = self.algorithm(product, &description, &layouts)?;
        let (alpha, beta) = (1.0_f32, if product.accumulate { 1.0_f32 } else { 0.0 });
        let (workspace, guard) = self.workspace.device_ptr(stream);
        // SAFETY: the caller has checked addresses, sizes and strides against live allocations; alpha, beta and the
        // descriptors outlive the call; the workspace is used by this stream only.
        let done = unsafe {
            lt::matmul(
                self.handle,
                description.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                b.address as *const c_void,
                layouts[0].0,
                a.address as *const c_void,
                layouts[1].0,
                c.address as *const c_void,
                layouts[2].0,
                c.address as *mut c_void,
                layouts[2].0,
                &raw const algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        };
        drop(guard);
        done.map_err(failed("cublasLtMatmul"))
    }

    /// The library's own choice for this shape, asked once.
    fn algorithm(
        &self,
        product: &Product,
        description: &Description,
        layouts: &[Layout; 3],
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let [a, b, c] = product.operands;
        let together = a.address | b.address | c.address;
        let alignment = 1_u64 << together.trailing_zeros().min(8);
        let key = (
            [product.m, product.n, product.k, a.stride, b.stride, c.stride],
            [a, b, c].map(|o| (o.format, o.transposed)),
            product.accumulate,
            alignment,
        );
        let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = algorithms.get(&key) {
            return Ok(*algorithm);
        }
        let preference =
            lt::create_matmul_pref().map(Preference).map_err(failed("cublasLtMatmulPreferenceCreate"))?;
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the value has the size that is passed and is copied.
            unsafe { lt::set_matmul_pref_attribute(preference.0, attribute, value, size) }
                .map_err(failed("cublasLtMatmulPreferenceSetAttribute"))
        };
        let workspace = WORKSPACE;
        set(
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const workspace).cast(),
            size_of::<usize>(),
        )?;
        for (attribute, operand) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c),
        ] {
            let value: u32 = 1 << operand.address.trailing_zeros().min(8);
            set(attribute, (&raw const value).cast(), size_of::<u32>())?;
        }
        // SAFETY: all descriptors are alive.
        let found = unsafe {
            lt::get_matmul_algo_heuristic(
                self.handle,
                description.0,
                layouts[0].0,
                layouts[1].0,
                layouts[2].0,
                layouts[2].0,
                preference.0,
            )
        }
        .map_err(failed("cublasLtMatmulAlgoGetHeuristic"))?;
        algorithms.insert(key, found.algo);
        Ok(found.algo)
    }
}
