"""Frames in every encapsulation that can be removed, and what is inside.

Arguments: a pcap file for the frames, a text file with a line for each:
name, link type inside, length on the wire inside, outer headers in words, bytes inside as hex.
"""
import sys

from scapy.contrib.erspan import ERSPAN_I, ERSPAN_II, ERSPAN_III, ERSPAN_PlatformSpecific
from scapy.contrib.geneve import GENEVE
from scapy.contrib.gtp import GTP_U_Header, GTPPDUSessionContainer
from scapy.contrib.mpls import MPLS, EoMCW
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether, GRE
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw
from scapy.utils import wrpcap

ETHERNET, RAW = 1, 101
OUTER = "IP 10.0.0.1 > 10.0.0.2"
OUTER6 = "IP6 fd00::1 > fd00::2"
MACS = dict(src="b4:00:00:00:00:01", dst="b4:00:00:00:00:02")

number = 0


def mac():
    return Ether(src="02:00:00:00:00:0a", dst="02:00:00:00:00:0b")


def outer(**more):
    return mac() / IP(src="10.0.0.1", dst="10.0.0.2", **more)


def outer6():
    return mac() / IPv6(src="fd00::1", dst="fd00::2")


def udp(port):
    return UDP(sport=50000 + number, dport=port)


def packet(v6=False, size=120):
    """An IP packet that no other frame has."""
    global number
    number += 1
    payload = Raw(bytes(number * 7 + i & 0xFF for i in range(size)))
    if v6:
        return IPv6(src="fd01::%x" % number, dst="fd02::2") / TCP(sport=number, dport=443) / payload
    kind = [TCP(sport=number, dport=80, flags="PA"), UDP(sport=number, dport=5353), ICMP()][number % 3]
    return IP(src="192.168.7.%d" % number, dst="192.168.8.1", id=number) / kind / payload


def frame(**more):
    return Ether(**MACS) / packet(**more)


cases = []


def case(name, whole, inner, words, link=ETHERNET, wire=None):
    inner = bytes(inner)
    cases.append((name, bytes(whole), link, wire or len(inner), words, inner))


i = frame()
case("vxlan", outer() / udp(4789) / VXLAN(vni=5, flags=8) / i, i, OUTER + ", VXLAN vni 5")
i = frame()
case("vxlan 8472 over IPv6", outer6() / udp(8472) / VXLAN(vni=0xFFFFFF, flags=8) / i, i, OUTER6 + ", VXLAN vni 16777215")
i = frame(v6=True)
case("vxlan behind a tag and IP options",
     mac() / Dot1Q(vlan=9) / IP(src="10.0.0.1", dst="10.0.0.2", options=b"\x01\x01\x01\x00") / udp(4789) / VXLAN(vni=6, flags=8) / i,
     i, "vlan 9, " + OUTER + ", VXLAN vni 6")
i = packet()
case("vxlan-gpe with IPv4", outer() / udp(4790) / Raw(b"\x0c\0\0\x01\0\0\x07\0") / i, i, OUTER + ", VXLAN-GPE vni 7", RAW)
i = frame()
case("vxlan-gpe with Ethernet", outer() / udp(4790) / Raw(b"\x0c\0\0\x03\0\0\x07\0") / i, i, OUTER + ", VXLAN-GPE vni 7")
i = frame()
case("geneve", outer() / udp(6081) / GENEVE(vni=8, proto=0x6558) / i, i, OUTER + ", GENEVE vni 8")
i = packet(v6=True)
case("geneve with IPv6", outer() / udp(6081) / GENEVE(vni=8, proto=0x86DD) / i, i, OUTER + ", GENEVE vni 8", RAW)
i = frame()
gwlb = bytes.fromhex("0108010200000000000000050108020200000000000000060108030100000007")
case("a gateway load balancer's",
     outer() / udp(6081) / Raw(b"\x08\0\x08\0\0\0\0\0" + gwlb) / IP(src="10.1.0.1", dst="10.1.0.2") / udp(4789) / VXLAN(vni=12, flags=8) / i,
     i, OUTER + ", GENEVE vni 0, IP 10.1.0.1 > 10.1.0.2, VXLAN vni 12")
i = packet()
case("gre", outer() / GRE() / i, i, OUTER + ", GRE", RAW)
i = packet()
case("gre with all fields", outer() / GRE(chksum_present=1, key_present=1, key=77, seqnum_present=1, sequence_number=3) / i, i,
     OUTER + ", GRE key 77", RAW)
i = packet(v6=True)
case("gre over IPv6 behind options", outer6() / IPv6ExtHdrDestOpt() / GRE(key_present=1, key=78) / i, i, OUTER6 + ", GRE key 78", RAW)
i = frame()
case("gre with Ethernet", outer() / GRE(proto=0x6558, key_present=1, key=79) / i, i, OUTER + ", GRE key 79")
i = frame()
case("erspan I", outer() / GRE(proto=0x88BE) / i, i, OUTER + ", GRE, ERSPAN")
i = frame()
case("erspan II", outer() / GRE(proto=0x88BE, seqnum_present=1, sequence_number=1) / ERSPAN_II(vlan=4, session_id=33) / i, i,
     OUTER + ", GRE, ERSPAN session 33")
i = frame()
case("erspan III", outer() / GRE(proto=0x22EB, seqnum_present=1, sequence_number=1) / ERSPAN_III(vlan=4, session_id=1023) / i, i,
     OUTER + ", GRE, ERSPAN session 1023")
i = frame()
case("erspan III with a subheader",
     outer() / GRE(proto=0x22EB, seqnum_present=1) / ERSPAN_III(session_id=34, o=1) / ERSPAN_PlatformSpecific() / i, i,
     OUTER + ", GRE, ERSPAN session 34")
i = packet()
case("gtp-u", outer() / udp(2152) / GTP_U_Header(teid=0x1234) / i, i, OUTER + ", GTP-U teid 4660", RAW)
i = packet()
case("gtp-u with a sequence number", outer() / udp(2152) / GTP_U_Header(teid=2, S=1, seq=9) / i, i, OUTER + ", GTP-U teid 2", RAW)
i = packet(v6=True)
case("gtp-u with an extension", outer() / udp(2152) / GTP_U_Header(teid=3, E=1, next_ex=0x85) / GTPPDUSessionContainer(type=1, QFI=5) / i, i,
     OUTER + ", GTP-U teid 3", RAW)
i = packet()
case("ip in ip", outer() / i, i, OUTER + ", IP in IP", RAW)
i = packet(v6=True)
case("ipv6 in ip", outer() / i, i, OUTER + ", IP in IP", RAW)
i = packet()
case("mpls", mac() / MPLS(label=100, s=0) / MPLS(label=101, s=1) / i, mac() / i, "mpls 100, mpls 101")
i = frame()
case("ethernet over mpls", mac() / MPLS(label=102, s=1) / Raw(bytes(i)), i, "mpls 102")
i = frame()
case("ethernet over mpls with a control word", mac() / MPLS(label=103, s=1) / EoMCW(seq=4) / i, i, "mpls 103, control word")
i = packet()
case("vlan", mac() / Dot1Q(vlan=5, prio=3) / i, mac() / i, "vlan 5")
i = packet()
case("qinq", mac() / Dot1AD(vlan=6) / Dot1Q(vlan=7) / i, mac() / i, "vlan 6, vlan 7")
i = packet()
case("a tagged frame in vxlan", outer() / udp(4789) / VXLAN(vni=13, flags=8) / Ether(**MACS) / Dot1Q(vlan=8) / i, Ether(**MACS) / i,
     OUTER + ", VXLAN vni 13, vlan 8")
i = Ether(**MACS) / ARP(pdst="192.168.8.9")
case("arp in vxlan", outer() / udp(4789) / VXLAN(vni=14, flags=8) / i, i, OUTER + ", VXLAN vni 14")
i = bytes(frame(size=700))
case("a frame that the mirror cut", outer() / udp(4789) / VXLAN(vni=15, flags=8) / Raw(i[:128]), i[:128],
     OUTER + ", VXLAN vni 15, cut by the mirror to 128 bytes", wire=len(i))

# What stays as it came: fragments of tunnels' packets, and what is no tunnel.
whole = outer(flags="MF") / udp(4789) / VXLAN(vni=5, flags=8) / frame()
case("a first fragment", whole, whole, "")
whole = outer(frag=3, proto=47) / Raw(bytes(100))
case("a later fragment", whole, whole, "")
whole = mac() / packet()
case("no tunnel", whole, whole, "")
whole = outer() / udp(4789) / Raw(bytes(60))
case("no VXLAN on its port", whole, whole, "")

wrpcap(sys.argv[1], [whole for _, whole, *_ in cases], linktype=ETHERNET)
with open(sys.argv[2], "w") as out:
    for name, _, link, wire, words, inner in cases:
        out.write("%s|%d|%d|%s|%s\n" % (name, link, wire, words, inner.hex()))
