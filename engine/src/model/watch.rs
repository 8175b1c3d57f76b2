//! When a running backup's client counts as gone.
//!
//! A client that dies tells nobody, a tunnel that breaks is not noticed, and "started" says only that a process was
//! spawned. So the hub watches for signs: connections, requests, reports and calls. Between disks there may be no
//! connection, and while other disks are sent there may be no traffic on one: all disks of a backup are looked at together.

use std::time::Duration;

use crate::limits::{GONE_GRACE, STALL_TIMEOUT, START_TIMEOUT, WATCH_STEP_MAX};

/// How long a running backup may be without a sign of its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchLimits {
    /// From the start to the first sign of any kind.
    pub start_timeout: Duration,
    /// Without request, report or call, whether or not connections are open.
    pub stall_timeout: Duration,
    /// Without a connection after there was one, and without any other sign.
    pub gone_grace: Duration,
}

impl Default for WatchLimits {
    fn default() -> Self {
        Self {
            start_timeout: START_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
            gone_grace: GONE_GRACE,
        }
    }
}

/// The signs of a client, counted since the backup started: of all disks together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signs {
    /// Connections that were opened.
    pub opened: u64,
    /// Of those, connections that are open now.
    pub open: u64,
    /// Requests over NBD.
    pub requests: u64,
    /// Reports and other calls over HTTP.
    pub calls: u64,
}

/// Why a client counts as gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// It never came.
    NeverCame(Duration),
    /// It came, and then neither sent nor said anything.
    Stalled(Duration),
    /// Its connections are closed, and it did not come back.
    Gone(Duration),
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NeverCame(limit) => write!(
                f,
                "client never came: no connection, report or call since the start limit=start_timeout seconds={}",
                limit.as_secs()
            ),
            Self::Stalled(limit) => write!(
                f,
                "client stalled: no data, report or call limit=stall_timeout seconds={}",
                limit.as_secs()
            ),
            Self::Gone(limit) => write!(
                f,
                "client is gone: connections closed before every disk was completed limit=gone_grace seconds={}",
                limit.as_secs()
            ),
        }
    }
}

/// Watches one running backup. Time is given to it as it passes.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    last: Signs,
    /// Since the last sign of any kind.
    silent: Duration,
    /// Since there was a connection or any sign.
    alone: Duration,
}

impl Watch {
    /// Takes in the signs after some time has passed, and tells whether the client counts as gone. A long step counts as
    /// [`WATCH_STEP_MAX`]: the clock was set, or this machine slept, and a client could show no sign to a sleeping hub.
    pub fn look(
        &mut self,
        signs: Signs,
        passed: Duration,
        limits: &WatchLimits,
    ) -> Option<Silence> {
        let passed = passed.min(WATCH_STEP_MAX);
        let is_new = signs != self.last;
        self.last = signs;
        self.silent = if is_new {
            Duration::ZERO
        } else {
            self.silent + passed
        };
        self.alone = if is_new || signs.open > 0 {
            Duration::ZERO
        } else {
            self.alone + passed
        };
        let came = signs.opened > 0 || signs.calls > 0;
        if !came {
            return (self.silent >= limits.start_timeout)
                .then_some(Silence::NeverCame(limits.start_timeout));
        }
        if signs.opened > 0 && self.alone >= limits.gone_grace {
            return Some(Silence::Gone(limits.gone_grace));
        }
        (self.silent >= limits.stall_timeout).then_some(Silence::Stalled(limits.stall_timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: WatchLimits = WatchLimits {
        start_timeout: Duration::from_secs(100),
        stall_timeout: Duration::from_secs(300),
        gone_grace: Duration::from_secs(50),
    };

    fn signs(opened: u64, open: u64, requests: u64, calls: u64) -> Signs {
        Signs {
            opened,
            open,
            requests,
            calls,
        }
    }

    /// Seconds of `signs`, ten at a time, until the client counts as gone, or `None` after an hour.
    fn gone_after(watch: &mut Watch, signs: Signs) -> Option<(u64, Silence)> {
        let mut seconds = 0;
        while seconds < 3600 {
            seconds += 10;
            if let Some(silence) = watch.look(signs, Duration::from_secs(10), &LIMITS) {
                return Some((seconds, silence));
            }
        }
        None
    }

    #[test]
    fn a_client_that_never_comes() {
        let silence = Silence::NeverCame(LIMITS.start_timeout);
        assert_eq!(
            gone_after(&mut Watch::default(), signs(0, 0, 0, 0)),
            Some((100, silence))
        );
    }

    #[test]
    fn a_client_that_calls_and_never_connects_has_stalled() {
        let silence = Silence::Stalled(LIMITS.stall_timeout);
        assert_eq!(
            gone_after(&mut Watch::default(), signs(0, 0, 0, 1)),
            Some((310, silence))
        );
    }

    #[test]
    fn open_connections_without_traffic_stall() {
        let mut watch = Watch::default();
        let silence = Silence::Stalled(LIMITS.stall_timeout);
        assert_eq!(
            gone_after(&mut watch, signs(3, 3, 9, 2)),
            Some((310, silence))
        );
    }

    #[test]
    fn closed_connections_have_a_grace() {
        let mut watch = Watch::default();
        for _ in 0..20 {
            assert_eq!(
                watch.look(signs(2, 2, 7, 1), Duration::from_secs(10), &LIMITS),
                None
            );
        }
        let silence = Silence::Gone(LIMITS.gone_grace);
        assert_eq!(
            gone_after(&mut watch, signs(2, 0, 7, 1)),
            Some((60, silence))
        );
    }

    #[test]
    fn every_sign_counts() {
        for step in [
            signs(1, 0, 0, 0),
            signs(1, 1, 0, 0),
            signs(0, 0, 1, 0),
            signs(0, 0, 0, 1),
        ] {
            let mut watch = Watch::default();
            let mut now = signs(1, 0, 0, 0);
            for _ in 0..100 {
                now = Signs {
                    opened: now.opened + step.opened,
                    open: now.open + step.open,
                    requests: now.requests + step.requests,
                    calls: now.calls + step.calls,
                };
                assert_eq!(
                    watch.look(now, Duration::from_secs(40), &LIMITS),
                    None,
                    "{step:?}"
                );
            }
        }
    }

    #[test]
    fn a_clock_that_jumps_kills_nobody() {
        let mut watch = Watch::default();
        assert_eq!(
            watch.look(signs(0, 0, 0, 0), Duration::from_secs(1 << 30), &LIMITS),
            None
        );
        let defaults = WatchLimits::default();
        for limit in [
            defaults.start_timeout,
            defaults.stall_timeout,
            defaults.gone_grace,
        ] {
            assert!(limit > WATCH_STEP_MAX);
        }
    }
}
