//! Memory of the process that stays mapped: what a device's memory is to a GPU.
//!
//! The GEMM library packs its operands into fresh storage at every call, and ranks hand each other fresh vectors. glibc gives
//! storage of more than 128 KiB back to the system when it is freed and takes it again, page by page, at the next call; from
//! when on it keeps it depends on everything that was freed before (`mallopt(3)`, "dynamic mmap threshold"). The same kernel
//! then takes one time in a calibration and another in a run, and threads wait for each other's page tables.

use std::sync::Once;

/// Makes the allocator keep what is freed, for the life of the process; called by every device of this backend.
pub(super) fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(set);
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "mallopt is a C function")]
fn set() {
    /// The largest that older versions of glibc take, and half of what an arena of a thread can hold.
    const MAPPED_APART: libc::c_int = 32 << 20;
    /// Left on top of a thread's arena: emptied parts of 64 MiB are kept as well.
    const ON_TOP: libc::c_int = 64 << 20;
    // SAFETY: mallopt changes parameters of the allocator under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_APART);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(libc::M_TOP_PAD, ON_TOP);
    }
}

/// Other allocators keep memory by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn set() {}
