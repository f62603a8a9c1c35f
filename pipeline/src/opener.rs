//! The thread that opens segments ahead of the lanes, so that no lane waits for the flushes this
//! takes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use wirevault_format::{Interface, LinkType};
use wirevault_index::flow_table::{FlowOptions, FlowTable};
use wirevault_storage::{OpenRequest, OpenSegment, StorageError, Store};

use crate::status::lock;

/// How often a run says in the store that it is alive. The time between two signs is what a crash
/// leaves in doubt.
const HEARTBEAT: Duration = Duration::from_secs(1);

pub(crate) enum ToOpener {
    Open(OpenOrder),
    /// The answer to an earlier order is not wanted any more. It is there: orders are answered in
    /// turn.
    Release(Opened),
    /// A segment of this volume failed: the next ones open elsewhere, if another volume takes them.
    Suspect {
        volume: usize,
        why: String,
    },
}

pub(crate) struct OpenOrder {
    pub lane: u16,
    pub link_type: LinkType,
    pub interfaces: Arc<Vec<Interface>>,
    /// The stream has no flow table yet: one comes with the segment. Making it takes some ten
    /// milliseconds, which a lane that seals its own chunks does not have.
    pub table: Option<FlowOptions>,
    pub reply: Sender<Answer>,
}

/// A segment, and the flow table that was ordered with it.
pub(crate) type Answer = Result<(OpenSegment, Option<FlowTable>), StorageError>;

/// Where the answer to an order arrives.
pub(crate) type Opened = Receiver<Answer>;

/// Runs until every sealer is gone.
pub(crate) fn run(store: &Mutex<Store>, orders: &Receiver<ToOpener>) {
    loop {
        match orders.recv_timeout(HEARTBEAT) {
            Ok(ToOpener::Open(order)) => {
                let OpenOrder { lane, link_type, interfaces, table, reply } = order;
                let request = OpenRequest { lane, link_type, interfaces: &interfaces };
                let opened = lock(store).open_segment(request);
                if let Ok(open) = &opened {
                    let (volume, place, life) = (open.volume, open.place, open.entry.life);
                    tracing::debug!(lane, volume, place, %life, "a segment is open");
                }
                let answer = opened.map(|open| (open, table.map(FlowTable::new)));
                if let Err(unsent) = reply.send(answer)
                    && let Ok((open, _)) = unsent.into_inner()
                {
                    release(store, &open);
                }
            }
            Ok(ToOpener::Release(opened)) => {
                if let Ok(Ok((open, _))) = opened.try_recv() {
                    release(store, &open);
                }
            }
            Ok(ToOpener::Suspect { volume, why }) => lock(store).suspect_volume(volume, &why),
            Err(RecvTimeoutError::Timeout) => {
                if let Err(error) = lock(store).heartbeat() {
                    tracing::error!("the sign of life could not be written: {error}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn release(store: &Mutex<Store>, open: &OpenSegment) {
    if let Err(error) = lock(store).release_segment(open) {
        tracing::error!(place = open.place, "an unused segment could not be released: {error}");
    }
}
