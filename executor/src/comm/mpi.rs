//! A wire over MPI, loaded at run time: the same binary runs with MPI where `mpirun` started it and without it elsewhere.
//!
//! A handful of calls of the MPI standard (4.1, chapters 3 and 11) are looked up in the library. Open MPI's handles are
//! addresses of its own symbols; MPICH and all that keep its ABI (Intel MPI, MVAPICH, Cray) use fixed numbers. Handles
//! are passed as machine words, of which a callee that expects an `int` reads the lower half.
#![expect(unsafe_code, reason = "calls into a C library")]

use super::process::Wire;
use crate::error::{ExecutorError, Result, unsupported};
use crate::launch::{Launch, Launcher};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

/// Tag of every message; the executor's own tags travel inside.
const TAG: c_int = 77;
/// Calls come from one thread at a time (`MPI_THREAD_SERIALIZED`).
const SERIALIZED: c_int = 2;
/// Room for an `MPI_Status` of any library (20 to 24 bytes).
type Status = [u64; 8];

type CallInit = unsafe extern "C" fn(*mut c_int, *mut c_void, c_int, *mut c_int) -> c_int;
type CallFlag = unsafe extern "C" fn(*mut c_int) -> c_int;
type CallComm = unsafe extern "C" fn(usize, *mut c_int) -> c_int;
type CallSend = unsafe extern "C" fn(*const c_void, c_int, usize, c_int, c_int, usize, *mut usize) -> c_int;
type CallReceive = unsafe extern "C" fn(*mut c_void, c_int, usize, c_int, c_int, usize, *mut Status) -> c_int;
type CallTest = unsafe extern "C" fn(*mut usize, *mut c_int, *mut Status) -> c_int;
type CallProbe = unsafe extern "C" fn(c_int, c_int, usize, *mut c_int, *mut Status) -> c_int;
type CallCount = unsafe extern "C" fn(*const Status, usize, *mut c_int) -> c_int;
type CallAbort = unsafe extern "C" fn(usize, c_int) -> c_int;
type CallNothing = unsafe extern "C" fn() -> c_int;

/// What differs between libraries.
#[derive(Debug, Clone, Copy)]
struct Handles {
    world: usize,
    byte: usize,
    any_source: c_int,
    /// Index of `MPI_SOURCE` among the `int`s of a status.
    source: usize,
}

#[derive(Debug)]
struct Calls {
    rank: CallComm,
    size: CallComm,
    send: CallSend,
    receive: CallReceive,
    test: CallTest,
    probe: CallProbe,
    count: CallCount,
    abort: CallAbort,
    finalize: CallNothing,
}

/// A message on its way: the request, and the bytes that MPI reads until it is done.
#[derive(Debug)]
struct Pending {
    request: usize,
    /// Read by MPI alone, through the address that `MPI_Isend` was given.
    _bytes: Vec<u8>,
}

/// This process in `MPI_COMM_WORLD`; leaving scope finalises MPI.
#[derive(Debug)]
pub struct Mpi {
    calls: Calls,
    handles: Handles,
    rank: usize,
    world: usize,
    pending: RefCell<VecDeque<Pending>>,
    /// Keeps the functions above alive.
    _library: Library,
}

fn failed(call: &str, code: c_int) -> ExecutorError {
    ExecutorError::Communicator { library: "MPI", reason: format!("{call} returned {code}") }
}

fn ok(call: &str, code: c_int) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(failed(call, code)) }
}

impl Mpi {
    /// Loads MPI and joins the processes that were started together.
    ///
    /// # Errors
    /// When no MPI library is found, when it is of a kind that is not known, or when MPI has been left before.
    pub fn join() -> Result<Self> {
        let launch = Launch::from_environment()?;
        let open_mpi = ["libmpi.so.40", "libmpi.so"];
        let mpich = ["libmpi.so.12", "libmpich.so.12", "libmpich.so"];
        let names: Vec<&str> = match launch.as_ref().map(|l| l.launcher) {
            // The library has to be that of the launcher, else every process believes that it is alone.
            Some(Launcher::Pmi) => mpich.into_iter().chain(open_mpi).collect(),
            _ => open_mpi.into_iter().chain(mpich).collect(),
        };
        // SAFETY: loading a library runs its initialisers; an MPI library's are made for that. Open MPI needs its symbols
        // to be global because it loads plug-ins that refer to them.
        let library =
            names.iter().find_map(|name| unsafe { Library::open(Some(*name), RTLD_NOW | RTLD_GLOBAL) }.ok());
        let Some(library) = library else {
            return unsupported(
                format!("ranks over MPI: none of {} can be loaded", names.join(", ")),
                "install an MPI library (Debian: `apt-get install openmpi-bin`) or set LD_LIBRARY_PATH, or use `--ranks threads`",
            );
        };
        let handles = handles(&library)?;
        // SAFETY: the types above are those of the standard's C bindings.
        let (initialized, init, calls) = unsafe {
            (
                symbol::<CallFlag>(&library, "MPI_Initialized")?,
                symbol::<CallInit>(&library, "MPI_Init_thread")?,
                Calls {
                    rank: symbol(&library, "MPI_Comm_rank")?,
                    size: symbol(&library, "MPI_Comm_size")?,
                    send: symbol(&library, "MPI_Isend")?,
                    receive: symbol(&library, "MPI_Recv")?,
                    test: symbol(&library, "MPI_Test")?,
                    probe: symbol(&library, "MPI_Iprobe")?,
                    count: symbol(&library, "MPI_Get_count")?,
                    abort: symbol(&library, "MPI_Abort")?,
                    finalize: symbol(&library, "MPI_Finalize")?,
                },
            )
        };
        let mut before = 0;
        let mut provided = 0;
        // SAFETY: pointers to live integers; the standard allows null for the arguments of the program.
        unsafe {
            ok("MPI_Initialized", initialized(&raw mut before))?;
            if before != 0 {
                return unsupported("ranks over MPI twice in one process", "start the program again");
            }
            ok("MPI_Init_thread", init(null_mut(), null_mut(), SERIALIZED, &raw mut provided))?;
        }
        let (mut rank, mut world) = (0, 0);
        // SAFETY: as above, after initialisation.
        unsafe {
            ok("MPI_Comm_rank", (calls.rank)(handles.world, &raw mut rank))?;
            ok("MPI_Comm_size", (calls.size)(handles.world, &raw mut world))?;
        }
        let mpi = Self {
            calls,
            handles,
            rank: rank.max(0) as usize,
            world: world.max(1) as usize,
            pending: RefCell::default(),
            _library: library,
        };
        match launch {
            Some(launch) if launch.world != mpi.world && launch.launcher != Launcher::Torchrun => {
                unsupported(
                    format!(
                        "ranks over MPI: {} started {} processes, and the MPI library that was loaded sees {}",
                        launch.launcher.name(),
                        launch.world,
                        mpi.world
                    ),
                    "use the launcher of the same MPI, or put that MPI's library first on LD_LIBRARY_PATH",
                )
            }
            _ => Ok(mpi),
        }
    }

    /// Forgets the messages that have left.
    fn advance(&self) -> Result<()> {
        let mut pending = self.pending.borrow_mut();
        while let Some(first) = pending.front_mut() {
            let (mut done, mut status) = (0, Status::default());
            // SAFETY: the request is one of ours that has not completed; the rest points to live locals.
            let code = unsafe { (self.calls.test)(&raw mut first.request, &raw mut done, &raw mut status) };
            ok("MPI_Test", code)?;
            if done == 0 {
                break;
            }
            pending.pop_front();
        }
        Ok(())
    }
}

impl Wire for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn post(&self, to: usize, message: Vec<u8>) -> Result<()> {
        let (Ok(count), Ok(to)) = (c_int::try_from(message.len()), c_int::try_from(to)) else {
            return Err(failed("MPI_Isend with an oversized message", -1));
        };
        let mut request = 0;
        // SAFETY: the bytes stay where they are until the request is done, because `pending` owns them (moving the
        // vector does not move its contents); on drop all requests are waited for.
        let code = unsafe {
            (self.calls.send)(
                message.as_ptr().cast(),
                count,
                self.handles.byte,
                to,
                TAG,
                self.handles.world,
                &raw mut request,
            )
        };
        ok("MPI_Isend", code)?;
        self.pending.borrow_mut().push_back(Pending { request, _bytes: message });
        self.advance()
    }

    fn poll(&self) -> Result<Option<(usize, Vec<u8>)>> {
        self.advance()?;
        let (mut there, mut status) = (0, Status::default());
        // SAFETY: pointers to live locals; the status has room for any library's.
        unsafe {
            let any = self.handles.any_source;
            ok(
                "MPI_Iprobe",
                (self.calls.probe)(any, TAG, self.handles.world, &raw mut there, &raw mut status),
            )?;
        }
        if there == 0 {
            return Ok(None);
        }
        let bytes = status[self.handles.source / 2].to_ne_bytes();
        let half = if self.handles.source.is_multiple_of(2) { &bytes[..4] } else { &bytes[4..] };
        let source = half.try_into().map_or(0, c_int::from_ne_bytes);
        let mut count = 0;
        // SAFETY: the status is that of the probe; the buffer has the length that it tells.
        unsafe {
            ok("MPI_Get_count", (self.calls.count)(&raw const status, self.handles.byte, &raw mut count))?;
            let mut message = vec![0_u8; count.max(0) as usize];
            let buffer = message.as_mut_ptr().cast();
            let (byte, world) = (self.handles.byte, self.handles.world);
            ok("MPI_Recv", (self.calls.receive)(buffer, count, byte, source, TAG, world, &raw mut status))?;
            Ok(Some((source.max(0) as usize, message)))
        }
    }

    fn flush(&self) -> Result<()> {
        while !self.pending.borrow().is_empty() {
            self.advance()?;
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // SAFETY: MPI is initialised, and no call follows this one.
        unsafe {
            if std::thread::panicking() || self.flush().is_err() {
                (self.calls.abort)(self.handles.world, 101);
            } else {
                (self.calls.finalize)();
            }
        }
    }
}

/// A function of the library.
///
/// # Safety
/// `T` must be the function's type.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T> {
    // SAFETY: promised by the caller.
    match unsafe { library.get::<T>(name.as_bytes()) } {
        Ok(found) => Ok(*found),
        Err(_) => unsupported(
            format!("ranks over MPI: the MPI library lacks `{name}`"),
            "install Open MPI 4 or MPICH 3 or newer",
        ),
    }
}

fn handles(library: &Library) -> Result<Handles> {
    // SAFETY: only the addresses of these variables are used.
    let address = |name: &str| unsafe { symbol::<*mut c_void>(library, name) }.map(|at| at as usize);
    if let (Ok(world), Ok(byte)) = (address("ompi_mpi_comm_world"), address("ompi_mpi_byte")) {
        return Ok(Handles { world, byte, any_source: -1, source: 0 });
    }
    if address("MPIX_Comm_agree").is_ok() {
        // Values of the MPICH ABI initiative.
        return Ok(Handles { world: 0x4400_0000, byte: 0x4c00_010d, any_source: -2, source: 2 });
    }
    unsupported(
        "ranks over MPI: the MPI library is neither Open MPI nor of the MPICH family",
        "install Open MPI (Debian: `apt-get install openmpi-bin`)",
    )
}
