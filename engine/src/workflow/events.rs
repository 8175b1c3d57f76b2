//! Tells live views what happens to backups. Nobody who tells ever waits for one who listens.

use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::hub::Hub;
use super::list::backup;
use crate::error::{Error, ErrorKind};
use crate::id::BackupId;
use crate::limits::{EVENTS_KEPT, SUBSCRIBERS_MAX};
use crate::model::{Backup, BackupChange, BackupEvent};

/// Where changes are told.
#[derive(Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<Arc<BackupEvent>>,
    ended: CancellationToken,
}

/// What a subscriber hears next.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// A backup has changed.
    Event(Arc<BackupEvent>),
    /// The subscriber was too slow: so many events are lost to it, and it should look at everything anew.
    Lost(u64),
}

/// The changes of all backups from the subscription on.
#[derive(Debug)]
pub struct Subscription {
    receiver: broadcast::Receiver<Arc<BackupEvent>>,
    ended: CancellationToken,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(EVENTS_KEPT),
            ended: CancellationToken::new(),
        }
    }
}

impl Events {
    /// Listens from now on.
    ///
    /// # Errors
    ///
    /// `Unavailable` with too many subscribers, or at the hub's end.
    pub(crate) fn subscribe(&self) -> Result<Subscription, Error> {
        let refused = |why: &str| Err(Error::new(ErrorKind::Unavailable, why, ""));
        if self.ended.is_cancelled() {
            return refused("hub is shutting down");
        }
        if self.sender.receiver_count() >= SUBSCRIBERS_MAX {
            return refused("too many live views");
        }
        Ok(Subscription {
            receiver: self.sender.subscribe(),
            ended: self.ended.clone(),
        })
    }

    /// Ends every subscription, and takes no new one.
    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    /// Whether anybody listens.
    pub(crate) fn is_heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Tells of a change.
    pub(crate) fn tell(&self, change: BackupChange, backup: Backup) {
        // An error says that nobody listens.
        let _ = self.sender.send(Arc::new(BackupEvent { change, backup }));
    }
}

impl Subscription {
    /// The next change; `None` when the hub ends.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Heard> {
        let received = tokio::select! {
            biased;
            received = self.receiver.recv() => received,
            () = self.ended.cancelled() => return None,
        };
        match received {
            Ok(event) => Some(Heard::Event(event)),
            Err(RecvError::Lagged(count)) => Some(Heard::Lost(count)),
            Err(RecvError::Closed) => None,
        }
    }
}

/// Tells of a change of a backup as it is now, if anybody listens.
pub(crate) async fn tell(hub: &Hub, change: BackupChange, id: &BackupId) {
    if !hub.events.is_heard() {
        return;
    }
    match backup(hub, id).await {
        Ok(backup) => hub.events.tell(change, backup),
        Err(error) => tracing::warn!(backup_id = %id, %change, %error, "live views were not told"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::tests::any_backup;

    #[tokio::test]
    async fn a_slow_subscriber_is_told_what_it_lost() {
        let events = Events::default();
        let mut slow = events.subscribe().unwrap();
        let told = |n: usize| Backup {
            bytes_transferred: n as u64,
            ..any_backup()
        };
        for n in 0..EVENTS_KEPT + 3 {
            events.tell(BackupChange::Progress, told(n));
        }
        let Some(Heard::Lost(lost)) = slow.next().await else {
            panic!("events were lost");
        };
        assert_eq!(lost, 3);
        for n in 3..EVENTS_KEPT + 3 {
            let Some(Heard::Event(event)) = slow.next().await else {
                panic!("event {n} is there");
            };
            assert_eq!(event.backup.bytes_transferred, n as u64);
        }
        events.end();
        assert_eq!(slow.next().await, None);
        assert!(events.subscribe().is_err());
    }

    #[test]
    fn there_are_only_so_many_subscribers() {
        let events = Events::default();
        assert!(!events.is_heard());
        let mut all: Vec<_> = (0..SUBSCRIBERS_MAX)
            .map(|_| events.subscribe().unwrap())
            .collect();
        assert_eq!(events.subscribe().unwrap_err().kind, ErrorKind::Unavailable);
        all.pop();
        assert!(events.subscribe().is_ok());
    }
}
