//! A common start: replicas begin to serve when all of them are ready.

use std::sync::{Condvar, Mutex, PoisonError};

/// A gate that opens when everybody has come, or has given up.
#[derive(Debug)]
pub(super) struct Gate {
    missing: Mutex<usize>,
    open: Condvar,
}

/// One who is to come. Dropped without coming, because its thread failed, nobody waits for it.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    gate: &'a Gate,
}

impl Gate {
    /// A gate for so many.
    pub(super) fn new(count: usize) -> Self {
        Self { missing: Mutex::new(count), open: Condvar::new() }
    }

    /// For one of them.
    pub(super) fn pass(&self) -> Pass<'_> {
        Pass { gate: self }
    }
}

impl Pass<'_> {
    /// Comes, and waits for the others.
    pub(super) fn through(self) {
        let gate = self.gate;
        drop(self);
        let mut missing = gate.missing.lock().unwrap_or_else(PoisonError::into_inner);
        while *missing > 0 {
            missing = gate.open.wait(missing).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut missing = self.gate.missing.lock().unwrap_or_else(PoisonError::into_inner);
        *missing = missing.saturating_sub(1);
        if *missing == 0 {
            self.gate.open.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn nobody_passes_early_and_a_failed_one_holds_nobody_up() {
        let (gate, come) = (Gate::new(4), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for i in 0..4_u64 {
                let pass = gate.pass();
                let come = &come;
                scope.spawn(move || {
                    std::thread::sleep(std::time::Duration::from_millis(5 * i));
                    come.fetch_add(1, Ordering::SeqCst);
                    if i == 3 {
                        return;
                    }
                    pass.through();
                    assert_eq!(come.load(Ordering::SeqCst), 4);
                });
            }
        });
    }
}
