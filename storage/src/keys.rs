//! Key rings of a store that is open, written again because the key changed.

use crate::volume::VolumeWriter;
use crate::{StorageError, Store};

impl Store {
    /// Whether key rings may be written: nothing can be deleted for good as long as they may not.
    ///
    /// # Errors
    /// `Key`: why not, when the key was taken away and the configuration says to stop then.
    pub fn may_write_rings(&self) -> Result<(), StorageError> {
        self.volumes.iter().try_for_each(|volume| volume.look().may_begin())
    }

    /// Writes every key ring again, under what the provider wraps with now.
    ///
    /// # Errors
    /// The first of what the volumes say; the rings of the others are written all the same.
    pub fn renew_rings(&self) -> Result<(), StorageError> {
        self.of_each_volume(|volume| volume.rewrite_ring(volume.spares()))
    }

    /// After the provider has gone over to another key: names it in the superblocks, writes every
    /// key ring again and leaves none that hangs from the former key. After a crash in between the
    /// former key may still be needed to open the store; the next start goes on with the one that
    /// the first volume names.
    ///
    /// # Errors
    /// As for `renew_rings`.
    pub fn record_key(&self, key_id: &str, name: &str) -> Result<(), StorageError> {
        self.of_each_volume(|volume| {
            volume.set_superblock(|superblock| {
                (superblock.key_id, superblock.key_path) = (key_id.to_owned(), name.to_owned());
            })?;
            volume.rewrite_ring(volume.spares())?;
            volume.forget_older_ring().map(drop)
        })
    }

    /// After a crash in [`Store::record_key`] the superblocks name two keys, and a volume that is
    /// opened by itself would go back to the former one: all go over to the first volume's.
    pub(crate) fn finish_key_move(&self) -> Result<(), StorageError> {
        let named = self.volumes.iter().map(|volume| {
            volume.work(|volume| {
                let superblock = volume.superblock();
                (superblock.key_id.clone(), superblock.key_path.clone())
            })
        });
        let named: Vec<_> = named.collect();
        match named.split_first() {
            Some((first, others)) if others.iter().any(|other| other != first) => {
                self.record_key(&first.0, &first.1)
            }
            _ => Ok(()),
        }
    }

    fn of_each_volume(
        &self,
        mut work: impl FnMut(&mut VolumeWriter) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let done: Vec<_> = self.volumes.iter().map(|volume| volume.work(&mut work)).collect();
        done.into_iter().collect()
    }
}
