//! NCCL, loaded at run time: the handful of calls that the executor needs (NCCL user guide, sections "API" and
//! "Group calls"). Nothing here links against it; where the library is missing, [`Library::load`] says so.

use super::runtime::Format;
use crate::device::{DeviceError, Result};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::sync::Arc;

/// Names under which the library is installed.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Sum, in `ncclRedOp_t`.
const SUM: c_int = 0;

/// What makes ranks find each other: made by one, given to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct UniqueId([u8; Self::BYTES]);

impl UniqueId {
    /// Length (`NCCL_UNIQUE_ID_BYTES`).
    pub const BYTES: usize = 128;
    /// As bytes, to be sent.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
    /// From bytes that were received; `None` for another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

type Comm = *mut c_void;
type Code = c_int;
type Stream = *mut c_void;
type CallReduce = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> Code;
type CallGather = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> Code;
type CallBroadcast =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> Code;
type CallSend = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, Stream) -> Code;
type CallReceive = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, Stream) -> Code;

struct Calls {
    version: unsafe extern "C" fn(*mut c_int) -> Code,
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> Code,
    init: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> Code,
    destroy: unsafe extern "C" fn(Comm) -> Code,
    describe: unsafe extern "C" fn(Code) -> *const c_char,
    group_start: unsafe extern "C" fn() -> Code,
    group_end: unsafe extern "C" fn() -> Code,
    all_reduce: CallReduce,
    reduce_scatter: CallReduce,
    all_gather: CallGather,
    broadcast: CallBroadcast,
    send: CallSend,
    receive: CallReceive,
}

/// The library.
pub struct Library {
    calls: Calls,
    /// Keeps the functions above alive.
    _library: libloading::Library,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library").field("version", &self.version().unwrap_or_default()).finish()
    }
}

/// `ncclDataType_t` of a format.
fn kind(format: Format) -> c_int {
    match format {
        Format::Fp16 => 6,
        Format::Fp32 => 7,
        Format::Bf16 => 9,
        Format::Fp8 => 10,
    }
}

impl Library {
    /// Loads the installed library.
    ///
    /// # Errors
    /// When there is none, or it lacks a call; the message says what to do.
    pub fn load() -> Result<Arc<Self>> {
        let mut reason = String::new();
        for name in NAMES {
            // SAFETY: loading NCCL runs its initialisers, which are made for that.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => return Self::of(library),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(DeviceError::Unavailable(format!(
            "NCCL cannot be used: none of {} can be loaded ({reason})\nhint: put the folder with NCCL on LD_LIBRARY_PATH (pip's is nvidia/nccl/lib), or use `--ranks threads`, `mpi` or `tcp`",
            NAMES.join(", ")
        )))
    }

    /// Loads a library from a file.
    ///
    /// # Errors
    /// As [`Library::load`].
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        // SAFETY: the caller names a library that has NCCL's calls.
        match unsafe { libloading::Library::new(path) } {
            Ok(library) => Self::of(library),
            Err(error) => Err(DeviceError::Unavailable(format!("{}: {error}", path.display()))),
        }
    }

    fn of(library: libloading::Library) -> Result<Arc<Self>> {
        /// A function of the library.
        ///
        /// # Safety
        /// `T` must be its type.
        unsafe fn symbol<T: Copy>(library: &libloading::Library, name: &str) -> Result<T> {
            // SAFETY: by contract.
            unsafe { library.get::<T>(name.as_bytes()) }.map(|s| *s).map_err(|e| {
                DeviceError::Unavailable(format!("this NCCL has no {name} (2.7 or later is needed): {e}"))
            })
        }
        // SAFETY: the types are those of nccl.h.
        let calls = unsafe {
            Calls {
                version: symbol(&library, "ncclGetVersion")?,
                unique_id: symbol(&library, "ncclGetUniqueId")?,
                init: symbol(&library, "ncclCommInitRank")?,
                destroy: symbol(&library, "ncclCommDestroy")?,
                describe: symbol(&library, "ncclGetErrorString")?,
                group_start: symbol(&library, "ncclGroupStart")?,
                group_end: symbol(&library, "ncclGroupEnd")?,
                all_reduce: symbol(&library, "ncclAllReduce")?,
                reduce_scatter: symbol(&library, "ncclReduceScatter")?,
                all_gather: symbol(&library, "ncclAllGather")?,
                broadcast: symbol(&library, "ncclBroadcast")?,
                send: symbol(&library, "ncclSend")?,
                receive: symbol(&library, "ncclRecv")?,
            }
        };
        Ok(Arc::new(Self { calls, _library: library }))
    }

    fn ok(&self, call: &'static str, code: Code) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the library returns a static string for any code.
        let text = unsafe { (self.calls.describe)(code) };
        let message = if text.is_null() {
            format!("code {code}")
        } else {
            // SAFETY: as above, terminated by zero.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(DeviceError::Driver { call, message: format!("{message} (NCCL_DEBUG=WARN says more)") })
    }

    /// Version as NCCL counts it (22703 is 2.27.3).
    ///
    /// # Errors
    /// When the library refuses.
    pub fn version(&self) -> Result<i32> {
        let mut version = 0;
        // SAFETY: writes one integer.
        self.ok("ncclGetVersion", unsafe { (self.calls.version)(&raw mut version) }).map(|()| version)
    }

    /// A new identity of a group that is about to form.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; UniqueId::BYTES]);
        // SAFETY: writes 128 bytes.
        self.ok("ncclGetUniqueId", unsafe { (self.calls.unique_id)(&raw mut id) }).map(|()| id)
    }

    /// Joins the group `id` as `rank` of `ranks`; waits for the others. The calling thread's device is taken.
    ///
    /// # Errors
    /// When the group does not form.
    pub fn join(self: &Arc<Self>, id: UniqueId, rank: usize, ranks: usize) -> Result<Communicator> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes one handle.
        let code = unsafe { (self.calls.init)(&raw mut raw, ranks as c_int, id, rank as c_int) };
        self.ok("ncclCommInitRank", code)?;
        Ok(Communicator { library: Arc::clone(self), raw, rank, ranks })
    }
}

/// This rank in a group; leaving scope leaves the group.
pub struct Communicator {
    library: Arc<Library>,
    raw: Comm,
    rank: usize,
    ranks: usize,
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Communicator({} of {})", self.rank, self.ranks)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: made by `join`, destroyed once. A failure here has nobody to hear of it.
        let _ = unsafe { (self.library.calls.destroy)(self.raw) };
    }
}

/// Elements in device memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    pub(super) address: u64,
    pub(super) count: usize,
    pub(super) format: Format,
}

impl Communicator {
    /// Index in the group.
    pub fn rank(&self) -> usize {
        self.rank
    }
    /// Size of the group.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Sum of `from` over the group to `to`, everywhere.
    ///
    /// # Safety
    /// Both extents must be live device memory until the stream is past the call; so for all calls below.
    pub(super) unsafe fn all_reduce(&self, from: Extent, to: u64, stream: u64) -> Result<()> {
        let call = self.library.calls.all_reduce;
        // SAFETY: by contract.
        let code = unsafe {
            call(from.address as _, to as _, from.count, kind(from.format), SUM, self.raw, stream as _)
        };
        self.library.ok("ncclAllReduce", code)
    }
    /// Part `rank` of the sum of `from`; `to` has a part's elements.
    pub(super) unsafe fn reduce_scatter(&self, from: u64, to: Extent, stream: u64) -> Result<()> {
        let call = self.library.calls.reduce_scatter;
        // SAFETY: by contract.
        let code = unsafe {
            call(from as _, to.address as _, to.count, kind(to.format), SUM, self.raw, stream as _)
        };
        self.library.ok("ncclReduceScatter", code)
    }
    /// `from` of every rank, in order.
    pub(super) unsafe fn all_gather(&self, from: Extent, to: u64, stream: u64) -> Result<()> {
        let call = self.library.calls.all_gather;
        // SAFETY: by contract.
        let code =
            unsafe { call(from.address as _, to as _, from.count, kind(from.format), self.raw, stream as _) };
        self.library.ok("ncclAllGather", code)
    }
    /// What `root` has, everywhere, in place.
    pub(super) unsafe fn broadcast(&self, data: Extent, root: usize, stream: u64) -> Result<()> {
        let Extent { address, count, format } = data;
        let call = self.library.calls.broadcast;
        // SAFETY: by contract.
        let code = unsafe {
            call(address as _, address as _, count, kind(format), root as c_int, self.raw, stream as _)
        };
        self.library.ok("ncclBroadcast", code)
    }
    /// Sends and receives that happen together: (peer, elements) each.
    pub(super) unsafe fn exchange(
        &self,
        sends: &[(usize, Extent)],
        receives: &[(usize, Extent)],
        stream: u64,
    ) -> Result<()> {
        let calls = &self.library.calls;
        // SAFETY: takes nothing.
        self.library.ok("ncclGroupStart", unsafe { (calls.group_start)() })?;
        let mut outcome = Ok(());
        for (peer, Extent { address, count, format }) in sends.iter().filter(|s| s.1.count > 0) {
            // SAFETY: by contract.
            let code = unsafe {
                (calls.send)(*address as _, *count, kind(*format), *peer as c_int, self.raw, stream as _)
            };
            outcome = outcome.and(self.library.ok("ncclSend", code));
        }
        for (peer, Extent { address, count, format }) in receives.iter().filter(|r| r.1.count > 0) {
            // SAFETY: by contract.
            let code = unsafe {
                (calls.receive)(*address as _, *count, kind(*format), *peer as c_int, self.raw, stream as _)
            };
            outcome = outcome.and(self.library.ok("ncclRecv", code));
        }
        // SAFETY: the group that was started ends whatever happened in it.
        outcome.and(self.library.ok("ncclGroupEnd", unsafe { (calls.group_end)() }))
    }
}
