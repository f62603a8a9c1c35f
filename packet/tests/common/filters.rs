//! Filter expressions at random, over the same addresses and ports as the frames.

use super::Random;

/// An expression; libpcap may refuse it for some link types.
pub fn filter(random: &mut Random) -> String {
    let depth = random.below(4);
    expression(random, depth)
}

fn expression(random: &mut Random, depth: usize) -> String {
    if depth == 0 {
        let not = if random.one_in(4) { "not " } else { "" };
        return format!("{not}{}", atom(random));
    }
    let (left, right) = (expression(random, depth - 1), expression(random, depth - 1));
    match random.below(5) {
        0 | 1 => format!("({left}) and ({right})"),
        2 | 3 => format!("({left}) or ({right})"),
        _ => format!("not ({left})"),
    }
}

fn atom(random: &mut Random) -> String {
    let side = *random.pick(&["", "src ", "dst ", "src and dst "]);
    let host4 = *random.pick(&["10.0.0.1", "10.0.0.2", "10.1.2.3", "192.168.1.1", "9.9.9.9"]);
    let host6 =
        *random.pick(&["2001:db8::1", "2001:db8::2", "2001:db8:1::1", "fe80::1", "2001:db9::"]);
    let net = *random.pick(&[
        "10.0.0.0/8",
        "10.0.0.0/30",
        "192.168.0.0/16",
        "172.16.0.0/12",
        "2001:db8::/32",
        "2001:db8::/36",
        "2001:db8:f000::/36",
        "2001:db8::/127",
        "fe80::/10",
        "2001:db8:0:0:8000::/65",
    ]);
    let port = *random.pick(&["53", "80", "443", "6081", "4789", "7"]);
    let range = *random.pick(&["10-60", "80-80", "0-65535", "1000-50000", "66-79"]);
    let number = *random.pick(&["5", "7", "100", "3"]);
    let protocol =
        *random.pick(&["tcp", "udp", "sctp", "icmp", "icmp6", "ip", "ip6", "arp", "rarp"]);
    match random.below(30) {
        0 | 1 => format!("{side}host {host4}"),
        2 | 3 => format!("{side}host {host6}"),
        4 | 5 => format!("{side}net {net}"),
        6 | 7 => format!("{side}port {port}"),
        8 => format!("{side}portrange {range}"),
        9 | 10 => protocol.to_owned(),
        11 => format!("tcp {side}port {port}"),
        12 => format!("vlan {number}"),
        13 => format!("vlan {number} and host {host4}"),
        14 => format!("vlan and {side}port {port}"),
        15 => format!("mpls {number} and host {host4}"),
        16 => "mpls and mpls and ip".to_owned(),
        17 => format!("pppoes and host {host4}"),
        18 => format!("geneve {number} and host {host4}"),
        19 => format!("geneve and {side}port {port}"),
        20 => format!(
            "{} {}",
            *random.pick(&["less", "greater"]),
            *random.pick(&["54", "60", "100", "14"])
        ),
        21 => format!("ether {}host 02:00:00:00:00:01", *random.pick(&["", "src ", "dst "])),
        22 => (*random.pick(&[
            "ip multicast",
            "ether multicast",
            "ether broadcast",
            "ip6 multicast",
            "llc",
            "stp",
        ]))
        .to_owned(),
        23 => format!("ip proto {}", *random.pick(&["6", "17", "47", "4"])),
        24 => format!("ip6 proto {}", *random.pick(&["6", "17", "44", "0"])),
        25 => (*random.pick(&[
            "ip6 protochain 6",
            "ip protochain 6",
            "ip6 protochain 17",
            "pppoed",
            "iso",
            "decnet",
        ]))
        .to_owned(),
        26 => format!(
            "ether[{}:{}] = {}",
            random.below(90),
            *random.pick(&[1, 2, 4]),
            *random.pick(&[0, 80, 0x800])
        ),
        27 => format!("ether proto {}", *random.pick(&["0x800", "0x88cc", "0x8100", "0x0600"])),
        _ => (*random.pick(&[
            "tcp[tcpflags] & tcp-syn != 0",
            "tcp[tcpflags] & (tcp-syn|tcp-fin) = tcp-syn",
            "tcp[tcpflags] == tcp-ack",
            "ip[6:2] & 0x1fff != 0",
            "ip[6] & 0x40 != 0",
            "ip[0] & 0xf > 5",
            "ip[8] > 64",
            "ip[2:2] > 60",
            "(ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2) != 0",
            "udp[4:2] < 20",
            "icmp[icmptype] = icmp-echo",
            "icmp6[0] = 128",
            "ip[12:2] = 0x0a00",
            "ip[12:4] > 0x0a000001",
            "ip[12] = 10 and ip[13] = 0 and ip[14:2] = 1",
            "ip[16:4] & 0xff = 2",
            "tcp[0:2] & 0xff00 = 0",
            "tcp[0:4] = 0x00500035",
            "len / ip[8] > 3",
            "ip[8] % 3 = 1",
            "ip6[40] = 6",
            "ether[76:4] = 0x0a000001",
            "ip[ip[0] & 0xf] = 1",
        ]))
        .to_owned(),
    }
}
