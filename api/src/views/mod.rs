//! The JSON twins of the engine's types: the only shapes that leave the process.
//!
//! Field names, their order and what may be absent are the wire contract; the sentences here
//! become the OpenAPI document.

mod access;
mod audit;
mod backup;
mod chain;
mod disk;
mod failure;
mod health;
mod policy;
mod repository;
mod telemetry;
mod vm;

pub use access::{
    CreatedTokenView, LoginFailure, LoginView, RevokedTokenView, TokenListView, TokenView,
};
pub use audit::{AuditEntryView, AuditListView};
pub use backup::{
    BackupListView, BackupView, CancelledView, ChangeIdView, CompletedView, DeletedView,
    DiskResultView, LostView, StatsView,
};
pub use chain::ChainView;
pub use disk::{BackupDiskListView, BackupDiskView};
pub use failure::{
    AccessFailure, BackupsFailure, ProblemDetails, RepositoriesFailure, VmContextsFailure,
};
pub use health::HealthView;
pub use policy::{BackupCopyView, CopyAskedView, CopyRuleView, DeletedPolicyView, PolicyView};
pub use repository::{
    DeletedRepositoryView, RefreshedView, RepositoryAnswer, RepositoryInUse, RepositoryListView,
    RepositoryTestView, RepositoryView, StorageInfoView, StorageUseView, TestedStorageView,
};
pub use telemetry::TelemetryView;
pub use vm::{
    CredentialView, VmContextDetailView, VmContextListView, VmContextView, VmDiskListView,
    VmDiskView, VmRegisteredView,
};

use time::OffsetDateTime;
use time::macros::format_description;

/// `YYYY-MM-DDTHH:MM:SSZ` in UTC: the legacy layout, which is RFC 3339 as well.
pub(crate) fn utc(at: OffsetDateTime) -> String {
    let layout = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    at.to_offset(time::UtcOffset::UTC)
        .format(layout)
        .expect("the layout names only parts that a date and time has")
}

#[cfg(test)]
mod tests {
    use super::utc;
    use time::macros::datetime;

    #[test]
    fn timestamps_are_utc_in_whole_seconds() {
        let check = |at, expected| assert_eq!(utc(at), expected);
        check(datetime!(2025-10-10 08:09:07 UTC), "2025-10-10T08:09:07Z");
        check(
            datetime!(2025-10-10 01:30:00.999 +2),
            "2025-10-09T23:30:00Z",
        );
    }
}
