//! Processor time of the calling thread: what work costs whoever else uses the machine meanwhile.

use std::cell::Cell;

thread_local! {
    /// Processor seconds of this thread that were spent waiting.
    static WAITED: Cell<f64> = const { Cell::new(0.0) };
}

/// Seconds of processor time that the calling thread has used. Waiting (asleep, or awake in [`uncounted`]) and being
/// preempted do not count; sharing caches and execution units with other threads does. Where the system has no such
/// clock, wall-clock time.
pub fn thread_seconds() -> f64 {
    raw() - WAITED.get()
}

/// Does work that is waiting in disguise, such as polling for a message: [`thread_seconds`] does not count it.
pub fn uncounted<R>(work: impl FnOnce() -> R) -> R {
    let start = raw();
    let result = work();
    WAITED.set(WAITED.get() + (raw() - start).max(0.0));
    result
}

fn raw() -> f64 {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }
    #[cfg(not(unix))]
    {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::thread_seconds;
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    #[test]
    fn sleeping_costs_nothing_and_work_does() {
        let start = thread_seconds();
        std::thread::sleep(Duration::from_millis(30));
        let slept = thread_seconds() - start;
        assert!(slept < 0.02, "{slept}");
        let begin = Instant::now();
        let mut sum = 0_u64;
        while begin.elapsed() < Duration::from_millis(30) {
            sum = black_box(sum.wrapping_add(1));
        }
        let worked = thread_seconds() - start - slept;
        assert!(worked > 0.0 && worked < 10.0, "{worked}");
    }
}
