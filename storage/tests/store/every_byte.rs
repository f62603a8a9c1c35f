//! A disk that remembers every byte that was ever written to it, as flash may.

use std::io;
use std::sync::{Arc, Mutex};

use wirevault_media::{Media, MediaFile, SimMedia};
use wirevault_testkit::hooked::{DiskHook, FileHook, Hooked};

/// One write.
pub(crate) struct Written {
    pub(crate) file: String,
    pub(crate) bytes: Vec<u8>,
}

/// Every write, over crashes and overwriting.
pub(crate) type Writes = Arc<Mutex<Vec<Written>>>;

/// A simulated disk whose writes are remembered elsewhere.
pub(crate) fn remembered(media: &SimMedia, writes: &Writes) -> Arc<dyn Media> {
    let below: Arc<dyn Media> = Arc::new(media.clone());
    Arc::new(Hooked::new(below, Remember(Arc::clone(writes))))
}

struct Remember(Writes);

impl DiskHook for Remember {
    type File = Self;

    fn opened(&self, _name: &str) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl FileHook for Remember {
    /// Remembered before it is known to have gone well: parts of it may be there.
    fn write(&self, file: &dyn MediaFile, data: &[u8], offset: u64) -> io::Result<()> {
        let written = Written { file: file.name().to_owned(), bytes: data.to_vec() };
        self.0.lock().unwrap().push(written);
        file.write_at(data, offset)
    }
}
