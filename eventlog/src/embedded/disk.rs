//! The disk under the store file, with a bound of its own.
//!
//! Everything is redb's own file backend; this wrapper refuses to let the file grow beyond a bound, as a full disk
//! would, and remembers that a write was refused for want of room, because redb reports only the first such error.

use std::fs::OpenOptions;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::store::is_full;

/// How large the file may become, and whether it wanted to become larger.
#[derive(Clone, Debug)]
pub(super) struct Disk(Arc<Room>);

#[derive(Debug)]
struct Room {
    max_bytes: AtomicU64,
    was_full: AtomicBool,
}

impl Disk {
    pub(super) fn new(max_bytes: u64) -> Disk {
        Disk(Arc::new(Room {
            max_bytes: AtomicU64::new(max_bytes),
            was_full: AtomicBool::new(false),
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

    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(is_full) {
            // Relaxed: set and taken by the thread that writes.
            self.0.was_full.store(true, Ordering::Relaxed);
        }
        result
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
        self.disk.noted(self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.noted(self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.noted(self.file.write(offset, data))
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
