use super::context::SelectedContext;
use super::types::{ExportInfo, ExportName, HeaderStyle, TransmissionFlags};

/// What both sides agreed. It never changes for the life of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// The export, as the client named it.
    pub name: ExportName,
    /// What the export said of itself at that moment.
    pub info: ExportInfo,
    /// What the client was told that the export can do.
    pub flags: TransmissionFlags,
    /// How requests and replies begin.
    pub style: HeaderStyle,
    /// The contexts that block status is about; empty when the client asked for none.
    pub contexts: Vec<SelectedContext>,
}

/// The flags that an export with this info offers.
pub(crate) fn transmission_flags(
    info: &ExportInfo,
    style: HeaderStyle,
    contexts_selected: bool,
) -> TransmissionFlags {
    use TransmissionFlags as F;
    let filter = contexts_selected && style == HeaderStyle::Extended;
    F::HAS_FLAGS
        .with(F::SEND_FLUSH)
        .with(F::SEND_FUA)
        .with(F::SEND_CACHE)
        .with_if(info.read_only, F::READ_ONLY)
        .with_if(!info.read_only, F::SEND_TRIM.with(F::SEND_WRITE_ZEROES))
        .with_if(!info.read_only && info.fast_zero, F::SEND_FAST_ZERO)
        .with_if(style.has_chunks(), F::SEND_DF)
        .with_if(info.multi_conn, F::CAN_MULTI_CONN)
        .with_if(filter, F::BLOCK_STATUS_PAYLOAD)
}
