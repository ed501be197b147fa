//! Processor time of the calling thread: what work costs whoever else uses the machine meanwhile.

/// Seconds of processor time that the calling thread has used. Waiting and being preempted do not count; sharing
/// caches and execution units with other threads does. Where the system has no such clock, wall-clock time.
pub fn thread_seconds() -> f64 {
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
