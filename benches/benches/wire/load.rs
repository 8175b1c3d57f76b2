//! A load on several connections at once.

use std::io;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::client::{Address, Client, Load};

/// What a load cost.
#[derive(Debug)]
pub(crate) struct Sample {
    elapsed: Duration,
    bytes: f64,
    /// Sorted.
    times: Vec<Duration>,
}

impl Sample {
    pub(crate) fn gib(&self) -> f64 {
        self.bytes / f64::from(1 << 30)
    }

    pub(crate) fn mib_per_s(&self) -> f64 {
        self.bytes / f64::from(1 << 20) / self.elapsed.as_secs_f64()
    }

    #[expect(clippy::cast_precision_loss, reason = "requests are counted, not many")]
    pub(crate) fn requests_per_s(&self) -> f64 {
        self.times.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// How long `percent` of the requests took at most, in microseconds.
    pub(crate) fn percentile_us(&self, percent: usize) -> f64 {
        let place = (self.times.len() * percent / 100).min(self.times.len() - 1);
        self.times[place].as_secs_f64() * 1e6
    }
}

/// Connects first, then begins everywhere at once.
pub(crate) fn run(address: &Address, connections: usize, load: Load) -> io::Result<Sample> {
    let len = usize::try_from(load.len_bytes).expect("in memory");
    let payload = benches::noise(len);
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Client::connect(address)?);
    }
    let start = Barrier::new(connections + 1);
    let (outcomes, elapsed) = std::thread::scope(|scope| {
        let work = |mut client: Client| {
            let (start, payload) = (&start, &payload);
            scope.spawn(move || {
                start.wait();
                client.run(load, payload)
            })
        };
        let running: Vec<_> = clients.into_iter().map(work).collect();
        start.wait();
        let begin = Instant::now();
        let outcomes: Vec<_> = running.into_iter().map(|one| one.join()).collect();
        (outcomes, begin.elapsed())
    });
    let mut times = Vec::new();
    for outcome in outcomes {
        times.extend(outcome.map_err(|_| io::Error::other("a client panicked"))??);
    }
    times.sort_unstable();
    let requests = u32::try_from(times.len()).expect("a short run");
    let bytes = f64::from(load.len_bytes) * f64::from(requests);
    Ok(Sample {
        elapsed,
        bytes,
        times,
    })
}
