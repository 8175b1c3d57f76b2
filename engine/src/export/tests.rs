//! Fencing in many random orders: what began before the fence ends before it, and nothing is applied after it.
//!
//! The device holds each write until the test lets it go, so that the test alone decides the order; nothing sleeps.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use bytes::Bytes;
use nbd_server::{ErrorCode, Export as _, ExportError, ExportName, Exports as _, Extent, Peer};
use tokio::sync::mpsc as async_mpsc;
use tokio::task::JoinHandle;

use super::device::{Device, DeviceError};
use super::live::LiveExport;
use super::registry::ExportRegistry;
use super::session::OpenExport;

const ORDERS: u64 = 400;
const STEPS: usize = 60;
const SIZE: u64 = 1 << 20;

/// Keeps each write until it is let go; the offset of a write is its name.
#[derive(Default)]
struct Held {
    state: Mutex<State>,
    begun: Option<async_mpsc::Sender<u64>>,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<u64, mpsc::SyncSender<()>>,
    applied: Vec<u64>,
    /// Nothing may be under way, and nothing may come.
    sealed: bool,
}

impl Held {
    fn new() -> (Arc<Self>, async_mpsc::Receiver<u64>) {
        let (begun, told) = async_mpsc::channel(STEPS);
        let held = Self {
            state: Mutex::default(),
            begun: Some(begun),
        };
        (Arc::new(held), told)
    }

    /// Lets a write end.
    fn let_go(&self, offset: u64) {
        let waiting = self.state.lock().unwrap().waiting.remove(&offset);
        waiting.expect("it is held").send(()).unwrap();
    }

    fn seal(&self, context: &str) {
        let mut state = self.state.lock().unwrap();
        assert!(
            state.waiting.is_empty(),
            "under way while sealed: {context}"
        );
        state.sealed = true;
    }

    fn applied(&self) -> Vec<u64> {
        let mut applied = self.state.lock().unwrap().applied.clone();
        applied.sort_unstable();
        applied
    }
}

impl Device for Held {
    fn size_bytes(&self) -> u64 {
        SIZE
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn write(&self, offset: u64, _: &[u8]) -> Result<(), DeviceError> {
        let (go, wait) = mpsc::sync_channel(1);
        {
            let mut state = self.state.lock().unwrap();
            assert!(!state.sealed, "a write begins after the seal");
            state.waiting.insert(offset, go);
        }
        let begun = self.begun.as_ref().unwrap();
        begun.blocking_send(offset).unwrap();
        wait.recv().unwrap();
        let mut state = self.state.lock().unwrap();
        assert!(!state.sealed, "a write ends after the seal");
        state.applied.push(offset);
        Ok(())
    }

    fn zero(&self, offset: u64, _: u64, _: bool) -> Result<(), DeviceError> {
        self.write(offset, &[])
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn extents(&self, _: u64, len_bytes: u64) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent::flat(len_bytes, false, false)])
    }
}

/// A write of a client: whether the client still waits for its answer.
struct Asked {
    answer: Option<JoinHandle<Result<(), ExportError>>>,
}

async fn open(registry: &ExportRegistry) -> OpenExport {
    let peer = Peer {
        address: "a test".to_owned(),
        name: None,
    };
    let name = ExportName::new("disk").unwrap();
    registry.open(&name, &peer).await.expect("it is registered")
}

/// Whether a future is done, without waiting for it.
async fn polled(mut future: Pin<&mut impl Future<Output = ()>>) -> bool {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

fn is_refused(outcome: &Result<(), ExportError>) -> bool {
    matches!(outcome, Err(error) if error.code == ErrorCode::SHUTDOWN)
}

/// Sends a write or a trim; it is either held by the device or refused when this returns.
async fn ask(
    session: Arc<OpenExport>,
    offset: u64,
    begun: &mut async_mpsc::Receiver<u64>,
    trim: bool,
) -> Result<Asked, Result<(), ExportError>> {
    let mut answer = tokio::spawn(async move {
        if trim {
            let len_bytes = 512;
            let range = nbd_server::ByteRange { offset, len_bytes };
            session.trim(range).await
        } else {
            session.write(offset, Bytes::from_static(b"x")).await
        }
    });
    tokio::select! {
        held = begun.recv() => {
            assert_eq!(held, Some(offset));
            Ok(Asked { answer: Some(answer) })
        }
        outcome = &mut answer => Err(outcome.unwrap()),
    }
}

/// One order: clients write, vanish and come again; at some step the fence closes, then the name is given to another device.
async fn one_order(seed: u64) -> (usize, usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let context = format!("seed={seed}");
    let registry = ExportRegistry::default();
    let (device, mut begun) = Held::new();
    let (next_device, mut next_begun) = Held::new();
    let live = Arc::new(LiveExport::new(Arc::clone(&device) as _, SIZE, None));
    registry.register("disk", Arc::clone(&live)).unwrap();
    let mut sessions = vec![Arc::new(open(&registry).await)];
    let mut asked: HashMap<u64, Asked> = HashMap::new();
    let (mut expected, mut refused) = (Vec::new(), 0);
    let fence_at = rng.usize(0..STEPS);
    let mut fence = pin!(live.stop_requests());
    let (mut closed, mut drained, mut sealed) = (false, false, false);
    for step in 0..STEPS {
        if step == fence_at {
            // From its first poll on the fence is closed, whoever is still inside.
            drained = polled(fence.as_mut()).await;
            registry.unregister("disk");
            closed = true;
        }
        match rng.u8(0..8) {
            0 if !closed => sessions.push(Arc::new(open(&registry).await)),
            // Its requests are not taken back: the thread that writes does not know.
            1 if sessions.len() > 1 => drop(sessions.swap_remove(rng.usize(0..sessions.len()))),
            2 => {
                if let Some(gone) = asked.values_mut().find(|asked| asked.answer.is_some()) {
                    gone.answer.take().unwrap().abort();
                }
            }
            3..5 => {
                let held: Vec<_> = asked.keys().copied().collect();
                if let Some(offset) = rng.choice(held) {
                    let write = asked.remove(&offset).unwrap();
                    device.let_go(offset);
                    expected.push(offset);
                    if let Some(answer) = write.answer {
                        answer
                            .await
                            .unwrap()
                            .expect("what was under way is applied");
                    }
                }
            }
            _ => {
                let session = Arc::clone(&sessions[rng.usize(0..sessions.len())]);
                let offset = 512 * step as u64;
                match ask(session, offset, &mut begun, rng.bool()).await {
                    Ok(write) => {
                        assert!(!closed, "begun after the fence: {context}");
                        asked.insert(offset, write);
                    }
                    Err(outcome) => {
                        assert!(closed && is_refused(&outcome), "{outcome:?} {context}");
                        refused += 1;
                    }
                }
            }
        }
        if closed && !drained {
            drained = polled(fence.as_mut()).await;
        }
        assert!(!drained || asked.is_empty(), "drained too soon: {context}");
        if drained && !sealed {
            device.seal(&context);
            sealed = true;
            let next = Arc::new(LiveExport::new(Arc::clone(&next_device) as _, SIZE, None));
            registry.register("disk", next).unwrap();
        }
    }
    for offset in asked.keys() {
        device.let_go(*offset);
        expected.push(*offset);
    }
    if !sealed {
        // A thread may still be on its way out: the fence knows.
        fence.as_mut().await;
        device.seal(&context);
        let next = Arc::new(LiveExport::new(Arc::clone(&next_device) as _, SIZE, None));
        registry.register("disk", next).unwrap();
    }
    // Sessions of before write nowhere, also not to the device that has the name now.
    for session in &sessions {
        let outcome = session.write(0, Bytes::from_static(b"x")).await;
        assert!(is_refused(&outcome), "{outcome:?} {context}");
    }
    let session = Arc::new(open(&registry).await);
    let write = ask(session, 4096, &mut next_begun, false).await;
    next_device.let_go(4096);
    let answer = write.ok().and_then(|write| write.answer).expect(&context);
    answer.await.unwrap().expect("the new device takes writes");
    assert_eq!(next_device.applied(), [4096], "{context}");
    expected.sort_unstable();
    assert_eq!(
        device.applied(),
        expected,
        "what was let go was applied before the seal: {context}"
    );
    (refused, expected.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_applied_after_the_fence_in_any_order() {
    let (mut refused, mut applied) = (0, 0);
    for seed in 0..ORDERS {
        let order = one_order(seed).await;
        refused += order.0;
        applied += order.1;
    }
    // What this is about did happen.
    assert!(
        refused > 1000 && applied > 1000,
        "refused={refused} applied={applied}"
    );
}
