//! The node appliance (SNA): what it is told, and the passwords that it needs.

mod client;
mod credential;
mod nodes;

pub(crate) use client::{NodeStart, VcenterLogin};
pub(crate) use credential::{CredentialKey, no_key};
pub(crate) use nodes::Nodes;
