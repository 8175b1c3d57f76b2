//! The hub's REST API as this client uses it.

mod client;
mod views;

pub(crate) use client::Hub;
pub(crate) use views::{
    BackupView, CompleteDisk, DiskReportView, NewVm, Report, StartBackup, VmDisk,
};
