//! How quiet the machine is while a test compares predictions with its clock.

/// What the machine did meanwhile, from the system's own accounts: where noise comes from.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Jiffies of everybody, of other guests of the same host, and of this process; page faults of this process.
    all: f64,
    stolen: f64,
    own: f64,
    faults: f64,
    at: std::time::Instant,
}

impl Weather {
    /// The accounts as they stand.
    pub fn now() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let numbers =
            |text: &str| -> Vec<f64> { text.split_whitespace().filter_map(|w| w.parse().ok()).collect() };
        let all = numbers(read("/proc/stat").lines().next().unwrap_or_default());
        let text = read("/proc/self/stat");
        // After the name in brackets: state is the third field of proc(5).
        let own = numbers(text.rsplit_once(") ").map_or("", |(_, rest)| rest.get(1..).unwrap_or("")));
        let at = |list: &[f64], i: usize| list.get(i).copied().unwrap_or(0.0);
        Self {
            all: (0..3).map(|i| at(&all, i)).sum(),
            stolen: at(&all, 7),
            own: at(&own, 10) + at(&own, 11),
            faults: at(&own, 6),
            at: std::time::Instant::now(),
        }
    }

    /// Shares of the processors since then: this process, other programs, other guests of the same host.
    fn shares(&self) -> [f64; 3] {
        let now = Self::now();
        // A jiffy is a hundredth of a second on every Linux that says so to programs.
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get()) as f64;
        let whole = 100.0 * cores * self.at.elapsed().as_secs_f64();
        let own = now.own - self.own;
        [own, now.all - self.all - own, now.stolen - self.stolen].map(|jiffies| jiffies / whole)
    }

    /// Share of the processors that this process has not had since then: other programs, other guests of the host. All of it
    /// where the system keeps no such accounts.
    pub fn others(&self) -> f64 {
        let [_, programs, guests] = self.shares();
        if self.all > 0.0 { programs + guests } else { 1.0 }
    }

    /// Prints what has happened since then.
    pub fn print(&self) {
        let [own, programs, guests] = self.shares().map(|share| share * 1e2);
        let faults = (Self::now().faults - self.faults) / self.at.elapsed().as_secs_f64();
        println!(
            "meanwhile: this test used {own:.0} % of the processors, other programs {programs:.0} %, stolen {guests:.1} %; {faults:.0} page faults a second"
        );
    }
}
