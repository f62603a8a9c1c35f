//! A namespace that several simulated hosts have, as far as reservations go (base specification,
//! section 8.19): QEMU's devices have none.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Namespace;
use crate::admin::Admin;
use crate::spec::Status;
use crate::spec::command::{Command, admin, io as opcode};
use crate::spec::reservation::{REPORT_BYTES, Registrant, Report};

/// What a controller says of itself that has reservations: bit 5 of ONCS.
const ONCS: (usize, u8) = (520, 1 << 5);
/// What a namespace says of itself that has Write Exclusive - Registrants Only: bit 3 of RESCAP.
const RESCAP: (usize, u8) = (31, 1 << 3);

/// The namespace.
#[derive(Clone, Debug, Default)]
pub struct SimNamespace {
    state: Arc<Mutex<Report>>,
    /// Host ids have 64 bits.
    short_ids: bool,
}

impl SimNamespace {
    /// One of a controller that knows its hosts by ids of 64 bits.
    pub fn with_short_ids() -> Self {
        Self { short_ids: true, ..Self::default() }
    }

    /// A host that has it. Its id is its own.
    pub fn host(&self, id: u128) -> SimHost {
        SimHost { namespace: self.clone(), id }
    }

    fn state(&self) -> MutexGuard<'_, Report> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the hosts.
#[derive(Clone, Debug)]
pub struct SimHost {
    namespace: SimNamespace,
    id: u128,
}

impl SimHost {
    /// Whether the device carries a write or flush of this host out. Errors: what it answers.
    pub fn may_write(&self) -> io::Result<()> {
        let state = self.namespace.state();
        let registered = state.registrants.iter().any(|it| it.host == self.id);
        match state.kind == 0 || registered {
            true => Ok(()),
            false => Status::RESERVATION_CONFLICT.into_result(),
        }
    }

    fn register(&self, state: &mut Report, action: u32, current: u64, key: u64) -> Status {
        let ignore = action & 8 != 0;
        let known = state.registrants.iter_mut().find(|it| it.host == self.id);
        match (action & 7, known) {
            (0, None) => {
                state.registrants.push(Registrant { key, host: self.id, holds: false });
                Status::OK
            }
            (0, Some(it)) if it.key == key => Status::OK,
            (1, Some(it)) if ignore || it.key == current => {
                let held = it.holds;
                state.registrants.retain(|it| it.host != self.id);
                if held {
                    state.kind = 0;
                }
                Status::OK
            }
            (2, Some(it)) if ignore || it.key == current => {
                it.key = key;
                Status::OK
            }
            _ => Status::RESERVATION_CONFLICT,
        }
    }

    fn acquire(&self, state: &mut Report, dword: u32, current: u64, other: u64) -> Status {
        let ours = |it: &Registrant| it.host == self.id;
        if !state.registrants.iter().any(|it| ours(it) && it.key == current) {
            return Status::RESERVATION_CONFLICT;
        }
        let holder = state.registrants.iter().find(|it| it.holds).copied();
        let preempts = dword & 7 != 0;
        let taken = match holder {
            Some(holder) if !preempts => ours(&holder),
            Some(holder) => holder.key == other,
            None => !preempts,
        };
        if preempts {
            let before = state.registrants.len();
            state.registrants.retain(|it| ours(it) || it.key != other);
            if before == state.registrants.len() {
                return Status::RESERVATION_CONFLICT;
            }
        } else if !taken {
            return Status::RESERVATION_CONFLICT;
        }
        if taken {
            state.kind = (dword >> 8) as u8;
            state.registrants.iter_mut().for_each(|it| it.holds = it.host == self.id);
        }
        Status::OK
    }
}

impl Admin for SimHost {
    fn read(&self, command: &Command, data: &mut [u8]) -> io::Result<()> {
        let (at, bits) = match (command.opcode, command.dwords[0]) {
            (admin::IDENTIFY, 1) => ONCS,
            (admin::IDENTIFY, 0) => RESCAP,
            _ => return Status::INVALID_OPCODE.into_result(),
        };
        data[at] = bits;
        Ok(())
    }

    fn describe(&self) -> String {
        format!("simulated device of host {}", self.id)
    }
}

impl Namespace for SimHost {
    fn exchange(&self, command: &Command, data: &mut [u8]) -> io::Result<()> {
        let mut state = self.namespace.state();
        let key = |data: &[u8], at: usize| {
            data.get(at..).and_then(|it| it.first_chunk()).copied().map_or(0, u64::from_le_bytes)
        };
        let (current, other, dword) = (key(data, 0), key(data, 8), command.dwords[0]);
        let status = match command.opcode {
            opcode::RESERVATION_REGISTER => self.register(&mut state, dword, current, other),
            opcode::RESERVATION_ACQUIRE => self.acquire(&mut state, dword, current, other),
            opcode::RESERVATION_REPORT if data.len() == REPORT_BYTES => {
                let extended = command.dwords[1] & 1 != 0;
                if extended == self.namespace.short_ids {
                    return Status::HOST_ID_FORMAT.into_result();
                }
                data.copy_from_slice(&state.encode(extended));
                Status::OK
            }
            _ => Status::INVALID_OPCODE,
        };
        status.into_result()
    }
}
