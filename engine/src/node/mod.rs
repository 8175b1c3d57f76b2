//! The node appliance (SNA): what it is told, and the passwords that it needs.

mod client;
mod credential;

pub(crate) use client::{NodeClient, NodeStart, VcenterLogin};
pub(crate) use credential::{CredentialKey, no_key};
