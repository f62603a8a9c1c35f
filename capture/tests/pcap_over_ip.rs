//! Streams over TCP on the loopback interface: formats, ends, damage, waiting, several senders.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use wirevault_capture::{
    CaptureError, GapInfo, Packet, PcapOverIpOptions, PcapOverIpSource, Polled, Rendezvous, Source,
    SourceState, open_streams,
};
use wirevault_format::pcapng::{EpbParts, put_epb, put_idb, put_shb};
use wirevault_format::{Cause, Interface, LinkType};

const WAIT: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// Time in ns and bytes.
type Row = (u64, Vec<u8>);

fn rows(run: u32, count: u32) -> Vec<Row> {
    let row = |n: u32| {
        let data = (0..60 + n % 700).map(|i| (i + n + run) as u8).collect();
        (1_790_000_000_000_000_000 + u64::from(run) * 1_000_000_000 + u64::from(n) * 1000, data)
    };
    (0..count).map(row).collect()
}

fn pcap(big_endian: bool, nanoseconds: bool, rows: &[Row]) -> Vec<u8> {
    let word = |n: u32| if big_endian { n.to_be_bytes() } else { n.to_le_bytes() };
    let half = |n: u16| if big_endian { n.to_be_bytes() } else { n.to_le_bytes() };
    let (magic, unit) = if nanoseconds { (0xa1b2_3c4d, 1) } else { (0xa1b2_c3d4, 1000) };
    let mut out = [word(magic).to_vec(), [half(2), half(4)].concat()].concat();
    out.extend([0, 0, 262_144, 1].map(word).concat());
    for (ts_ns, data) in rows {
        let fraction = (ts_ns % 1_000_000_000 / unit) as u32;
        let len = data.len() as u32;
        out.extend([(ts_ns / 1_000_000_000) as u32, fraction, len, len].map(word).concat());
        out.extend_from_slice(data);
    }
    out
}

fn pcapng(name: &str, rows: &[Row]) -> Vec<u8> {
    let mut out = Vec::new();
    put_shb(&mut out, "wirevault test");
    let mut interface = Interface::unnamed(LinkType::ETHERNET);
    interface.name = Some(name.to_owned());
    put_idb(&mut out, &interface, 262_144);
    for (ts_ns, data) in rows {
        let parts = EpbParts {
            interface_id: 0,
            ts_ns: *ts_ns,
            orig_len: data.len() as u32,
            data,
            vlan: None,
            flags: None,
            raw_options: &[],
        };
        let at = out.len();
        out.resize(at + parts.block_bytes(), 0);
        put_epb(&mut out, at, &parts).unwrap();
    }
    out
}

fn listening(lanes: usize, interface: Option<&str>) -> (Vec<PcapOverIpSource>, SocketAddr) {
    let options = PcapOverIpOptions {
        rendezvous: Rendezvous::Listen("127.0.0.1:0".parse().unwrap()),
        interface: interface.map(str::to_owned),
    };
    let sources = open_streams(&options, lanes).unwrap();
    let address = sources[0].local_address().unwrap();
    (sources, address)
}

/// What a lane would have seen.
#[derive(Default)]
struct Seen {
    rows: Vec<Row>,
    names: Vec<Option<String>>,
    gaps: Vec<GapInfo>,
    errors: Vec<CaptureError>,
}

impl Seen {
    fn poll(&mut self, source: &mut PcapOverIpSource) {
        let Self { rows, names, gaps, errors } = self;
        let known: Vec<_> = source.interfaces().iter().map(|it| it.name.clone()).collect();
        let mut sink = |packet: &Packet<'_>| {
            rows.push((packet.ts_ns, packet.data.to_vec()));
            names.push(known[packet.interface as usize].clone());
            ControlFlow::Continue(())
        };
        match source.poll(&mut sink, WAIT) {
            Ok(Polled::Gap(gap)) => gaps.push(gap),
            Ok(Polled::End) => panic!("a listening source does not end"),
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
    }

    fn until(&mut self, source: &mut PcapOverIpSource, done: impl Fn(&Self, SourceState) -> bool) {
        let begin = Instant::now();
        while !done(self, source.state()) {
            assert!(begin.elapsed() < PATIENCE, "{:?} {:?}", self.gaps, self.errors);
            self.poll(source);
        }
    }
}

fn is_waiting(state: SourceState) -> bool {
    matches!(state, SourceState::Waiting { .. })
}

/// Sends a stream in odd pieces and closes the connection.
fn send(to: SocketAddr, stream: Vec<u8>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut socket = TcpStream::connect(to).unwrap();
        socket.set_nodelay(true).unwrap();
        for piece in stream.chunks(1009) {
            // A receiver that refuses the stream closes it under us.
            if socket.write_all(piece).is_err() {
                return;
            }
        }
    })
}

#[test]
fn every_format_comes_through_and_each_connection_is_a_stream_of_its_own() {
    let (mut sources, address) = listening(1, None);
    let source = &mut sources[0];
    assert!(is_waiting(source.state()) && source.is_live());
    let mut expected = Vec::new();
    let mut seen = Seen::default();
    for run in 0..5 {
        let rows = rows(run, 500);
        let stream = match run {
            0 => pcap(false, true, &rows),
            1 => pcap(true, true, &rows),
            2 => pcap(false, false, &rows),
            3 => pcap(true, false, &rows),
            _ => pcapng("there0", &rows),
        };
        let sender = send(address, stream);
        expected.extend(rows);
        let count = expected.len();
        seen.until(source, |seen, state| seen.rows.len() == count && is_waiting(state));
        sender.join().unwrap();
    }
    assert!(seen.rows == expected, "times and bytes as sent");
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    assert_eq!(seen.names[0], None);
    assert_eq!(seen.names.last(), Some(&Some("there0".to_owned())));
    // One gap before each sender, closed by its coming.
    assert_eq!(seen.gaps.len(), 5);
    for pair in seen.gaps.windows(2) {
        assert_eq!(pair[0].cause, Cause::InterfaceDown);
        assert!(pair[0].from_ns <= pair[0].until_ns.unwrap());
        assert!(pair[0].until_ns.unwrap() <= pair[1].from_ns, "nothing was lost in between");
    }
    let counters = source.counters();
    assert_eq!((counters.received, counters.handed, counters.in_ring), (2500, 2500, 0));
    let report = source.report();
    assert_eq!((report.kind, report.notes.len()), ("pcap_over_ip", 1));
    assert!(report.notes[0].starts_with("waiting for a sender on"), "{report:?}");
}

#[test]
fn interfaces_are_renamed_and_those_met_again_are_not_new() {
    let (mut sources, address) = listening(1, Some("tap7"));
    let source = &mut sources[0];
    let mut seen = Seen::default();
    for run in 0..3u32 {
        let sender = send(address, pcapng(&format!("x{run}"), &rows(run, 2)));
        let count = 2 * run as usize + 2;
        seen.until(source, |seen, state| seen.rows.len() == count && is_waiting(state));
        sender.join().unwrap();
    }
    assert!(seen.names.iter().all(|name| name.as_deref() == Some("tap7")));
    assert!(source.interfaces().len() <= 2, "{:?}", source.interfaces());
}

#[test]
fn a_stream_that_breaks_or_lies_ends_its_own_connection_only() {
    let (mut sources, address) = listening(1, None);
    let source = &mut sources[0];
    let mut seen = Seen::default();
    let good = rows(1, 20);
    let mut cut = pcapng("a", &good);
    cut.truncate(cut.len() - 5);
    let mut lying = pcap(false, true, &good);
    lying.extend([u32::MAX; 4].map(u32::to_le_bytes).concat());
    let http = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n".to_vec();
    let short = vec![0xd4, 0xc3];
    let streams = [(cut, 19), (lying, 20), (http, 0), (short, 0)];
    let mut packets = 0;
    for (number, (stream, whole)) in streams.into_iter().enumerate() {
        let sender = send(address, stream);
        packets += whole;
        seen.until(source, |seen, state| seen.errors.len() == number + 1 && is_waiting(state));
        assert_eq!(seen.rows.len(), packets, "all whole records before the damage");
        sender.join().unwrap();
        let told = seen.errors[number].to_string();
        assert!(told.contains(&format!("{address} from 127.0.0.1:")), "{told}");
    }
    let unreadable = seen.gaps.iter().filter(|gap| gap.cause == Cause::ImportUnreadable);
    assert_eq!((unreadable.clone().count(), source.counters().unreadable), (4, 4));
    let opened_ns = seen.gaps[0].from_ns;
    assert!(
        unreadable.clone().all(|gap| gap.from_ns >= opened_ns && gap.until_ns > Some(gap.from_ns)),
        "packets of another time cast no doubt on it: {:?}",
        seen.gaps
    );
    assert!(seen.errors[2].to_string().contains("not a pcap or pcapng"), "{:?}", seen.errors[2]);

    let sender = send(address, pcap(false, true, &good));
    seen.until(source, |seen, state| seen.rows.len() == packets + 20 && is_waiting(state));
    sender.join().unwrap();
    // One that says nothing is no error.
    drop(TcpStream::connect(address).unwrap());
    seen.until(source, |seen, _| seen.gaps.len() == 10);
    seen.until(source, |_, state| is_waiting(state));
    assert_eq!(seen.errors.len(), 4);
}

#[test]
fn a_full_sink_makes_the_sender_wait_and_loses_nothing() {
    let (mut sources, address) = listening(1, None);
    let source = &mut sources[0];
    // More than all socket buffers hold.
    let rows: Vec<Row> = (0..40_000u64).map(|n| (n, vec![n as u8; 1000])).collect();
    let stream = pcap(false, true, &rows);
    let sender = send(address, stream);
    let mut refuse = |_: &Packet<'_>| ControlFlow::Break(());
    let begin = Instant::now();
    while source.counters().in_ring == 0 {
        assert!(begin.elapsed() < PATIENCE);
        source.poll(&mut refuse, WAIT).unwrap();
    }
    for _ in 0..100 {
        assert_eq!(source.poll(&mut refuse, WAIT).unwrap(), Polled::Packets(0));
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(!sender.is_finished(), "it waits");
    let counters = source.counters();
    assert_eq!((counters.received, counters.handed, counters.in_ring), (1, 0, 1));
    let mut seen = Seen::default();
    seen.until(source, |seen, state| seen.rows.len() == rows.len() && is_waiting(state));
    sender.join().unwrap();
    assert!(seen.rows == rows);
}

#[test]
fn a_silent_sender_blocks_nothing_and_lanes_take_one_sender_each() {
    let (mut sources, address) = listening(2, None);
    let silent = TcpStream::connect(address).unwrap();
    let mut seen = Seen::default();
    seen.until(&mut sources[0], |_, state| state == SourceState::Running);
    let report = sources[0].report();
    assert!(report.notes[0].starts_with("connected to 127.0.0.1:"), "{report:?}");
    let begin = Instant::now();
    seen.poll(&mut sources[0]);
    assert!(begin.elapsed() < PATIENCE);

    let rows = rows(3, 30);
    let sender = send(address, pcap(false, true, &rows));
    let mut other = Seen::default();
    other.until(&mut sources[1], |other, state| other.rows.len() == 30 && is_waiting(state));
    sender.join().unwrap();
    assert!(other.rows == rows && seen.rows.is_empty());
    drop(silent);
    seen.until(&mut sources[0], |_, state| is_waiting(state));
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
}

#[test]
fn a_sender_is_connected_to_again_and_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connect = |address: String| PcapOverIpOptions {
        rendezvous: Rendezvous::Connect(address),
        interface: None,
    };
    let refused = open_streams(&connect(address.clone()), 2).err().expect("two lanes");
    assert!(refused.to_string().contains("use one"), "{refused}");
    let mut source = open_streams(&connect(address), 1).unwrap().remove(0);
    let mut seen = Seen::default();
    for run in 0..2u32 {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(&pcapng("far", &rows(run, 10))).unwrap();
        drop(socket);
        let count = 10 * run as usize + 10;
        seen.until(&mut source, |seen, state| seen.rows.len() == count && is_waiting(state));
    }
    drop(listener);
    seen.until(&mut source, |seen, _| !seen.errors.is_empty());
    let told = seen.errors[0].to_string();
    assert!(told.contains("refused") || told.contains("reset"), "{told}");
    assert_eq!(source.counters().received, 20);
}

#[test]
fn a_connection_that_is_torn_down_is_told() {
    let (mut sources, address) = listening(1, None);
    let source = &mut sources[0];
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(&pcap(false, true, &rows(0, 3))).unwrap();
    let mut seen = Seen::default();
    seen.until(source, |seen, _| seen.rows.len() == 3);
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Linger, &linger).unwrap();
    drop(socket);
    seen.until(source, |seen, state| !seen.errors.is_empty() && is_waiting(state));
    assert!(seen.errors[0].to_string().contains("reset"), "{:?}", seen.errors);
}

#[test]
fn an_address_that_is_taken_is_an_error() {
    let (_sources, address) = listening(1, None);
    let options = PcapOverIpOptions { rendezvous: Rendezvous::Listen(address), interface: None };
    let error = open_streams(&options, 1).err().expect("it is taken").to_string();
    assert!(error.contains(&address.to_string()) && error.contains("in use"), "{error}");
}

#[test]
fn the_sender_is_never_written_to() {
    let (mut sources, address) = listening(1, None);
    let mut socket = TcpStream::connect(address).unwrap();
    socket.write_all(&pcap(false, true, &rows(0, 1))).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut seen = Seen::default();
    seen.until(&mut sources[0], |seen, state| seen.rows.len() == 1 && is_waiting(state));
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty());
}
