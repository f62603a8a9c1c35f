//! What EC2's devices add to the specification: statistics in log page D0h, and the name that an
//! EBS volume has in the instance's block device mapping.
//!
//! Sources: EC2 user guide, "detailed performance statistics" of EBS and instance store volumes;
//! layouts as two public readers have them, nvme-cli (`plugins/amzn`) and the CloudWatch agent
//! (`awsnvmereceiver`). They agree on the first 96 bytes and, for EBS, on the histograms from byte
//! 512 on. For instance store they differ behind byte 96, so histograms of that kind are taken only
//! if they hold together.

use super::identify::IDENTIFY_BYTES;
use super::{bytes_at, text, u32_at, u64_at};

/// Number of the log page.
pub const AMAZON_LOG: u8 = 0xd0;
/// Bytes of the page.
pub const AMAZON_LOG_BYTES: usize = 4096;
/// Amazon's PCI vendor number.
pub const AMAZON_VENDOR: u16 = 0x1d0f;

const EBS_MAGIC: u32 = 0x3c23_b510;
const INSTANCE_STORE_MAGIC: u32 = 0xec2c_0d7e;
/// Bins that a histogram of the page has room for.
const BINS_MAX: usize = 64;
const BIN_BYTES: usize = 24;
const READ_HISTOGRAM_AT: usize = 512;
const WRITE_HISTOGRAM_AT: usize = READ_HISTOGRAM_AT + 8 + BINS_MAX * BIN_BYTES;

/// Log page D0h. Counters are of the device's life with this instance, times in microseconds.
///
/// ```text
/// byte  0 magic(4)   4 version(4)   8 reads(8)   16 writes(8)   24 bytes read(8)
///      32 bytes written(8)   40 time of reads(8)   48 time of writes(8)
///      56 volume over its IOPS(8)   64 volume over its throughput(8)
///      72 instance over its IOPS(8)   80 instance over its throughput(8)   88 queue length(8)
///     512 histogram of reads: bins(8), then lower(8), upper(8), count(4), reserved(4) each
///    2056 histogram of writes
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmazonLog {
    /// Whether it is an EBS volume; else it is instance store.
    pub is_ebs: bool,
    /// Reads completed.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Sum of the times of all reads.
    pub read_us: u64,
    /// Sum of the times of all writes.
    pub write_us: u64,
    /// Time in which the EBS volume was asked for more than its IOPS. 0 for instance store.
    pub volume_over_iops_us: u64,
    /// Time in which the EBS volume was asked for more than its throughput. 0 for instance store.
    pub volume_over_throughput_us: u64,
    /// Time in which the instance's limit of IOPS to such devices was exceeded.
    pub instance_over_iops_us: u64,
    /// Time in which the instance's limit of throughput to such devices was exceeded.
    pub instance_over_throughput_us: u64,
    /// Operations under way at the moment of asking.
    pub queue_length: u64,
    /// Latencies of reads, if the page has them.
    pub read_latency: Option<Vec<Bin>>,
    /// Latencies of writes, if the page has them.
    pub write_latency: Option<Vec<Bin>>,
}

/// One bin of a latency histogram: operations that took `lower_us` to `upper_us`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bin {
    /// Shortest time.
    pub lower_us: u64,
    /// Longest time.
    pub upper_us: u64,
    /// Operations.
    pub count: u32,
}

impl AmazonLog {
    /// Reads the page; nothing if its magic number is neither of the two known.
    pub fn decode(bytes: &[u8; AMAZON_LOG_BYTES]) -> Option<Self> {
        let is_ebs = match u32_at(bytes, 0) {
            EBS_MAGIC => true,
            INSTANCE_STORE_MAGIC => false,
            _ => return None,
        };
        let [volume_over_iops_us, volume_over_throughput_us] =
            if is_ebs { [u64_at(bytes, 56), u64_at(bytes, 64)] } else { [0; 2] };
        Some(Self {
            is_ebs,
            reads: u64_at(bytes, 8),
            writes: u64_at(bytes, 16),
            read_bytes: u64_at(bytes, 24),
            written_bytes: u64_at(bytes, 32),
            read_us: u64_at(bytes, 40),
            write_us: u64_at(bytes, 48),
            volume_over_iops_us,
            volume_over_throughput_us,
            instance_over_iops_us: u64_at(bytes, 72),
            instance_over_throughput_us: u64_at(bytes, 80),
            queue_length: u64_at(bytes, 88),
            read_latency: histogram(bytes, READ_HISTOGRAM_AT),
            write_latency: histogram(bytes, WRITE_HISTOGRAM_AT),
        })
    }
}

/// The time that `share` (0 to 1) of a histogram's operations did not exceed: the upper end of the
/// bin in which that operation lies. Nothing without operations.
pub fn quantile_us(bins: &[Bin], share: f64) -> Option<u64> {
    let total: u64 = bins.iter().map(|bin| u64::from(bin.count)).sum();
    let wanted = ((total as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
    let mut seen = 0;
    bins.iter().find_map(|bin| {
        seen += u64::from(bin.count);
        (total > 0 && seen >= wanted).then_some(bin.upper_us)
    })
}

/// A histogram whose bins follow each other; anything else is a layout that we do not know.
fn histogram(bytes: &[u8], at: usize) -> Option<Vec<Bin>> {
    let count = usize::try_from(u64_at(bytes, at)).ok()?;
    if !(1..=BINS_MAX).contains(&count) {
        return None;
    }
    let place = |n| at + 8 + n * BIN_BYTES;
    let bins: Vec<_> = (0..count)
        .map(|n| Bin {
            lower_us: u64_at(bytes, place(n)),
            upper_us: u64_at(bytes, place(n) + 8),
            count: u32_at(bytes, place(n) + 16),
        })
        .collect();
    let ordered = bins.iter().all(|bin| bin.lower_us < bin.upper_us)
        && bins.windows(2).all(|pair| pair[0].upper_us <= pair[1].lower_us);
    ordered.then_some(bins)
}

/// The name of an EBS volume in the block device mapping, such as `/dev/sdf` or `xvdf`: bytes 3072
/// to 3103 of Identify Controller.
pub fn mapped_name(identify: &[u8; IDENTIFY_BYTES]) -> Option<String> {
    let name = text::<32>(bytes_at(identify, 3072));
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(magic: u32, bins: &[Bin]) -> [u8; AMAZON_LOG_BYTES] {
        let mut bytes = [0; AMAZON_LOG_BYTES];
        bytes[..4].copy_from_slice(&magic.to_le_bytes());
        for n in 1..=11u64 {
            let at = n as usize * 8;
            bytes[at..at + 8].copy_from_slice(&(n * 100).to_le_bytes());
        }
        for start in [READ_HISTOGRAM_AT, WRITE_HISTOGRAM_AT] {
            bytes[start..start + 8].copy_from_slice(&(bins.len() as u64).to_le_bytes());
            for (n, bin) in bins.iter().enumerate() {
                let at = start + 8 + n * BIN_BYTES;
                bytes[at..at + 8].copy_from_slice(&bin.lower_us.to_le_bytes());
                bytes[at + 8..at + 16].copy_from_slice(&bin.upper_us.to_le_bytes());
                bytes[at + 16..at + 20].copy_from_slice(&bin.count.to_le_bytes());
            }
        }
        bytes
    }

    fn bins(counts: &[u32]) -> Vec<Bin> {
        let bin = |(n, count): (usize, &u32)| Bin {
            lower_us: (1 << n) - 1,
            upper_us: (2 << n) - 1,
            count: *count,
        };
        counts.iter().enumerate().map(bin).collect()
    }

    #[test]
    fn both_kinds_are_read() {
        let written = bins(&[1, 2, 3]);
        let ebs = AmazonLog::decode(&page(EBS_MAGIC, &written)).unwrap();
        assert!(ebs.is_ebs);
        assert_eq!((ebs.reads, ebs.writes, ebs.written_bytes, ebs.write_us), (100, 200, 400, 600));
        assert_eq!((ebs.volume_over_iops_us, ebs.volume_over_throughput_us), (700, 800));
        assert_eq!((ebs.instance_over_iops_us, ebs.instance_over_throughput_us), (900, 1000));
        assert_eq!((ebs.queue_length, ebs.write_latency), (1100, Some(written)));
        let local = AmazonLog::decode(&page(INSTANCE_STORE_MAGIC, &[])).unwrap();
        assert!(!local.is_ebs);
        assert_eq!((local.volume_over_iops_us, local.instance_over_throughput_us), (0, 1000));
        assert_eq!(local.read_latency, None);
        assert_eq!(AmazonLog::decode(&page(0x1234_5678, &[])), None);
    }

    #[test]
    fn bins_that_do_not_hold_together_are_no_histogram() {
        let mut disordered = bins(&[1, 2, 3]);
        disordered.swap(0, 2);
        let log = AmazonLog::decode(&page(INSTANCE_STORE_MAGIC, &disordered)).unwrap();
        assert_eq!(log.read_latency, None);
        let mut bytes = page(EBS_MAGIC, &bins(&[1]));
        bytes[READ_HISTOGRAM_AT..READ_HISTOGRAM_AT + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(AmazonLog::decode(&bytes).unwrap().read_latency, None);
    }

    #[test]
    fn quantiles_are_ends_of_bins() {
        let bins = bins(&[50, 49, 1]);
        let at = |share| quantile_us(&bins, share);
        assert_eq!((at(0.0), at(0.5), at(0.99), at(1.0)), (Some(1), Some(1), Some(3), Some(7)));
        assert_eq!(quantile_us(&[], 0.5), None);
    }

    #[test]
    fn mapped_names_are_found() {
        let mut identify = [0; IDENTIFY_BYTES];
        assert_eq!(mapped_name(&identify), None);
        identify[3072..3104].copy_from_slice(b"/dev/sdf                        ");
        assert_eq!(mapped_name(&identify).as_deref(), Some("/dev/sdf"));
    }

    proptest! {
        #[test]
        fn what_was_put_down_is_read(counts in prop::collection::vec(any::<u32>(), 1..=62)) {
            let written = bins(&counts);
            let log = AmazonLog::decode(&page(EBS_MAGIC, &written)).unwrap();
            prop_assert_eq!(log.write_latency.as_deref(), Some(written.as_slice()));
            prop_assert_eq!(log.read_latency.as_deref(), Some(written.as_slice()));
            let last = quantile_us(&written, 1.0);
            prop_assert_eq!(last.is_some(), counts.iter().any(|count| *count > 0));
        }
    }
}
