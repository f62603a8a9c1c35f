//! Periods on disk: what is to be sent, and what may have been.
//!
//! A folder with a file for each period, named by its last second:
//!
//! | name | means |
//! |---|---|
//! | `SECOND.json` | it has not been sent |
//! | `SECOND.sending` | it is being sent, or it was and the answer is lost |
//! | `SECOND.new` | it is being written; of no use after a crash |
//!
//! A file is complete when it gets the first name, and has the second one durably before anything
//! is sent. It goes when the service has said that it has the period. So a crash at any point
//! leaves a period that is surely not sent, or one that must be asked for.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use wirevault_telemetry::publish::Period;

const WAITING: &str = "json";
const SENDING: &str = "sending";
const UNFINISHED: &str = "new";

/// The folder.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    periods_max: usize,
}

/// What is in it, by last second, rising.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Spooled {
    pub(super) waiting: Vec<u64>,
    pub(super) doubtful: Vec<u64>,
}

impl Spool {
    /// In this folder, which is made; for so many periods at most. What was not written to its end
    /// goes.
    ///
    /// Errors: the folder cannot be made or read.
    pub(super) fn open(folder: &Path, periods_max: usize) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == UNFINISHED) {
                fs::remove_file(path)?;
            }
        }
        Ok(Self { folder: folder.to_owned(), periods_max })
    }

    /// What there is. Files of other names are left alone.
    pub(super) fn list(&self) -> io::Result<Spooled> {
        let mut spooled = Spooled::default();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let Some((second, kind)) = name.to_str().and_then(|it| it.split_once('.')) else {
                continue;
            };
            match (second.parse(), kind) {
                (Ok(until_s), WAITING) => spooled.waiting.push(until_s),
                (Ok(until_s), SENDING) => spooled.doubtful.push(until_s),
                _ => {}
            }
        }
        spooled.waiting.sort_unstable();
        spooled.doubtful.sort_unstable();
        Ok(spooled)
    }

    /// Writes a period down. One that ends in a second that is there already gets a later one: the
    /// service knows periods by it.
    pub(super) fn add(&self, mut period: Period) -> io::Result<()> {
        while [WAITING, SENDING].iter().any(|kind| self.path(period.until_s, kind).exists()) {
            period.end_at(period.until_s + 1);
        }
        let unfinished = self.path(period.until_s, UNFINISHED);
        let mut file = File::create(&unfinished)?;
        file.write_all(&serde_json::to_vec(&period)?)?;
        file.sync_data()?;
        fs::rename(unfinished, self.path(period.until_s, WAITING))
    }

    /// A period that is to be sent. From now on nobody can be sure that it was not.
    pub(super) fn begin(&self, until_s: u64) -> io::Result<Period> {
        let (waiting, sending) = (self.path(until_s, WAITING), self.path(until_s, SENDING));
        let period = serde_json::from_slice(&fs::read(&waiting)?)?;
        fs::rename(waiting, sending)?;
        File::open(&self.folder)?.sync_all()?;
        Ok(period)
    }

    /// It was not sent, for sure.
    pub(super) fn again(&self, until_s: u64) -> io::Result<()> {
        fs::rename(self.path(until_s, SENDING), self.path(until_s, WAITING))
    }

    /// The service has it, or never will.
    pub(super) fn forget(&self, until_s: u64) -> io::Result<()> {
        let gone = |kind| match fs::remove_file(self.path(until_s, kind)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        gone(SENDING)?;
        gone(WAITING)
    }

    /// Gives up the oldest of those that are too many, and says how many these are.
    pub(super) fn trim(&self) -> io::Result<u64> {
        let waiting = self.list()?.waiting;
        let too_many = waiting.len().saturating_sub(self.periods_max);
        waiting[..too_many].iter().try_for_each(|until_s| self.forget(*until_s))?;
        Ok(too_many as u64)
    }

    fn path(&self, until_s: u64, kind: &str) -> PathBuf {
        self.folder.join(format!("{until_s}.{kind}"))
    }
}

#[cfg(test)]
mod tests {
    use wirevault_telemetry::publish::{MARKER, Series, Unit, Values};

    use super::*;

    fn period(until_s: u64) -> Period {
        Period { since_s: until_s - 5, until_s, series: Vec::new() }
    }

    #[test]
    fn a_period_waits_is_in_doubt_and_goes() {
        let dir = tempfile::TempDir::new().unwrap();
        let spool = Spool::open(&dir.path().join("deep/er"), 10).unwrap();
        spool.add(period(100)).unwrap();
        spool.add(period(200)).unwrap();
        fs::write(dir.path().join("deep/er/300.new"), "half").unwrap();
        assert_eq!(spool.list().unwrap().waiting, [100, 200]);
        assert_eq!(spool.begin(200).unwrap(), period(200));
        let again = Spool::open(&dir.path().join("deep/er"), 10).unwrap();
        assert!(!dir.path().join("deep/er/300.new").exists());
        let after_a_crash = Spooled { waiting: vec![100], doubtful: vec![200] };
        assert_eq!(again.list().unwrap(), after_a_crash);
        again.again(200).unwrap();
        assert_eq!(again.list().unwrap().waiting, [100, 200]);
        spool.begin(100).unwrap();
        spool.forget(100).unwrap();
        spool.forget(200).unwrap();
        assert_eq!(spool.list().unwrap(), Spooled::default());
    }

    #[test]
    fn no_two_periods_have_one_second() {
        let dir = tempfile::TempDir::new().unwrap();
        let spool = Spool::open(dir.path(), 10).unwrap();
        spool.add(period(100)).unwrap();
        spool.begin(100).unwrap();
        spool.add(period(100)).unwrap();
        let expected = Spooled { waiting: vec![101], doubtful: vec![100] };
        assert_eq!(spool.list().unwrap(), expected);
        assert_eq!(spool.begin(101).unwrap().until_s, 101);
    }

    /// The service was asked for the second, where there was no marker, and got the period again.
    #[test]
    fn a_period_that_moved_left_its_marker_behind() {
        let dir = tempfile::TempDir::new().unwrap();
        let spool = Spool::open(dir.path(), 10).unwrap();
        let mut marked = period(100);
        let values = Values::Seconds(vec![(5, 1.0)]);
        let name = MARKER.to_owned();
        marked.series.push(Series { name, device: None, unit: Unit::Count, values });
        spool.add(marked.clone()).unwrap();
        spool.add(marked.clone()).unwrap();
        assert_eq!(spool.begin(100).unwrap(), marked);
        let moved = spool.begin(101).unwrap();
        assert_eq!((moved.since_s, moved.until_s), (95, 101));
        assert_eq!(moved.series[0].values, Values::Seconds(vec![(6, 1.0)]));
    }

    #[test]
    fn the_oldest_are_given_up() {
        let dir = tempfile::TempDir::new().unwrap();
        let spool = Spool::open(dir.path(), 2).unwrap();
        [7, 8, 9, 10].into_iter().for_each(|until_s| spool.add(period(until_s)).unwrap());
        assert_eq!(spool.trim().unwrap(), 2);
        assert_eq!(spool.list().unwrap().waiting, [9, 10]);
    }

    #[test]
    fn a_damaged_file_is_told() {
        let dir = tempfile::TempDir::new().unwrap();
        let spool = Spool::open(dir.path(), 2).unwrap();
        fs::write(dir.path().join("7.json"), "{\"since_s\":").unwrap();
        assert!(spool.begin(7).is_err());
        spool.forget(7).unwrap();
        assert_eq!(spool.list().unwrap(), Spooled::default());
    }
}
