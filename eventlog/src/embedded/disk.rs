//! The disk under the store file: bounded when writing, untouched when only reading.
//!
//! Everything is redb's own file backend, behind two wrappers. [`BoundedFile`] refuses to let the file grow beyond a
//! bound, as a full disk would, and remembers that a write was refused for want of room, because redb reports only
//! the first such error. [`ReadView`] keeps what redb writes in memory: after a failed write redb refuses to read
//! until the file is opened again, and opening repairs, which writes; on a full disk that must not touch the file.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::store::is_full;

/// Memory for what a repair writes while the store is open for reading only; beyond it the store cannot be read.
const READ_VIEW_MAX_BYTES: usize = 256 << 20;
/// Room that must be there before a full disk counts as no longer full.
pub(super) const ROOM_PROBE_BYTES: usize = 1 << 20;
/// The file that probes for room, next to the store.
const ROOM_FILE: &str = "cabrank.room";

const BLOCK: u64 = 4_096;

/// How large the file may become, and whether it wanted to become larger.
#[derive(Clone, Debug)]
pub(super) struct Disk(Arc<Room>);

#[derive(Debug)]
struct Room {
    max_bytes: AtomicU64,
    was_full: AtomicBool,
    /// Writes that still succeed, for tests of a disk that fills up in the middle.
    #[cfg(test)]
    writes_left: AtomicU64,
    /// The writes after those fail for another reason than room.
    #[cfg(test)]
    breaks: AtomicBool,
}

impl Disk {
    pub(super) fn new(max_bytes: u64) -> Disk {
        Disk(Arc::new(Room {
            max_bytes: AtomicU64::new(max_bytes),
            was_full: AtomicBool::new(false),
            #[cfg(test)]
            writes_left: AtomicU64::new(u64::MAX),
            #[cfg(test)]
            breaks: AtomicBool::new(false),
        }))
    }

    pub(super) fn set_max_bytes(&self, max_bytes: u64) {
        // Relaxed: a number by itself; whoever grows the file next may see the old or the new bound.
        self.0.max_bytes.store(max_bytes, Ordering::Relaxed);
    }

    pub(super) fn take_was_full(&self) -> bool {
        // Relaxed: set and taken by the thread that writes.
        self.0.was_full.swap(false, Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn set_writes_left(&self, writes: u64) {
        // Relaxed: a number by itself.
        self.0.writes_left.store(writes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn set_breaks(&self) {
        // Relaxed: set before the writes it is for, by the same thread.
        self.0.breaks.store(true, Ordering::Relaxed);
    }

    pub(super) fn open(&self, path: &Path) -> Result<BoundedFile, redb::Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        Ok(BoundedFile {
            file: FileBackend::new(file)?,
            disk: self.clone(),
        })
    }

    /// Whether there is room beside the store; a cheap look before the store is disturbed.
    pub(super) fn has_room(&self, dir: &Path) -> io::Result<bool> {
        let path = dir.join(ROOM_FILE);
        let probe = || -> io::Result<()> {
            self.spend_write()?;
            let mut file = File::create(&path)?;
            file.write_all(&vec![0x5a; ROOM_PROBE_BYTES])?;
            file.sync_all()
        };
        let result = probe();
        // It may never have been created; what matters is the result above.
        let _ = std::fs::remove_file(&path);
        match result {
            Ok(()) => Ok(true),
            Err(e) if is_full(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(is_full) {
            // Relaxed: set and taken by the thread that writes.
            self.0.was_full.store(true, Ordering::Relaxed);
        }
        result
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests count")]
    fn spend_write(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn spend_write(&self) -> io::Result<()> {
        // Relaxed: a number by itself.
        match self
            .0
            .writes_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            }) {
            Ok(_) => Ok(()),
            // Relaxed: see `set_breaks`.
            Err(_) if self.0.breaks.load(Ordering::Relaxed) => {
                Err(io::Error::other("the disk is broken"))
            }
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

/// A file that grows up to a bound.
#[derive(Debug)]
pub(super) struct BoundedFile {
    file: FileBackend,
    disk: Disk,
}

impl StorageBackend for BoundedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // Relaxed: a number by itself, see `set_max_bytes`.
        let max = self.disk.0.max_bytes.load(Ordering::Relaxed);
        if len > max && len > self.file.len()? {
            return self.disk.noted(Err(io::ErrorKind::StorageFull.into()));
        }
        self.disk.noted(
            self.disk
                .spend_write()
                .and_then(|()| self.file.set_len(len)),
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk
            .noted(self.disk.spend_write().and_then(|()| self.file.sync_data()))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.noted(
            self.disk
                .spend_write()
                .and_then(|()| self.file.write(offset, data)),
        )
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

/// A file as it is, with changes in memory only.
#[derive(Debug)]
pub(super) struct ReadView {
    file: FileBackend,
    changes: Mutex<Changes>,
}

#[derive(Debug)]
struct Changes {
    len: u64,
    /// Nothing of the file at or beyond this is shown: the view was once cut here.
    file_end: u64,
    blocks: HashMap<u64, Box<[u8]>>,
}

impl ReadView {
    pub(super) fn open(path: &Path) -> Result<ReadView, redb::Error> {
        let file = FileBackend::new(File::open(path)?)?;
        let len = file.len()?;
        Ok(ReadView {
            file,
            changes: Mutex::new(Changes {
                len,
                file_end: len,
                blocks: HashMap::new(),
            }),
        })
    }

    fn block_of_file(&self, changes: &Changes, block: u64) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; BLOCK as usize].into_boxed_slice();
        let start = block * BLOCK;
        let there = changes.file_end.saturating_sub(start).min(BLOCK) as usize;
        self.file.read(start, &mut bytes[..there])?;
        Ok(bytes)
    }

    /// Visits the part of each block that a range covers: block, place in the block, place in the range.
    fn each_block(
        offset: u64,
        len: usize,
        mut visit: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let within = (at % BLOCK) as usize;
            let count = (BLOCK as usize - within).min(len - done);
            visit(at / BLOCK, within..within + count, done..done + count)?;
            done += count;
        }
        Ok(())
    }
}

impl StorageBackend for ReadView {
    fn len(&self) -> io::Result<u64> {
        Ok(super::locked(&self.changes).len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changes = super::locked(&self.changes);
        if offset + out.len() as u64 > changes.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Self::each_block(offset, out.len(), |block, within, part| {
            match changes.blocks.get(&block) {
                Some(bytes) => out[part].copy_from_slice(&bytes[within]),
                None => {
                    out[part].copy_from_slice(&self.block_of_file(&changes, block)?[within]);
                }
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut changes = super::locked(&self.changes);
        changes.len = len;
        changes.file_end = changes.file_end.min(len);
        changes.blocks.retain(|block, _| block * BLOCK < len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut changes = super::locked(&self.changes);
        Self::each_block(offset, data.len(), |block, within, part| {
            if !changes.blocks.contains_key(&block) {
                if changes.blocks.len() * BLOCK as usize >= READ_VIEW_MAX_BYTES {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                let bytes = self.block_of_file(&changes, block)?;
                changes.blocks.insert(block, bytes);
            }
            if let Some(bytes) = changes.blocks.get_mut(&block) {
                bytes[within].copy_from_slice(&data[part]);
            }
            Ok(())
        })
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    // The directory's lock file keeps other processes away, and locking needs a file open for writing.
    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}
