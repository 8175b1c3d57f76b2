//! Lets requests through until it is closed, and knows when the last one has left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// One writer generation of an export. A request enters before it touches the device and leaves when it is done;
/// after [`close_and_drain`](Self::close_and_drain) nobody enters again, and everybody has left.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Bit 0: closed. The rest: twice the number of passes that are out.
    state: AtomicUsize,
    emptied: Notify,
}

const CLOSED: usize = 1;
const ONE_PASS: usize = 2;

impl Gate {
    /// A pass for one request, unless the gate is closed. The pass moves to wherever the work is done: a dropped
    /// future does not take it back from the thread that still writes.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Pass> {
        let before = self.state.fetch_add(ONE_PASS, Ordering::AcqRel);
        // Made in either case: dropping it undoes the count.
        let pass = Pass {
            gate: Arc::clone(self),
        };
        (before & CLOSED == 0).then_some(pass)
    }

    /// Closes the gate for ever and waits until the last pass is given back. May be called many times.
    ///
    /// # Cancel safety
    ///
    /// The gate stays closed; only the waiting stops.
    pub(crate) async fn close_and_drain(&self) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        loop {
            // Created before looking, so that a pass given back in between still wakes it.
            let emptied = self.emptied.notified();
            if self.state.load(Ordering::Acquire) < ONE_PASS {
                return;
            }
            emptied.await;
        }
    }
}

/// The right of one request to touch the device.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let before = self.gate.state.fetch_sub(ONE_PASS, Ordering::AcqRel);
        if before == ONE_PASS | CLOSED {
            self.gate.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closing_waits_for_those_inside_and_lets_nobody_in() {
        let gate = Arc::new(Gate::default());
        let first = gate.enter().expect("the gate is open");
        let second = gate.enter().expect("the gate is open");
        let closing = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.close_and_drain().await }
        });
        while gate.enter().is_some() {
            tokio::task::yield_now().await;
        }
        assert!(!closing.is_finished());
        drop(first);
        tokio::task::yield_now().await;
        assert!(!closing.is_finished());
        drop(second);
        closing.await.unwrap();
        gate.close_and_drain().await;
        assert!(gate.enter().is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_request_is_inside_after_the_drain() {
        for _ in 0..200 {
            let gate = Arc::new(Gate::default());
            let inside = Arc::new(AtomicUsize::new(0));
            let writers: Vec<_> = (0..8)
                .map(|_| {
                    let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                    tokio::spawn(async move {
                        while let Some(pass) = gate.enter() {
                            inside.fetch_add(1, Ordering::SeqCst);
                            tokio::task::yield_now().await;
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(pass);
                        }
                    })
                })
                .collect();
            tokio::task::yield_now().await;
            gate.close_and_drain().await;
            assert_eq!(inside.load(Ordering::SeqCst), 0);
            for writer in writers {
                writer.await.unwrap();
            }
        }
    }
}
