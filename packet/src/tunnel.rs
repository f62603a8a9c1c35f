//! Numbers and rules by which tunnels are recognised: for the walk to the key and for removing
//! them.

use wirevault_format::VxlanPorts;

use crate::walk::{LENGTH_MAX, half};

/// UDP destination port of GENEVE.
pub(crate) const GENEVE_PORT: u16 = 6081;
/// UDP destination port of VXLAN with a next protocol.
pub(crate) const VXLAN_GPE_PORT: u16 = 4790;
/// UDP destination port of GTP-U.
pub(crate) const GTP_U_PORT: u16 = 2152;

/// Whether a tunnel's header may follow UDP to this port.
#[inline(always)]
pub(crate) fn is_tunnel_port(port: u16, vxlan: &VxlanPorts) -> bool {
    matches!(port, GENEVE_PORT | VXLAN_GPE_PORT | GTP_U_PORT) || vxlan.contains(port)
}

/// Any of these flags of GTP-U adds four bytes: sequence number, N-PDU number, next extension.
pub(crate) const GTP_OPTIONAL: u8 = 0x07;
/// GRE: routing, whose length is elsewhere, or another version, which is PPTP's.
pub(crate) const GRE_OTHER: u16 = 0x4007;
/// GRE: a sequence number is present.
pub(crate) const GRE_SEQUENCE: u16 = 0x1000;
/// What GRE and GENEVE call an Ethernet frame inside.
pub(crate) const TRANSPARENT_ETHERNET: u16 = 0x6558;
/// GRE protocol of ERSPAN types I and II.
pub(crate) const ERSPAN_I_II: u16 = 0x88be;
/// GRE protocol of ERSPAN type III.
pub(crate) const ERSPAN_III: u16 = 0x22eb;
/// ERSPAN type III frame type: Ethernet.
pub(crate) const ERSPAN_FRAME_ETHERNET: u8 = 0;
/// ERSPAN type III frame type: IP.
pub(crate) const ERSPAN_FRAME_IP: u8 = 2;
/// VXLAN-GPE next protocol: IPv4.
pub(crate) const GPE_IPV4: u8 = 1;
/// VXLAN-GPE next protocol: IPv6.
pub(crate) const GPE_IPV6: u8 = 2;
/// VXLAN-GPE next protocol: Ethernet.
pub(crate) const GPE_ETHERNET: u8 = 3;
/// GTP-U message type: a user's packet.
pub(crate) const GTP_USER_PACKET: u8 = 0xff;
/// GTP-U: the field of the next extension header counts.
const GTP_EXTENSION: u8 = 0x04;

/// How a pseudowire carries Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pseudowire {
    /// The frame follows the label stack.
    Plain,
    /// A control word of 4 bytes stands between.
    ControlWord,
}

/// Whether what follows a label stack is an Ethernet frame. Nothing says so: the first four bits
/// are those of IP, or a control word begins with 16 zero bits (RFC 4448), or a known type stands
/// where a frame has it.
pub(crate) fn pseudowire(payload: &[u8]) -> Option<Pseudowire> {
    let head: &[u8; 14] = payload.first_chunk()?;
    match head[0] >> 4 {
        // 1 is the associated channel (RFC 4385), which is not a frame.
        1 if head[1] == 0 => None,
        4 | 6 => None,
        0 if head[..2] == [0, 0] && is_frame(payload.get(4..)?) => Some(Pseudowire::ControlWord),
        _ => is_frame(payload).then_some(Pseudowire::Plain),
    }
}

/// Whether an Ethernet frame of a well-known kind stands here.
fn is_frame(frame: &[u8]) -> bool {
    let Some(head) = frame.first_chunk::<17>() else { return false };
    match half(head, 12) {
        0x0800 | 0x0806 | 0x86dd | 0x8100 | 0x88a8 | 0x9100 | 0x8847 | 0x8848 | 0x8863 | 0x8864
        | 0x8809 | 0x888e | 0x88cc | 0x88e5 | 0x88f7 | 0x8902 => true,
        length if length <= LENGTH_MAX => {
            // Spanning tree, SNAP, OSI.
            matches!(head[14..17], [0x42, 0x42, 3] | [0xaa, 0xaa, 3] | [0xfe, 0xfe, 3])
        }
        _ => false,
    }
}

/// Words of extension headers of a GTP-U message that carries a user's packet. `None`: it is
/// another message, its length does not fit the datagram's, or its headers were cut off.
pub(crate) fn gtp_user_packet(message: &[u8], udp_bytes: u16) -> Option<u8> {
    let head: &[u8; 8] = message.first_chunk()?;
    let version_1 = head[0] >> 4 == 3;
    let fits = u32::from(half(head, 2)) + 16 == u32::from(udp_bytes);
    if !version_1 || head[1] != GTP_USER_PACKET || !fits {
        return None;
    }
    if head[0] & GTP_OPTIONAL == 0 {
        return Some(0);
    }
    let mut next = *message.get(11)?;
    let mut words = 0u8;
    if head[0] & GTP_EXTENSION == 0 {
        return Some(0);
    }
    while next != 0 {
        // A length of 0 would never end.
        let length = *message.get(12 + usize::from(words) * 4)?;
        words = words.checked_add(length).filter(|_| length != 0)?;
        next = *message.get(11 + usize::from(words) * 4)?;
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u16) -> Vec<u8> {
        let mut frame = vec![0xb4; 12];
        frame.extend(kind.to_be_bytes());
        frame.extend([0x42, 0x42, 3, 0]);
        frame
    }

    #[test]
    fn pseudowires_are_told_from_ip() {
        assert_eq!(pseudowire(&frame(0x0800)), Some(Pseudowire::Plain));
        assert_eq!(pseudowire(&frame(38)), Some(Pseudowire::Plain));
        assert_eq!(pseudowire(&frame(0x1234)), None);
        let word = |second| [vec![0, second, 0, 9], frame(0x86dd)].concat();
        assert_eq!(pseudowire(&word(0)), Some(Pseudowire::ControlWord));
        assert_eq!(pseudowire(&word(7)), None, "the reserved bits of a control word are zero");
        let mut ip = frame(0x0800);
        ip[0] = 0x45;
        assert_eq!(pseudowire(&ip), None);
        (0..17).for_each(|cut| assert_eq!(pseudowire(&frame(0x0800)[..cut]), None));
    }

    #[test]
    fn a_gtp_message_is_a_users_packet_of_fitting_length() {
        let plain = [0x30, 0xff, 0, 4, 0, 0, 0, 1];
        assert_eq!(gtp_user_packet(&plain, 20), Some(0));
        assert_eq!(gtp_user_packet(&plain, 21), None);
        assert_eq!(gtp_user_packet(&[0x30, 1, 0, 4, 0, 0, 0, 1], 20), None);
        let extended = [0x34, 0xff, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0x85, 1, 9, 9, 0x40, 1, 9, 9, 0];
        assert_eq!(gtp_user_packet(&extended, 28), Some(2));
        (0..20).for_each(|cut| assert_eq!(gtp_user_packet(&extended[..cut], 28), None));
        let mut endless = extended;
        endless[12] = 0;
        assert_eq!(gtp_user_packet(&endless, 28), None);
    }
}
