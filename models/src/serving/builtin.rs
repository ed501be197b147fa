//! Workloads that come with the program, as the files a person would write.

use psim_hardware::suggest::closest;

/// Name, what it is, text.
const WORKLOADS: [(&str, &str, &str); 9] = [
    (
        "chat",
        "conversation lengths, Poisson 20/s, TTFT and TPOT promised",
        include_str!("../../data/workloads/chat.toml"),
    ),
    (
        "code",
        "long prompts and short answers in bursts of gamma arrivals",
        include_str!("../../data/workloads/code.toml"),
    ),
    (
        "mixed",
        "two tenants with different promises over a short day",
        include_str!("../../data/workloads/mixed.toml"),
    ),
    (
        "conversations",
        "several turns with think time and shared system prompts",
        include_str!("../../data/workloads/conversations.toml"),
    ),
    (
        "closed-loop",
        "64 clients that send their next request when the last is answered",
        include_str!("../../data/workloads/closed-loop.toml"),
    ),
    ("ramp", "traffic that grows tenfold in five minutes", include_str!("../../data/workloads/ramp.toml")),
    (
        "adapters",
        "200 low-rank adapters, popular ones asked for most",
        include_str!("../../data/workloads/adapters.toml"),
    ),
    (
        "fixed-2048-128",
        "1,024 requests of 2,048 + 128 tokens at once",
        include_str!("../../data/workloads/fixed-2048-128.toml"),
    ),
    (
        "conversation-20rps",
        "4,096 requests with conversation lengths, Poisson 20/s",
        include_str!("../../data/workloads/conversation-20rps.toml"),
    ),
];

/// Files that built-in workloads name, and that a person's own may.
const DATA: [(&str, &str); 2] = [
    ("azure-conversation-2023.csv", include_str!("../../data/workloads/azure-conversation-2023.csv")),
    ("azure-code-2023.csv", include_str!("../../data/workloads/azure-code-2023.csv")),
];

/// Name and description of every built-in workload.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    WORKLOADS.iter().map(|(name, about, _)| (*name, *about))
}

/// Text of a built-in workload by name, with or without `.toml`.
pub fn workload(name: &str) -> Option<&'static str> {
    let stem = name.strip_suffix(".toml").unwrap_or(name);
    WORKLOADS.iter().find(|(known, ..)| *known == stem).map(|(.., text)| *text)
}

/// Text of a built-in file of lengths.
pub fn data(name: &str) -> Option<&'static str> {
    DATA.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// The built-in workload whose name is nearest to what was typed.
pub fn suggestion(name: &str) -> Option<&'static str> {
    let stem = name.strip_suffix(".toml").unwrap_or(name);
    closest(stem, WORKLOADS.iter().map(|(known, ..)| *known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::workload::parse_workload;

    #[test]
    fn every_workload_reads() {
        for (name, _) in names() {
            let text = workload(&format!("{name}.toml")).unwrap();
            let read = parse_workload(name, text, &mut |file| {
                data(file).map(str::to_owned).ok_or_else(|| "no".into())
            });
            let read = read.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(read.name, name);
            assert!(read.mean_lengths().0 > 1.0);
        }
        assert_eq!(suggestion("chatt.toml"), Some("chat"));
        assert!(workload("nothing").is_none());
    }

    #[test]
    fn sampled_lengths_keep_the_mean_of_the_trace() {
        // The whole traces have means of 1154.7 / 211.1 and 2047.8 / 27.9 tokens.
        for (file, input, output) in
            [("azure-conversation-2023.csv", 1154.7, 211.1), ("azure-code-2023.csv", 2047.8, 27.9)]
        {
            let trace = crate::serving::trace::parse_trace(file, data(file).unwrap()).unwrap();
            let n = trace.requests.len() as f64;
            let mean = |f: fn(&crate::serving::Request) -> u32| {
                trace.requests.iter().map(|r| f64::from(f(r))).sum::<f64>() / n
            };
            assert!((mean(|r| r.input) / input - 1.0).abs() < 0.02, "{file}");
            assert!((mean(|r| r.output) / output - 1.0).abs() < 0.05, "{file}");
        }
    }
}
