//! Small requests: how many in a second, and how long each takes.

use nbd_server::proto::CommandCode;

use crate::client::Load;
use crate::load;
use crate::peers::Subject;
use crate::report::Case;

const BLOCK_BYTES: u32 = 4096;

/// Requests of 4 KiB in a second, 16 in flight.
pub(crate) fn rates(subjects: &[Subject], rounds: usize, requests: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, command) in COMMANDS {
        for connections in [1, 4] {
            let load = Load {
                command,
                len_bytes: BLOCK_BYTES,
                in_flight: 16,
                requests: requests / connections,
            };
            let [figures] = Case::alternate(subjects, rounds, |running| {
                load::run(&running.tcp, connections, load).map(|sample| [sample.requests_per_s()])
            });
            cases.push(Case {
                name: format!("{what} 4 KiB, tcp, {connections} conn, 16 in flight"),
                unit: "req/s",
                less: false,
                figures,
            });
        }
    }
    cases
}

/// How long a request of 4 KiB takes, with 1, 16 and 64 in flight.
pub(crate) fn latencies(subjects: &[Subject], rounds: usize, requests: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, command) in COMMANDS {
        for in_flight in [1, 16, 64] {
            let load = Load {
                command,
                len_bytes: BLOCK_BYTES,
                in_flight,
                requests: if in_flight == 1 {
                    requests / 4
                } else {
                    requests
                },
            };
            let figures = Case::alternate(subjects, rounds, |running| {
                let sample = load::run(&running.unix, 1, load)?;
                Ok(PERCENTILES.map(|percent| sample.percentile_us(percent)))
            });
            for (percent, figures) in PERCENTILES.into_iter().zip(figures) {
                cases.push(Case {
                    name: format!("{what} 4 KiB, unix, {in_flight} in flight, p{percent}"),
                    unit: "us",
                    less: true,
                    figures,
                });
            }
        }
    }
    cases
}

const COMMANDS: [(&str, CommandCode); 2] =
    [("write", CommandCode::WRITE), ("read", CommandCode::READ)];

const PERCENTILES: [usize; 3] = [50, 95, 99];
