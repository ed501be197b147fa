use super::*;
use crate::serving::Traffic;
use psim_hardware::SourceError;

fn read(body: &str) -> Result<ServingWorkload, SourceError> {
    let text = format!("schema = 1\n[[tenant]]\n{body}\n");
    parse_workload("w.toml", &text, &mut |path| match path {
        "t.csv" => Ok("arrival_s,input_tokens,output_tokens\n1,10,3\n2,20,4\n".to_owned()),
        other => Err(format!("no file {other}")),
    })
}

#[test]
fn every_arrival_reads_and_keeps_its_rate() {
    for arrival in [
        "arrival = \"constant\"\nrate = 5.0",
        "arrival = \"poisson\"\nrate = 5.0",
        "arrival = \"gamma\"\nrate = 5.0\ncv = 2.0",
        "arrival = \"ramp\"\nfrom = 5.0\nto = 5.0\nover_s = 10.0",
        "arrival = \"diurnal\"\nrate = 5.0\npeak_ratio = 1.5\nperiod_s = 100.0",
    ] {
        let w =
            read(&format!("{arrival}\nrequests = 20000\ninput = {{ fixed = 8 }}\noutput = {{ fixed = 2 }}"))
                .unwrap();
        let traffic = Traffic::generate(&w, 3);
        assert_eq!(traffic.requests.len(), 20000);
        let rate = 20000.0 / traffic.requests[19999].arrival.seconds().0;
        assert!((rate / 5.0 - 1.0).abs() < 0.05, "{arrival}: {rate}");
        assert_eq!(traffic, Traffic::generate(&w, 3));
        assert_ne!(traffic.requests[0].input, 0);
    }
}

#[test]
fn traces_and_lengths() {
    let w = read("arrival = \"trace\"\ntrace = \"t.csv\"").unwrap();
    let traffic = Traffic::generate(&w, 0);
    assert_eq!((traffic.input_tokens(), traffic.output_tokens()), (30, 7));
    let w = read("arrival = \"poisson\"\nrate = 2.0\nlengths = \"t.csv\"\nrequests = 100").unwrap();
    assert!(
        Traffic::generate(&w, 0)
            .requests
            .iter()
            .all(|r| (r.input, r.output) == (10, 3) || (r.input, r.output) == (20, 4))
    );
    let faster = w.at_rate(8.0);
    assert_eq!(faster.rate(), Some(8.0));
}

#[test]
fn faults_point_at_their_line() {
    for (body, word) in [
        ("arrival = \"poison\"\nrate = 1.0", "not an arrival"),
        ("arrival = \"sessions\"", "not built"),
        ("arrival = \"poisson\"", "needs `rate`"),
        ("arrival = \"poisson\"\nrate = -1.0", "above zero"),
        ("arrival = \"poisson\"\nrate = 1.0", "no `input`"),
        ("arrival = \"poisson\"\nrate = 1.0\ninput = { fixed = 0 }\noutput = { fixed = 1 }", "outside"),
        ("arrival = \"trace\"\ntrace = \"x.csv\"", "no file"),
        ("arrival = \"burst\"\ninput = { fixed = 8 }\noutput = { fixed = 1 }\nslo = \"quick\"", "form"),
        ("arrival = \"burst\"\nspeed = 3", "unknown field"),
        (
            "arrival = \"burst\"\ninput = { fixed = 8 }\noutput = { fixed = 1 }\nsessions = { turns = { fixed = 2 }, think_s = -1.0 }",
            "think_s",
        ),
        (
            "arrival = \"closed-loop\"\nconcurrency = 2\ninput = { fixed = 8 }\noutput = { fixed = 1 }\nsessions = { turns = { fixed = 2 }, think_s = 1.0 }",
            "closed loop",
        ),
        (
            "arrival = \"burst\"\ninput = { fixed = 8 }\noutput = { fixed = 1 }\nadapters = { count = 0 }",
            "adapters",
        ),
    ] {
        let error = read(body).unwrap_err();
        assert!(error.message.contains(word), "{body}: {}", error.message);
        assert!(error.location.is_some(), "{body}");
    }
}

#[test]
fn keys_that_nothing_uses_are_refused() {
    let lengths = "input = { fixed = 8 }\noutput = { fixed = 1 }";
    for (body, word) in [
        (format!("arrival = \"burst\"\nrate = 3.0\n{lengths}"), "`rate` means nothing"),
        (format!("arrival = \"poisson\"\nrate = 3.0\ncv = 2.0\n{lengths}"), "`cv` means nothing"),
        (
            format!("arrival = \"closed-loop\"\nconcurrency = 2\nduration_s = 9.0\n{lengths}"),
            "requests, not after",
        ),
        (format!("arrival = \"trace\"\ntrace = \"t.csv\"\n{lengths}"), "`input` would not be used"),
        (format!("arrival = \"poisson\"\nrate = 1.0\nlengths = \"t.csv\"\n{lengths}"), "`input` would not"),
        ("arrival = \"trace\"\ntrace = \"t.csv\"\nprefix = { tokens = 5 }".to_owned(), "`prefix` would not"),
        (format!("arrival = \"posson\"\nrate = 3.0\n{lengths}"), "did you mean `poisson`"),
    ] {
        let error = read(&body).unwrap_err();
        assert!(error.message.contains(word), "{body}: {}", error.message);
        assert!(error.location.is_some(), "{body}");
    }
}

#[test]
fn a_trace_is_cut_and_brought_to_a_rate() {
    let first = read("arrival = \"trace\"\ntrace = \"t.csv\"\nduration_s = 0.5").unwrap();
    assert_eq!(Traffic::generate(&first, 0).requests.len(), 1);
    // Two requests a second apart: the mean rate is 2 / 1 s; at 4 a second the second comes after 0.5 s.
    let faster = read("arrival = \"trace\"\ntrace = \"t.csv\"\nrate = 4.0").unwrap();
    let traffic = Traffic::generate(&faster, 0);
    assert!((traffic.requests[1].arrival.seconds().0 - 0.5).abs() < 1e-9);
}

#[test]
fn conversations_count_every_turn_in_rate_and_lengths() {
    let w = read(
        "arrival = \"poisson\"\nrate = 2.0\ninput = { fixed = 100 }\noutput = { fixed = 50 }\n\
         sessions = { turns = { fixed = 3 }, think_s = 5.0 }",
    )
    .unwrap();
    assert!((w.rate().unwrap() - 6.0).abs() < 1e-9, "three requests an arrival");
    // Prompts of 100, 250 and 400 tokens.
    let (input, output) = w.mean_lengths();
    assert!((input - 250.0).abs() < 0.5 && (output - 50.0).abs() < 1e-9, "{input} {output}");
    assert!((w.session_span_s() - 10.0).abs() < 1e-9);
    let faster = w.at_rate(30.0);
    assert!((faster.rate().unwrap() - 30.0).abs() < 1e-9);
    assert_eq!(faster.tenants[0].arrival, Arrival::Poisson { rate: 10.0 });
}

#[test]
fn tenants_weigh_by_their_rates() {
    let mut w = ServingWorkload::fixed("a", Arrival::Poisson { rate: 9.0 }, 10, 1000, 10);
    w.tenants
        .push(ServingWorkload::fixed("b", Arrival::Poisson { rate: 1.0 }, 10, 2000, 110).tenants.remove(0));
    let (input, output) = w.mean_lengths();
    assert!((input - 1100.0).abs() < 1e-9 && (output - 20.0).abs() < 1e-9);
}
