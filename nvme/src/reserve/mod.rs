//! Reservations: one machine writes a namespace that several have, and the device sees to it.
//!
//! ```text
//!  register our key ─► whose keys are there? ─► preempt and abort each ─► only ours is there
//! ```
//! From the end of a preemption on the device refuses every write of that host, also those that it
//! had begun ("and abort"). Nothing less may be called *never both write*.
//!
//! The key is new for each process. Where the device offers that, registrations survive a loss of
//! its power; elsewhere everybody may write after one, so whoever holds a reservation
//! [looks](Reservation::is_ours) now and then whether it is still there.

pub mod sim;

use std::io;

use crate::admin::{Admin, identify_controller, identify_namespace};
use crate::error::NvmeError;
use crate::spec::command::Command;
use crate::spec::reservation::{
    Acquire, KEYS_BYTES, REPORT_BYTES, Register, Report, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, keys,
};
use crate::spec::{IdentifyController, Status};

/// Who puts commands to a namespace and to its controller.
pub trait Namespace: Admin + Send + Sync {
    /// Carries an I/O command out whose data is `data`, to or from the device as its opcode says.
    ///
    /// Errors: the system's, or a [`Status`] that is no success.
    fn exchange(&self, command: &Command, data: &mut [u8]) -> io::Result<()>;
}

/// The right to write a namespace, which no other host has.
pub struct Reservation<N> {
    device: N,
    namespace: u32,
    persist: bool,
    key: u64,
}

impl<N: Namespace> Reservation<N> {
    /// Takes the reservation, from whomever has it. `key` is random and not 0.
    ///
    /// Errors: `NotOffered` if the device has no reservations of this type; `Reserve`: another host
    /// was faster, or the device refuses.
    pub fn take(device: N, namespace: u32, key: u64) -> Result<Self, NvmeError> {
        let persist = offered(&device, namespace)?;
        let it = Self { device, namespace, persist, key };
        it.register().map_err(|source| it.failed("register", source))?;
        let report = it.report().map_err(|source| it.failed("tell who is registered", source))?;
        // Those of another path to the same host have its key, which is ours.
        let others = report.registrants.iter().filter(|it| it.key != key);
        for other in others {
            match it.acquire(Acquire::PreemptAndAbort, other.key) {
                // It is gone by itself.
                Err(error) if conflict(&error) => {}
                preempted => preempted.map_err(|source| it.failed("preempt a host", source))?,
            }
        }
        if !report.registrants.iter().any(|it| it.holds && it.key != key) {
            let taken = it.acquire(Acquire::Take, 0);
            taken.map_err(|source| it.failed("reserve it", source))?;
        }
        match it.is_ours().map_err(|source| it.failed("tell who holds it", source))? {
            true => Ok(it),
            false => {
                let source = io::Error::other("another host was faster");
                Err(it.failed("reserve it for us alone", source))
            }
        }
    }

    /// Whether nobody else may write.
    ///
    /// Errors: the device cannot be asked.
    pub fn is_ours(&self) -> io::Result<bool> {
        let report = self.report()?;
        let ours = report.registrants.iter().all(|it| it.key == self.key);
        let holds = report.registrants.iter().any(|it| it.holds);
        Ok(report.kind == WRITE_EXCLUSIVE_REGISTRANTS_ONLY && ours && holds)
    }

    /// Gives it up: whoever holds the reservation and is no longer registered has none.
    ///
    /// Errors: the device's; it was taken from us before.
    pub fn give_up(&self) -> io::Result<()> {
        let command = Command::register(self.namespace, Register::Remove, false);
        self.device.exchange(&command, &mut keys(self.key, 0))
    }

    /// A key of an earlier process of this machine may be there still.
    fn register(&self) -> io::Result<()> {
        let put = |action| {
            let command = Command::register(self.namespace, action, self.persist);
            self.device.exchange(&command, &mut keys(0, self.key))
        };
        match put(Register::Add) {
            Err(error) if conflict(&error) => put(Register::Replace),
            registered => registered,
        }
    }

    fn acquire(&self, action: Acquire, other: u64) -> io::Result<()> {
        let mut data: [u8; KEYS_BYTES] = keys(self.key, other);
        self.device.exchange(&Command::acquire(self.namespace, action), &mut data)
    }

    fn report(&self) -> io::Result<Report> {
        let ask = |extended| {
            let mut page = [0; REPORT_BYTES];
            self.device.exchange(&Command::report(self.namespace, extended), &mut page)?;
            Ok(Report::decode(&page, extended))
        };
        match ask(true) {
            Err(error) if is(&error, Status::HOST_ID_FORMAT) => ask(false),
            told => told,
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> NvmeError {
        NvmeError::Reserve { device: self.device.describe(), action, source }
    }
}

/// Whether reservations of this device can survive a loss of its power. Errors: it has none, or not
/// of the type that is wanted.
fn offered(device: &dyn Admin, namespace: u32) -> Result<bool, NvmeError> {
    let lacks = |why: &str| {
        let (device, why) = (device.describe(), why.to_owned());
        Err(NvmeError::NoReservations { device, why })
    };
    if !IdentifyController::decode(&identify_controller(device)?).can_reserve {
        return lacks("its controller offers none (bit 5 of ONCS is 0)");
    }
    let namespace = identify_namespace(device, namespace)?;
    match namespace.can_reserve {
        true => Ok(namespace.reservations_persist),
        false => lacks("none that lets only its registrants write (bit 3 of RESCAP is 0)"),
    }
}

fn conflict(error: &io::Error) -> bool {
    is(error, Status::RESERVATION_CONFLICT)
}

fn is(error: &io::Error, wanted: Status) -> bool {
    Status::of(error).is_some_and(|status| status.code() == wanted.code())
}

#[cfg(test)]
mod tests {
    use super::sim::SimNamespace;
    use super::*;

    #[test]
    fn whoever_takes_it_last_is_the_only_one_that_writes() {
        taken_in_turn(&SimNamespace::default());
        taken_in_turn(&SimNamespace::with_short_ids());
    }

    fn taken_in_turn(device: &SimNamespace) {
        let (a, b, stranger) = (device.host(1), device.host(2), device.host(3));
        assert!(a.may_write().is_ok() && b.may_write().is_ok(), "nobody reserved it");
        let first = Reservation::take(a.clone(), 1, 11).unwrap();
        assert!(first.is_ours().unwrap() && a.may_write().is_ok() && b.may_write().is_err());
        let second = Reservation::take(b.clone(), 1, 22).unwrap();
        assert!(second.is_ours().unwrap() && !first.is_ours().unwrap());
        assert!(a.may_write().is_err() && b.may_write().is_ok());
        // Whoever lost it cannot give it up for the other.
        assert!(conflict(&first.give_up().unwrap_err()));
        assert!(a.may_write().is_err() && stranger.may_write().is_err());
        // A process that comes after one that was killed has another key.
        let again = Reservation::take(b.clone(), 1, 33).unwrap();
        assert!(again.is_ours().unwrap() && conflict(&second.give_up().unwrap_err()));
        again.give_up().unwrap();
        assert!(a.may_write().is_ok() && stranger.may_write().is_ok());
    }

    #[test]
    fn hosts_that_registered_without_reserving_go_as_well() {
        let device = SimNamespace::default();
        let stranger = device.host(3);
        let register = Command::register(1, Register::Add, false);
        stranger.exchange(&register, &mut keys(0, 99)).unwrap();
        let taken = Reservation::take(device.host(1), 1, 11).unwrap();
        assert!(taken.is_ours().unwrap() && stranger.may_write().is_err());
    }

    /// A device that lacks something.
    struct Poor {
        host: super::sim::SimHost,
        lacks: u8,
    }

    impl Admin for Poor {
        fn read(&self, command: &Command, data: &mut [u8]) -> io::Result<()> {
            match command.dwords[0] == u32::from(self.lacks) {
                true => Ok(()),
                false => self.host.read(command, data),
            }
        }

        fn describe(&self) -> String {
            "poor".to_owned()
        }
    }

    impl Namespace for Poor {
        fn exchange(&self, _command: &Command, _data: &mut [u8]) -> io::Result<()> {
            panic!("nothing is tried on a device that does not offer it");
        }
    }

    #[test]
    fn what_is_not_offered_is_told_and_not_tried() {
        for (lacks, said) in [(1, "ONCS"), (0, "RESCAP")] {
            let poor = Poor { host: SimNamespace::default().host(1), lacks };
            let refused = Reservation::take(poor, 1, 11).err().unwrap();
            assert!(matches!(refused, NvmeError::NoReservations { .. }));
            assert!(refused.to_string().contains(said), "{refused}");
        }
    }
}
