//! The best back end that works here.

use std::io;

use wirevault_buffer::Arena;

use crate::Queue;
use crate::error::NvmeError;
use crate::options::{Backend, QueueOptions};
use crate::thread::ThreadQueue;
use crate::uring::UringQueue;

/// Opens the back end that the options ask for. With [`Backend::Auto`] that is io_uring, or the
/// thread where io_uring cannot be had; the report's `why_not` then begins with the reason.
///
/// Errors: options beyond limits, or the back end that was asked for by name cannot be had.
pub fn open_best(options: &QueueOptions, arena: &Arena) -> Result<Box<dyn Queue>, NvmeError> {
    options.check()?;
    match options.backend {
        Backend::Passthrough => Err(NvmeError::Setup {
            backend: "passthrough",
            reason: "it needs a device, and this volume is a folder",
            source: io::ErrorKind::Unsupported.into(),
        }),
        Backend::Uring => Ok(Box::new(UringQueue::new(options, Some(arena))?)),
        Backend::Thread => {
            let mut queue = ThreadQueue::new(options)?;
            queue.because("the thread queue was asked for by name".to_owned());
            Ok(Box::new(queue))
        }
        Backend::Auto => match UringQueue::new(options, Some(arena)) {
            Ok(queue) => Ok(Box::new(queue)),
            Err(error) => fall_back(options, &error),
        },
    }
}

fn fall_back(options: &QueueOptions, error: &NvmeError) -> Result<Box<dyn Queue>, NvmeError> {
    let mut queue = ThreadQueue::new(options)?;
    queue.because(error.to_string());
    Ok(Box::new(queue))
}

#[cfg(test)]
mod tests {
    use wirevault_buffer::{ArenaOptions, Hugepages};

    use super::*;

    #[test]
    fn the_reason_for_a_lesser_back_end_is_told() {
        let error = NvmeError::Setup {
            backend: "io_uring",
            reason: "io_uring is forbidden here",
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        let queue = fall_back(&QueueOptions::default(), &error).unwrap();
        assert_eq!(queue.name(), "thread");
        assert!(queue.report().why_not[0].contains("forbidden"), "{:?}", queue.report());
    }

    #[test]
    fn names_and_limits_are_obeyed() {
        let arena =
            Arena::new(ArenaOptions { bytes: 1 << 20, hugepages: Hugepages::Off, numa_node: None })
                .unwrap();
        let named = QueueOptions { backend: Backend::Thread, ..QueueOptions::default() };
        assert_eq!(open_best(&named, &arena).unwrap().name(), "thread");
        for bad in [
            QueueOptions { depth: 0, ..named },
            QueueOptions { depth: 1 << 20, ..named },
            QueueOptions { slots: 0, ..named },
        ] {
            assert!(matches!(open_best(&bad, &arena), Err(NvmeError::Option { .. })));
        }
    }
}
