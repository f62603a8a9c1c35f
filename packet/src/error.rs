//! What can be wrong with keys read back from disk and with filter programs.

/// Errors of this crate. Frames never cause one: a frame that does not parse still has a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// Corrupt: a stored shape breaks off inside a layer, or lacks the link type.
    #[error("flow shape of {bytes} bytes breaks off at byte {at}; the index is damaged")]
    ShapeCut {
        /// Where the layer starts that is not whole.
        at: usize,
        /// Length of the shape.
        bytes: usize,
    },
    /// Corrupt, or written by a newer version: a layer that this version does not know.
    #[error(
        "flow shape has layer {tag:#04x} with impossible content at byte {at}; the index is \
             damaged or was written by a newer version"
    )]
    ShapeLayer {
        /// The layer's first byte.
        tag: u8,
        /// Where the layer starts.
        at: usize,
    },
    /// Corrupt: addresses and ports do not have the length that the shape asks for.
    #[error("flow values are {got} bytes, its shape asks for {want}; the index is damaged")]
    ValuesLength {
        /// Bytes found.
        got: usize,
        /// Bytes the shape asks for.
        want: usize,
    },
    /// Corrupt: shape and values together are longer than any key.
    #[error("flow key of {bytes} bytes is longer than {max}; the index is damaged")]
    KeyLength {
        /// Bytes of shape and values.
        bytes: usize,
        /// Most bytes a key can hold.
        max: usize,
    },
    /// Misuse: a filter program without instructions, or with too many.
    #[error(
        "filter program has {insns} instructions; 1 to {max} are possible: use a shorter filter"
    )]
    ProgramLength {
        /// Instructions found.
        insns: usize,
        /// Most instructions a program can have.
        max: usize,
    },
    /// Misuse: an instruction that no classic BPF machine executes.
    #[error("filter instruction {at} has unknown code {code:#06x}")]
    ProgramCode {
        /// Number of the instruction, from 0.
        at: usize,
        /// Its code.
        code: u16,
    },
    /// Misuse: a jump leaves the program, or the program runs off its end.
    #[error("filter instruction {at} leaves the program of {insns} instructions")]
    ProgramJump {
        /// Number of the instruction, from 0.
        at: usize,
        /// Instructions in the program.
        insns: usize,
    },
    /// Misuse: scratch word, divisor or shift outside what the machine has.
    #[error("filter instruction {at} has the impossible operand {k}")]
    ProgramOperand {
        /// Number of the instruction, from 0.
        at: usize,
        /// Its operand.
        k: u32,
    },
    /// Misuse: the filter asks the kernel about the packet, not the packet.
    #[error(
        "filter instruction {at} asks for something that only a live capture knows (offset \
             {k:#x}); a stored packet has no such information: leave that part of the filter out"
    )]
    ProgramAncillary {
        /// Number of the instruction, from 0.
        at: usize,
        /// Its operand.
        k: u32,
    },
    /// Misuse: a text that names no tunnel.
    #[error(
        "`{text}` names no tunnel; write vni=5, vlan=7, mpls=100, gre_key=9, session=3 (ERSPAN) or \
             teid=4 (GTP-U), within the field's range"
    )]
    TunnelText {
        /// The text.
        text: String,
    },
}
