//! A temporary sealed store, and a pipeline into it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use tempfile::TempDir;
use wirevault_buffer::{Arena, ArenaOptions, Hugepages, Pool};
use wirevault_capture::Source;
use wirevault_index::KeySource;
use wirevault_media::{DirMedia, Media};
use wirevault_pipeline::{LaneSpec, Pipeline, PipelineOptions, Topology};
use wirevault_seal::{FileProvider, random};
use wirevault_storage::{CreateOptions, Store, create};
use wirevault_telemetry::clock::{Clock, SystemClock};

/// Folder of the volumes.
const STORE: &str = "store";

/// Where a measurement stores.
#[derive(Debug, Args)]
pub(crate) struct SiteOptions {
    /// GiB that the store may take; older segments are given up for newer ones.
    #[arg(long, value_name = "N", default_value_t = 8)]
    quota_gib: u64,
    /// Folder for the store; its disk is what is measured [default: the system's temporary folder].
    #[arg(long, value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
    /// Which threads share the work.
    #[arg(long, value_enum, default_value = "auto")]
    topology: Threads,
}

/// Which threads share the work.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Threads {
    /// As the recorder chooses by the number of cores.
    Auto,
    /// A lane seals and indexes its own chunks.
    #[value(name = "run_to_completion")]
    RunToCompletion,
    /// A lane has a sealer of its own.
    Split,
}

impl SiteOptions {
    /// A fixed quota: places are used again, as they are in service.
    pub(crate) fn quota_bytes(&self) -> u64 {
        self.quota_gib << 30
    }

    pub(crate) fn topology(&self) -> Topology {
        match self.topology {
            Threads::Auto => Topology::Auto,
            Threads::RunToCompletion => Topology::RunToCompletion,
            Threads::Split => Topology::Split,
        }
    }
}

/// Folder that is removed with everything in it.
pub(crate) struct Site {
    folder: TempDir,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Site {
    /// A folder in `under`, or in the system's folder for temporary files.
    pub(crate) fn new(under: Option<&Path>) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("wirevault-bench-");
        let folder = match under {
            Some(under) => builder.tempdir_in(under),
            None => builder.tempdir(),
        };
        Ok(Self { folder: folder.context("temporary folder")?, clock: Arc::new(SystemClock) })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a sealed store for one lane and starts a pipeline from `source` into it.
    pub(crate) fn start(
        &self,
        source: Box<dyn Source>,
        quota_bytes: u64,
        arena_bytes: usize,
        options: &PipelineOptions,
    ) -> Result<Pipeline> {
        self.start_lanes(vec![source], 1, quota_bytes, arena_bytes, options)
    }

    /// As `start`, with a lane for each source and some volumes, all in the same folder.
    pub(crate) fn start_lanes(
        &self,
        sources: Vec<Box<dyn Source>>,
        volumes: usize,
        quota_bytes: u64,
        arena_bytes: usize,
        options: &PipelineOptions,
    ) -> Result<Pipeline> {
        let key_path = self.path().join("store.key");
        let key = FileProvider::create(&key_path)?;
        let made_with = CreateOptions {
            quota_bytes: Some(quota_bytes),
            lanes: u16::try_from(sources.len()).context("lanes")?,
            key: Some(Arc::new(key)),
            key_path: key_path.display().to_string(),
            clock: Arc::clone(&self.clock),
        };
        let made = (0..volumes).map(|number| {
            let path = self.volume(number);
            std::fs::create_dir_all(self.path().join(STORE))?;
            let media: Arc<dyn Media> = Arc::new(DirMedia::create(&path)?);
            Ok((media, path.display().to_string()))
        });
        create(&made.collect::<Result<Vec<_>>>()?, random::store_id()?, &made_with)?;
        let store =
            Store::open_dir(&self.volume(0), &KeySource::Recorded, Arc::clone(&self.clock))?.0;
        let arena =
            ArenaOptions { bytes: arena_bytes, hugepages: Hugepages::Auto, numa_node: None };
        let pool = Pool::new(Arena::new(arena)?);
        let lanes = sources.into_iter().map(LaneSpec::new).collect();
        let clock = Arc::clone(&self.clock);
        Ok(Pipeline::start(store, pool, lanes, options, clock)?)
    }

    fn volume(&self, number: usize) -> PathBuf {
        self.path().join(STORE).join(number.to_string())
    }

    /// Makes room for the next store.
    pub(crate) fn clear(&self) -> Result<()> {
        std::fs::remove_dir_all(self.path().join(STORE)).context("removing the store")?;
        std::fs::remove_file(self.path().join("store.key")).context("removing the key")
    }
}
