//! Frames as a link may carry them: a few talkative hosts, many others, flows of Pareto length,
//! trains of packets, answers; and a flood in which every packet is a flow of its own.

/// Flows that are alive at a time.
const ALIVE: usize = 1 << 16;
/// Time between two packets is that of their bytes on a link of so many Gbps.
const LINK_GBPS: u64 = 30;
const HOSTS: usize = 20_000;
const SERVERS: usize = 2_000;
const PORTS: [u16; 9] = [443, 443, 443, 443, 80, 53, 22, 8080, 5432];
const VICTIMS: u32 = 4;

/// What the packets are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 64 bytes, each from an address of its own, to a few hosts.
    Flood,
    /// Conversations in packets of one size, or of the sizes of a mix whose mean is 800 B.
    Talk(Option<u32>),
}

/// A frame's headers and its length on the wire.
pub(crate) struct Frame {
    pub(crate) headers: Vec<u8>,
    pub(crate) bytes: u32,
    pub(crate) ts_ns: u64,
}

/// xorshift64*.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.next()) * limit as u128) >> 64) as usize
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A rank below `n` with weights 1 / rank^0.9.
    fn zipf(&mut self, n: usize) -> usize {
        ((self.unit() * (n as f64).powf(0.1)).powf(10.0) as usize).min(n - 1)
    }
}

/// Packets without end.
pub(crate) struct Traffic {
    kind: Kind,
    random: Random,
    alive: Vec<(Vec<u8>, u32)>,
    recent: [usize; 16],
    ts_ns: u64,
}

impl Traffic {
    pub(crate) fn new(kind: Kind) -> Self {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let alive = (0..ALIVE).map(|_| flow(&mut random)).collect();
        Self { kind, random, alive, recent: [0; 16], ts_ns: 1_700_000_000_000_000_000 }
    }

    pub(crate) fn next(&mut self) -> Frame {
        let random = &mut self.random;
        let (headers, bytes) = match self.kind {
            Kind::Flood => {
                let source = (random.next() as u32).to_be_bytes();
                let victim = (0xc0a8_0001 + random.below(VICTIMS as usize) as u32).to_be_bytes();
                let ports = [random.next() as u16 | 1024, 80];
                (ipv4(source, victim, ports), 64)
            }
            Kind::Talk(size) => {
                let mut headers = self.conversation();
                if self.random.below(2) == 0 {
                    turn(&mut headers);
                }
                let least = headers.len() as u32;
                let mixed = match self.random.below(100) {
                    0..36 => 66,
                    36..78 => 1500,
                    _ => 80 + self.random.below(1400) as u32,
                };
                (headers, size.unwrap_or(mixed).max(least))
            }
        };
        self.ts_ns += u64::from(bytes) * 8 / LINK_GBPS;
        Frame { headers, bytes, ts_ns: self.ts_ns }
    }

    fn conversation(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let at = match random.below(10) {
            0..6 => self.recent[random.below(16)],
            _ => random.zipf(ALIVE),
        };
        self.recent[random.below(16)] = at;
        if self.alive[at].1 == 0 {
            self.alive[at] = flow(random);
        }
        let (headers, left) = &mut self.alive[at];
        *left -= 1;
        headers.clone()
    }
}

/// The headers of a new flow, and the packets that it will have.
fn flow(random: &mut Random) -> (Vec<u8>, u32) {
    let packets = (3.0 / random.unit().max(1e-7).powf(1.0 / 1.15)) as u32;
    let host = random.zipf(HOSTS) as u32;
    let host = (host.wrapping_mul(0x9e37_79b1) & 0x0f_ffff | 0x0a00_0000).to_be_bytes();
    let server = (random.zipf(SERVERS) as u32 | 0x0a63_0000).to_be_bytes();
    let ports = [32_768 + random.below(28_232) as u16, PORTS[random.below(PORTS.len())]];
    let headers = match random.below(10) {
        0 => ipv6(host, server, ports),
        _ => ipv4(host, server, ports),
    };
    (headers, packets.clamp(2, 2_000_000))
}

/// TCP in IPv4.
pub(crate) fn ipv4(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(source.iter().chain(&destination));
    tcp(&mut frame, ports);
    frame
}

/// TCP in IPv6.
pub(crate) fn ipv6(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
    for addr in [source, destination] {
        frame.extend([0x26, 0, 0x1f, 0x18, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(addr);
    }
    tcp(&mut frame, ports);
    frame
}

fn tcp(frame: &mut Vec<u8>, ports: [u16; 2]) {
    frame.extend(ports.map(u16::to_be_bytes).as_flattened());
    frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
}

/// Makes the answer of a packet.
fn turn(frame: &mut [u8]) {
    let (at, width) = if frame[12] == 8 { (26, 4) } else { (22, 16) };
    for (at, width) in [(at, width), (at + 2 * width, 2)] {
        let (a, b) = frame[at..at + 2 * width].split_at_mut(width);
        a.swap_with_slice(b);
    }
}
