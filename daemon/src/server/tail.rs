//! The live view: packets as they pass, before they are sealed, as pcapng without end.
//!
//! What a slow reader misses, and every gap that a lane tells of, is a comment in an Interface
//! Statistics Block at the place where it happened. The stream begins at once, with the interface
//! that is being recorded if all are of one link type: readers wait for both.

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use wirevault_format::gap::GAP_BYTES;
use wirevault_format::limits::SNAPLEN_MAX;
use wirevault_format::pcapng::{
    self, BLOCK_EPB, BLOCK_LOCAL, Blocks, Epb, EpbParts, put_epb, put_idb, put_isb_comment, put_shb,
};
use wirevault_format::{Gap, Interface, LinkType};
use wirevault_lifecycle::audit::Outcome;
use wirevault_packet::bpf::Program;
use wirevault_pipeline::{Missed, TailChunk};
use wirevault_query::filter;

use crate::api::PCAPNG_TYPE;
use crate::lifecycle::audit::Answered;
use crate::server::App;
use crate::server::access::Asker;
use crate::server::answers::{self, Failure, Pipe, STOPPED};

/// How often a quiet view looks whether its reader is still there.
const LOOK: Duration = Duration::from_millis(200);

/// Parameters of the request.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Parameters {
    filter: String,
}

/// Streams packets until the reader goes or the recorder stops.
pub(crate) async fn watch(
    State(app): State<App>,
    Extension(asker): Extension<Asker>,
    parameters: Result<Query<Parameters>, QueryRejection>,
) -> Response {
    let Query(Parameters { filter }) = match parameters {
        Ok(parameters) => parameters,
        Err(rejection) => return answers::error(rejection.status(), rejection.body_text()),
    };
    let watched = app.clone();
    let who = asker.who.clone();
    let filters = Filters { filter, within: asker.within.clone() };
    let follow = move |pipe: &mut Pipe, cancel: &AtomicBool| {
        watched.audit().answer(&who, ("tail", &filters), pipe, |pipe| {
            follow(&watched, filters.clone(), pipe, cancel)
        })
    };
    answers::stream(&app, app.tails(), ("GET /v1/tail", PCAPNG_TYPE), &asker, follow).await
}

/// What is shown, as the audit log has it.
#[derive(Debug, Clone, Default, Serialize)]
struct Filters {
    filter: String,
    /// What it is narrowed to.
    #[serde(skip_serializing_if = "String::is_empty")]
    within: String,
}

fn follow(
    app: &App,
    filters: Filters,
    pipe: &mut Pipe,
    cancel: &AtomicBool,
) -> Result<Answered, Failure> {
    let Some(pipeline) = app.pipeline() else {
        return Err(Failure::Failed(STOPPED.to_owned()));
    };
    let mut encoder = Encoder::new(filters);
    // Link types that are being recorded now; a filter that does not fit one is refused at once.
    let catalog = pipeline.catalog();
    let live: Vec<_> = catalog.segments.iter().filter(|segment| segment.is_live()).collect();
    encoder.check(live.iter().map(|live| live.entry.link_type))?;
    let one_link_type =
        live.windows(2).all(|pair| pair[0].entry.link_type == pair[1].entry.link_type);
    if let Some(Ok(reader)) = live.first().filter(|_| one_link_type).map(|live| live.open()) {
        reader.interfaces().first().map(|interface| encoder.number(interface));
    }
    let chunks = pipeline.tail().subscribe();
    drop((catalog, pipeline));
    let mut left = pipe.write_all(encoder.take()).and_then(|()| pipe.flush()).is_err();
    while !left && !cancel.load(Ordering::Relaxed) {
        match chunks.recv_timeout(LOOK) {
            Ok(chunk) => {
                encoder.chunk(&chunk)?;
                left = pipe.write_all(encoder.take()).is_err();
            }
            Err(error) if error.is_timeout() => {}
            Err(_) => break,
        }
    }
    Ok(Answered { outcome: Outcome::Left, count: encoder.packets })
}

/// Turns copies of chunks into one pcapng stream.
struct Encoder {
    filters: Filters,
    programs: HashMap<LinkType, Program>,
    interfaces: Vec<Interface>,
    last_ns: u64,
    missed_packets: u64,
    packets: u64,
    out: Vec<u8>,
    taken: bool,
}

impl Encoder {
    fn new(filters: Filters) -> Self {
        let mut out = Vec::new();
        put_shb(&mut out, concat!("wirevault ", env!("CARGO_PKG_VERSION")));
        Self {
            filters,
            programs: HashMap::new(),
            interfaces: Vec::new(),
            last_ns: 0,
            missed_packets: 0,
            packets: 0,
            out,
            taken: false,
        }
    }

    /// What was encoded since the last call.
    fn take(&mut self) -> &[u8] {
        self.taken = true;
        &self.out
    }

    /// Compiles the filter for these link types; Ethernet stands for none.
    fn check(&mut self, link_types: impl Iterator<Item = LinkType>) -> Result<(), Failure> {
        let mut link_types: Vec<_> = link_types.collect();
        if link_types.is_empty() {
            link_types.push(LinkType::ETHERNET);
        }
        link_types.into_iter().try_for_each(|link_type| self.compile(link_type))
    }

    fn compile(&mut self, link_type: LinkType) -> Result<(), Failure> {
        if !self.programs.contains_key(&link_type) {
            let program =
                filter::compile_within(&self.filters.filter, &self.filters.within, link_type);
            let program = program.map_err(|error| Failure::Refused(error.to_string()))?;
            self.programs.insert(link_type, program);
        }
        Ok(())
    }

    fn chunk(&mut self, chunk: &TailChunk) -> Result<(), Failure> {
        if std::mem::take(&mut self.taken) {
            self.out.clear();
        }
        self.compile(chunk.link_type)?;
        if chunk.missed.chunks > 0 {
            let Missed { chunks, packets } = chunk.missed;
            self.missed_packets += packets;
            let all = self.missed_packets;
            let text = format!(
                "wirevault: this reader was too slow and missed {chunks} chunks with {packets} \
                 packets, as counted before its filter; {all} since it began"
            );
            self.comment(chunk, &text);
        }
        for block in Blocks::new(&chunk.payload) {
            let Ok(block) = block else { break };
            if block.kind == BLOCK_EPB {
                if let Ok(packet) = Epb::parse(&block) {
                    self.packet(chunk, &packet);
                }
            } else if block.kind & BLOCK_LOCAL != 0 && block.total_bytes == GAP_BYTES {
                let bytes = &chunk.payload[block.offset..block.offset + block.total_bytes];
                if let Ok(gap) = Gap::decode(bytes) {
                    self.comment(chunk, &gap_text(chunk.lane, &gap));
                }
            }
        }
        Ok(())
    }

    fn packet(&mut self, chunk: &TailChunk, packet: &Epb<'_>) {
        let Some(program) = self.programs.get(&chunk.link_type) else { return };
        if program.run(packet.data, packet.orig_len) == 0 {
            return;
        }
        let Some(interface) = chunk.interfaces.get(packet.interface_id as usize) else { return };
        self.last_ns = packet.ts_ns;
        let parts = EpbParts {
            interface_id: self.number(interface),
            ts_ns: packet.ts_ns,
            orig_len: packet.orig_len,
            data: packet.data,
            vlan: None,
            flags: packet.flags,
            raw_options: packet.options,
        };
        let at = self.out.len();
        self.out.resize(at + parts.block_bytes(), 0);
        let written = put_epb(&mut self.out, at, &parts).unwrap_or(0);
        self.out.truncate(at + written);
        self.packets += 1;
    }

    fn comment(&mut self, chunk: &TailChunk, text: &str) {
        // A chunk without a packet may have no interface either.
        let unnamed = Interface::unnamed(chunk.link_type);
        let number = self.number(chunk.interfaces.first().unwrap_or(&unnamed));
        put_isb_comment(&mut self.out, number, self.last_ns, text);
    }

    /// Number of an interface in this stream; a new one is described first.
    fn number(&mut self, interface: &Interface) -> u32 {
        let known = self.interfaces.iter().position(|known| known == interface);
        known.unwrap_or_else(|| {
            put_idb(&mut self.out, interface, SNAPLEN_MAX);
            self.interfaces.push(interface.clone());
            self.interfaces.len() - 1
        }) as u32
    }
}

fn gap_text(lane: u16, gap: &Gap) -> String {
    let packets = gap.packets.map_or("packets unknown".to_owned(), |n| format!("{n} packets"));
    let from = wirevault_query::time::rfc3339(gap.from_ns);
    let until = gap.until_ns.map_or("on".to_owned(), wirevault_query::time::rfc3339);
    format!("wirevault: gap on lane {lane} from {from} to {until}: {}, {packets}", gap.cause)
}

const _: () = assert!(pcapng::STREAM_INTERFACES_MAX >= 64, "numbers stay far below u32::MAX");

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wirevault_format::Cause;
    use wirevault_format::pcapng::{BLOCK_IDB, BLOCK_ISB, BLOCK_SHB};

    use super::*;

    fn epb(out: &mut Vec<u8>, ts_ns: u64, data: &[u8]) {
        let parts = EpbParts {
            interface_id: 0,
            ts_ns,
            orig_len: data.len() as u32,
            data,
            vlan: None,
            flags: Some(1),
            raw_options: &[],
        };
        let at = out.len();
        out.resize(at + parts.block_bytes(), 0);
        put_epb(out, at, &parts).unwrap();
    }

    fn chunk(name: &str, payload: Vec<u8>, missed: u64) -> TailChunk {
        let mut interface = Interface::unnamed(LinkType::ETHERNET);
        interface.name = Some(name.to_owned());
        let interfaces = Arc::new(vec![interface]);
        let missed = Missed { chunks: missed, packets: 10 * missed };
        TailChunk { interfaces, link_type: LinkType::ETHERNET, lane: 3, payload, missed }
    }

    /// 60 bytes of ARP or of an unknown protocol.
    fn frame(arp: bool) -> Vec<u8> {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(if arp { &[8, 6] } else { &[0x88, 0xb5] });
        frame
    }

    fn filters(filter: &str) -> Filters {
        Filters { filter: filter.to_owned(), ..Filters::default() }
    }

    #[test]
    fn packets_are_filtered_and_absences_are_told() {
        let mut payload = Vec::new();
        epb(&mut payload, 7, &frame(true));
        epb(&mut payload, 8, &frame(false));
        let gap = Gap {
            cause: Cause::RingOverflow,
            from_ns: 1,
            until_ns: Some(2),
            packets: Some(5),
            cumulative: 5,
            sequence: 2,
            policy: None,
            pressure: None,
        };
        let mut bytes = [0; GAP_BYTES];
        gap.encode(&mut bytes);
        payload.extend_from_slice(&bytes);

        let mut encoder = Encoder::new(filters("arp"));
        encoder.chunk(&chunk("eth0", payload.clone(), 0)).unwrap();
        encoder.chunk(&chunk("eth1", payload, 4)).unwrap();
        let out = encoder.take().to_vec();
        let blocks: Vec<_> = Blocks::new(&out).map(Result::unwrap).collect();
        let kinds: Vec<_> = blocks.iter().map(|block| block.kind).collect();
        let one = [BLOCK_EPB, BLOCK_ISB];
        let expected = [&[BLOCK_SHB, BLOCK_IDB][..], &one, &[BLOCK_IDB, BLOCK_ISB], &one].concat();
        assert_eq!(kinds, expected);
        assert_eq!(Epb::parse(&blocks[6]).unwrap().interface_id, 1);
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains("gap on lane 3") && text.contains("ring_overflow, 5 packets"));
        assert!(text.contains("missed 4 chunks with 40 packets"));

        encoder.chunk(&chunk("eth0", Vec::new(), 0)).unwrap();
        assert!(encoder.take().is_empty(), "what was taken does not come again");
    }

    #[test]
    fn a_filter_that_does_not_compile_is_refused() {
        let mut encoder = Encoder::new(filters("tcpp"));
        assert!(matches!(encoder.check(std::iter::empty()), Err(Failure::Refused(_))));
        let mut encoder = Encoder::new(filters("ether host 00:11:22:33:44:55"));
        assert!(encoder.check([LinkType::ETHERNET].into_iter()).is_ok());
        assert!(encoder.check([LinkType::ETHERNET, LinkType::RAW].into_iter()).is_err());
    }
}
