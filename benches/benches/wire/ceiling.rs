//! The ceiling of the wire: large requests to devices that forget, and to devices that keep; how fast, and what the server
//! pays for them.

use nbd_server::proto::CommandCode;

use crate::client::Load;
use crate::load;
use crate::peers::{Running, Subject};
use crate::report::Case;

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;

/// Throughput and processor time by direction, size of a request, transport and number of connections.
pub(crate) fn cases(subjects: &[Subject], rounds: usize, mib: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, command, len_bytes) in [
        ("write 256 KiB", CommandCode::WRITE, 256 * KIB),
        ("write 32 MiB", CommandCode::WRITE, 32 * MIB),
        ("read 256 KiB", CommandCode::READ, 256 * KIB),
    ] {
        for (transport, is_unix) in [("unix", true), ("tcp", false)] {
            for connections in [1, 4] {
                let len = usize::try_from(len_bytes).expect("in memory");
                let load = Load {
                    command,
                    len_bytes,
                    in_flight: if len_bytes > MIB { 2 } else { 16 },
                    requests: (mib << 20).div_ceil(len * connections),
                };
                let measure = |running: &Running| {
                    let address = if is_unix { &running.unix } else { &running.tcp };
                    let before = running.cpu_seconds();
                    let sample = load::run(address, connections, load)?;
                    let cpu_ms = (running.cpu_seconds() - before) * 1e3;
                    Ok([sample.mib_per_s(), cpu_ms / sample.gib()])
                };
                let [speeds, costs] = Case::alternate(subjects, rounds, measure);
                let name = format!("{what}, {transport}, {connections} conn");
                cases.push(Case {
                    name: format!("{name}: cpu of the server"),
                    unit: "ms/GiB",
                    less: true,
                    figures: costs,
                });
                cases.push(Case {
                    name,
                    unit: "MiB/s",
                    less: false,
                    figures: speeds,
                });
            }
        }
    }
    cases
}
