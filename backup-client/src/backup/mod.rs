//! One backup of one VM, from the look at the sources to the state that the next run starts from.

mod options;
mod progress;
mod report;
mod run;

pub use options::{BackupOptions, BackupType, DEFAULT_CONNECTIONS, Token};
pub use progress::{Progress, Silent};
pub use report::{BackupReport, DiskReport, HubCounters, Warning};
pub use run::backup;
