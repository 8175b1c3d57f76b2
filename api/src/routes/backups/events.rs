//! `GET /backups/events` and `GET /backups/{backup_id}/events`.

use std::convert::Infallible;

use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use engine::{BackupId, Heard, Subscription};
use futures_util::stream::{self, Stream};

use crate::error::{Backups, Refused};
use crate::extract::stored_backup_id;
use crate::limits::HEARTBEAT;
use crate::routes::Api;
use crate::views::{BackupView, BackupsFailure, LostView};

/// What happens to backups, as server-sent events, from now on: `started`, `progress`, `disk_completed`, `completed`,
/// `failed`, `cancelled`, `deleted`, each with the backup. `lost` says that this listener was too slow and should list
/// everything anew. Comments keep the connection alive.
#[utoipa::path(
    get,
    path = "/backups/events",
    operation_id = "backup_events",
    tag = "backups",
    responses(
        (status = 200, description = "events without end", body = BackupView, content_type = "text/event-stream"),
        (status = 503, description = "too many listeners", body = BackupsFailure),
    )
)]
pub(crate) async fn all(
    State(api): State<Api>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refused<Backups>> {
    let feed = Feed {
        subscription: api.engine.subscribe()?,
        first: None,
        only: None,
        is_over: false,
    };
    Ok(answer(feed))
}

/// What happens to one backup: first `state` with the backup as it is, then its events, until it has ended.
#[utoipa::path(
    get,
    path = "/backups/{backup_id}/events",
    operation_id = "one_backups_events",
    tag = "backups",
    params(("backup_id" = String, Path, description = "Id of the backup")),
    responses(
        (status = 200, description = "events until the backup has ended", body = BackupView, content_type = "text/event-stream"),
        (status = 404, description = "no such backup", body = BackupsFailure),
        (status = 503, description = "too many listeners", body = BackupsFailure),
    )
)]
pub(crate) async fn one(
    State(api): State<Api>,
    Path(backup_id): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refused<Backups>> {
    let id = stored_backup_id(&backup_id)?;
    // In this order, so that nothing is missed in between.
    let subscription = api.engine.subscribe()?;
    let backup = api.engine.backup(&id).await?;
    let feed = Feed {
        subscription,
        is_over: backup.status.has_ended(),
        first: Some(event(STATE, BackupView::from(backup))),
        only: Some(id),
    };
    Ok(answer(feed))
}

/// What one listener is sent.
struct Feed {
    subscription: Subscription,
    first: Option<Event>,
    /// Events of other backups are left out.
    only: Option<BackupId>,
    /// Nothing follows `first`.
    is_over: bool,
}

impl Feed {
    async fn next(&mut self) -> Option<Event> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        while !self.is_over {
            match self.subscription.next().await? {
                Heard::Lost(count) => return Some(event(LOST, LostView { count })),
                Heard::Event(told) => {
                    let is_other = |only: &BackupId| *only != told.backup.id;
                    if self.only.as_ref().is_some_and(is_other) {
                        continue;
                    }
                    self.is_over = self.only.is_some() && told.change.is_end();
                    let view = BackupView::from(told.backup.clone());
                    return Some(event(told.change.as_str(), view));
                }
            }
        }
        None
    }
}

fn answer(feed: Feed) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let events = stream::unfold(feed, |mut feed| async move {
        let event = feed.next().await?;
        Some((Ok(event), feed))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("heartbeat"))
}

fn event(name: &str, view: impl serde::Serialize) -> Event {
    Event::default()
        .event(name)
        .json_data(view)
        .expect("views have string keys and no failing parts")
}

/// The backup as it is when a listener comes.
const STATE: &str = "state";
/// The listener was too slow.
const LOST: &str = "lost";
