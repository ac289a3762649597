//! Memory reserved once, in large pages where the system has them.
//!
//! The index is read and written all over its memory, so with pages of 4 KiB nearly each look at a driver of a large
//! fleet also misses the processor's table of pages, which costs more than the line itself (most of all on a virtual
//! machine, which walks two tables). Asking for large pages is a hint that changes nothing but time: where it is
//! refused, or not known, everything works in ordinary ones.

#[cfg(not(all(target_os = "linux", not(loom))))]
pub(crate) use elsewhere::Reserved;
#[cfg(all(target_os = "linux", not(loom)))]
pub(crate) use linux::Reserved;

#[cfg(all(target_os = "linux", not(loom)))]
mod linux {
    use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
    use std::ffi::{c_int, c_void};
    use std::marker::PhantomData;
    use std::ops::Deref;
    use std::ptr::NonNull;

    const LARGE_PAGE: usize = 2 << 20;
    /// The system's name for the wish.
    const MADV_HUGEPAGE: c_int = 14;

    // SAFETY: as declared by POSIX and Linux; the C library that std itself links has it.
    unsafe extern "C" {
        fn madvise(at: *mut c_void, length: usize, advice: c_int) -> c_int;
    }

    /// A slice that owns its memory, like `Box<[T]>`.
    #[derive(Debug)]
    pub(crate) struct Reserved<T> {
        start: NonNull<T>,
        count: usize,
        owns: PhantomData<T>,
    }

    // SAFETY: it owns its elements as a `Box<[T]>` does, so it may go and be seen where they may.
    unsafe impl<T: Send> Send for Reserved<T> {}
    // SAFETY: see above.
    unsafe impl<T: Sync> Sync for Reserved<T> {}

    impl<T> Reserved<T> {
        /// `count` elements, each made by `make`.
        pub fn new(count: usize, mut make: impl FnMut() -> T) -> Self {
            let layout = layout::<T>(count);
            let start = if layout.size() == 0 {
                NonNull::dangling()
            } else {
                // SAFETY: the size is not 0.
                let start = unsafe { alloc(layout) };
                let whole_pages = layout.size() / LARGE_PAGE * LARGE_PAGE;
                if whole_pages > 0 {
                    // SAFETY: whole pages of memory that is ours and aligned to them; the advice neither reads nor
                    // writes it. A refusal is no loss, so the answer is not looked at.
                    unsafe { madvise(start.cast(), whole_pages, MADV_HUGEPAGE) };
                }
                NonNull::new(start.cast()).unwrap_or_else(|| handle_alloc_error(layout))
            };
            for number in 0..count {
                // SAFETY: within the allocation, aligned for `T`, and not yet an element. If `make` panics the memory
                // leaks, which is safe.
                unsafe { start.add(number).write(make()) };
            }
            Self {
                start,
                count,
                owns: PhantomData,
            }
        }
    }

    impl<T> Deref for Reserved<T> {
        type Target = [T];

        #[inline]
        fn deref(&self) -> &[T] {
            // SAFETY: `new` made `count` elements there, and they live as long as `self`.
            unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
        }
    }

    impl<T> Drop for Reserved<T> {
        fn drop(&mut self) {
            let layout = layout::<T>(self.count);
            // SAFETY: the elements were made by `new` and nobody has them any more; the memory came from `alloc` with
            // this very layout.
            unsafe {
                std::ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.count).drop_in_place();
                if layout.size() > 0 {
                    dealloc(self.start.as_ptr().cast(), layout);
                }
            }
        }
    }

    /// From a large page on, memory begins at the start of one.
    fn layout<T>(count: usize) -> Layout {
        let plain = Layout::array::<T>(count).expect("bounded by the index's own bounds");
        let align = if plain.size() >= LARGE_PAGE {
            LARGE_PAGE
        } else {
            plain.align()
        };
        plain.align_to(align).expect("bounded as above")
    }
}

#[cfg(not(all(target_os = "linux", not(loom))))]
mod elsewhere {
    use std::ops::Deref;

    /// A slice that owns its memory.
    #[derive(Debug)]
    pub(crate) struct Reserved<T>(Box<[T]>);

    impl<T> Reserved<T> {
        /// `count` elements, each made by `make`.
        pub fn new(count: usize, mut make: impl FnMut() -> T) -> Self {
            Self((0..count).map(|_| make()).collect())
        }
    }

    impl<T> Deref for Reserved<T> {
        type Target = [T];

        #[inline]
        fn deref(&self) -> &[T] {
            &self.0
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::Reserved;
    use std::sync::Arc;

    #[test]
    fn elements_are_made_in_order_and_dropped_once() {
        // Nothing at all, less than a large page, and more than one with a rest.
        for count in [0, 1_000, 700_001] {
            let witness = Arc::new(());
            let mut next = 0;
            let reserved = Reserved::new(count, || {
                next += 1;
                (next, Arc::clone(&witness))
            });
            assert_eq!(reserved.len(), count);
            assert!(reserved.iter().map(|one| one.0).eq(1..=count));
            assert_eq!(Arc::strong_count(&witness), count + 1);
            drop(reserved);
            assert_eq!(Arc::strong_count(&witness), 1);
        }
    }
}
