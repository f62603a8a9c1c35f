//! What a line says.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::certificate::Erasure;

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts from 0, without a hole.
    pub number: u64,
    /// Unix time, ns. The machine's clock may be set back; the order is that of the numbers.
    pub time_ns: u64,
    /// By whom.
    pub who: Who,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The recorder itself.
    Recorder,
    /// A user of this machine, as the kernel attests it (`SO_PEERCRED`).
    User {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// Somebody with a certificate that an authority of the configuration vouches for.
    Certificate {
        /// Its subject, as RFC 4514 writes it; empty if it has none.
        subject: String,
        /// A name that stands in it, as the configuration writes those (`san:NAME`): the one that
        /// the rule names, unless that is one of many's; nothing in logs of earlier releases.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Who vouches for it; nothing in logs of earlier releases.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        issuer: Option<String>,
        /// Its serial number, hex.
        serial: String,
        /// Address that the connection came from.
        address: String,
    },
    /// Somebody whom neither the kernel nor a certificate named.
    Unknown,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recorder => write!(f, "recorder"),
            Self::User { uid, .. } => write!(f, "user {uid}"),
            Self::Certificate { subject, name, address, .. } => {
                let name = name.as_deref().filter(|_| subject.is_empty());
                write!(f, "{} at {address}", name.unwrap_or(subject))
            }
            Self::Unknown => write!(f, "unknown"),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A recorder began.
    Started {
        /// Store id, hex.
        store: String,
        /// Release of the program.
        version: String,
        /// SHA-256 of the text of its configuration, hex; nothing in logs of earlier releases.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        config: Option<String>,
        /// The key that the store is sealed with, as its provider names it; nothing in a plain
        /// store.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// Fresh keys cannot be had, or can be again.
    Keys {
        /// Why they cannot; nothing once they can.
        trouble: Option<String>,
    },
    /// The configuration was read again while it ran.
    Reloaded {
        /// SHA-256 of its text, hex; nothing if it could not be read.
        config: Option<String>,
        /// Keys that changed, and hold from here on; none if it was refused.
        changed: Vec<String>,
        /// Why all of it was refused, and the old one goes on.
        refused: Option<String>,
    },
    /// A recorder ended well. One that was killed leaves no such line.
    Stopped,
    /// Packets or flows were asked for. It stands here before the first byte of the answer goes.
    Asked {
        /// `query`, `flows` or `tail`.
        verb: String,
        /// The question: a JSON object of the API.
        question: serde_json::Value,
    },
    /// An answer ended.
    Answered {
        /// Number of the entry with the question.
        asked: u64,
        /// How it ended.
        outcome: Outcome,
        /// Packets or flows in the answer; nothing where it broke off.
        count: Option<u64>,
        /// Bytes that were made for the reader: he got no more.
        bytes: u64,
    },
    /// Somebody asked for what he may not have.
    Denied {
        /// Method and path.
        request: String,
        /// Why not.
        why: String,
        /// Denials since the last such entry that have none of their own: one a second has.
        others: u64,
    },
    /// A segment is given up or deleted: this stands here before its key and its bytes go.
    Deleted {
        /// Ordinal in the store.
        segment: u64,
        /// Life id, hex.
        life: String,
        /// Why: `quota`, `rule NAME`, or `by hand`.
        reason: String,
        /// Packets in it.
        packets: u64,
        /// Packet time of the first and of the last packet, Unix ns.
        times_ns: Option<(u64, u64)>,
    },
    /// Deleted segments cannot be read again from here on; their space is given back next.
    Forgotten(Erasure),
    /// A segment and its key lie in the object tier, read back. What lies on its volume may go from
    /// here on, without another entry.
    Tiered {
        /// Ordinal in the store.
        segment: u64,
        /// Life id, hex.
        life: String,
        /// Why: `rule NAME`, or `drain`.
        reason: String,
        /// Where: the place in words.
        place: String,
        /// Bytes of its object.
        bytes: u64,
        /// CRC32C of its object, hex.
        crc: String,
    },
    /// A volume that failed is replaced by an empty one: this stands here before.
    Replaced {
        /// Its number.
        volume: u16,
        /// Its path.
        was: String,
        /// That of the new one.
        path: String,
    },
    /// A store is told where one of its volumes is now: this stands here before.
    Adopted {
        /// Its number.
        volume: u16,
        /// The path that the store knew.
        was: String,
        /// Its path from here on.
        path: String,
    },
    /// A volume is ended: this stands here before its tables and its keys are overwritten. What was
    /// on it follows as deletions, once it is gone.
    Retired {
        /// Its number.
        volume: u16,
        /// Its path.
        path: String,
        /// Closed segments that it holds.
        segments: u64,
        /// How the rest is to be erased; whether the device does that is not known yet.
        how: String,
    },
    /// Capture files begin to come into the store: this stands here before their first packet.
    Importing {
        /// Their names, as they were given.
        files: Vec<String>,
    },
    /// An import ended. One that was killed, or that a device ended, leaves no such line.
    Imported {
        /// Number of the entry with the files.
        began: u64,
        /// Packets read from the files.
        packets: u64,
        /// Packets of them that are durable.
        stored: u64,
        /// Everything in the files is in the store.
        whole: bool,
    },
    /// Something may not be forgotten from here on.
    HoldAdded {
        /// Number of the hold.
        hold: u32,
        /// Its name.
        name: String,
        /// What is held.
        filter: String,
        /// From this packet time on, Unix ns.
        since_ns: Option<u64>,
        /// Up to this packet time, Unix ns.
        until_ns: Option<u64>,
        /// Why.
        reason: Option<String>,
    },
    /// Chunks of a segment were copied for a hold.
    Held {
        /// Number of the hold.
        hold: u32,
        /// Ordinal of the segment that they were copied from.
        segment: u64,
        /// Ordinal of the copy.
        copy: u64,
        /// Life id of the copy, hex.
        life: String,
        /// Packets in the copy.
        packets: u64,
        /// Chunks in it.
        chunks: u32,
    },
    /// A hold is released: its copies are deleted next, each deletion with an entry of its own.
    HoldReleased {
        /// Number of the hold.
        hold: u32,
        /// Its name.
        name: String,
    },
    /// It stands differently with the key of the store, which a service keeps.
    KeyCondition {
        /// Name of the key at its service.
        key: String,
        /// `ready`, `waiting`, `exhausted` or `revoked`.
        condition: String,
        /// What the service says.
        why: String,
    },
    /// The next epoch key took over, and the key rings were written again.
    KeyTurned {
        /// Name of the key that it hangs from.
        key: String,
    },
    /// A checkpoint of the state is taken: this stands here, and so in it, before it is written.
    Checkpoint {
        /// Its number.
        checkpoint: u64,
        /// Folder that it is written to.
        folder: String,
    },
    /// The log, and what else was in a checkpoint, was put back; the next line follows the last one
    /// that the checkpoint has.
    Restored {
        /// Number of the checkpoint.
        checkpoint: u64,
        /// Store that it is of, hex.
        store: String,
        /// Segments of that store that are gone with its volumes.
        lost_segments: u64,
    },
    /// A backup of the state was ordered, or came to an end.
    Backup {
        /// The last checkpoint before the order.
        checkpoint: u64,
        /// The service's name for it; nothing before it took the order.
        job: Option<String>,
        /// `ordered`, `started`, `refused`, `completed`, `failed` or `unknown`.
        state: String,
        /// Why, if it came to nothing.
        why: Option<String>,
    },
    /// The cloud announces that the machine may go away.
    Notice {
        /// `spot`, `rebalance`, `maintenance` or `scaling`.
        kind: String,
        /// The cloud's words.
        text: String,
    },
    /// Segments were closed and the state saved because of that.
    Drained {
        /// Segments that were open and are closed.
        closed: u64,
        /// Segments that did not close in time.
        left: u64,
        /// The checkpoint behind it, if one could be taken.
        checkpoint: Option<u64>,
    },
    /// A service made a code of the log's head. Only who may use its key can make another one.
    Anchored {
        /// Number of the entry that was the last one then.
        last: u64,
        /// Hash of its line, hex.
        hash: String,
        /// When, Unix ns, as it stands in the message.
        made_ns: u64,
        /// The service's name for the key.
        key: String,
        /// HMAC-SHA-256, hex, of the message that [`codes`](crate::audit::codes) describes.
        mac: String,
    },
    /// The log ended in a part of a line when it was opened, which was cut off: a crash.
    Cut {
        /// Bytes cut off.
        bytes: u64,
    },
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All of it was handed over, and it lacks nothing.
    Complete,
    /// All of it was handed over; it says what it lacks.
    Incomplete,
    /// It failed, or nobody took the rest.
    BrokenOff,
    /// The question was refused: a filter that does not compile, for one.
    Refused,
    /// A live view, which has no end of its own: its reader went, or the recorder stopped.
    Left,
}

impl Outcome {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::BrokenOff => "broken off",
            Self::Refused => "refused",
            Self::Left => "left",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_without_a_subject_goes_by_its_name_and_earlier_logs_are_read() {
        let (serial, address) = ("01".to_owned(), "[::1]:7".to_owned());
        let (name, issuer) = (Some("san:probe".to_owned()), Some("OU=Fleet".to_owned()));
        let who = Who::Certificate { subject: String::new(), name, issuer, serial, address };
        assert_eq!(who.to_string(), "san:probe at [::1]:7");
        let text = serde_json::to_string(&who).unwrap();
        assert_eq!(serde_json::from_str::<Who>(&text).unwrap(), who);
        let earlier = r#"{"certificate":{"subject":"CN=a","serial":"01","address":"[::1]:7"}}"#;
        let read: Who = serde_json::from_str(earlier).unwrap();
        assert_eq!(read.to_string(), "CN=a at [::1]:7");
        assert_eq!(serde_json::to_string(&read).unwrap(), earlier);
    }
}
