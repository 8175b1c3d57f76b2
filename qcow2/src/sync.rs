//! The locks and atomics of this crate: the one place that knows whose they are.
//!
//! Without the feature `shuttle` they are parking_lot's and std's. With it a scheduler decides every step of every
//! thread, so that a test can run the real code in thousands of orders and repeat each of them.

#[cfg(not(feature = "shuttle"))]
mod imp {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64};

    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

    /// Waits on `condvar` until somebody wakes it; `guard` is free meanwhile.
    pub(crate) fn wait<'a, T>(
        condvar: &Condvar,
        mut guard: MutexGuard<'a, T>,
    ) -> MutexGuard<'a, T> {
        condvar.wait(&mut guard);
        guard
    }
}

/// shuttle's locks behind parking_lot's names: a thread that panicked ends the whole schedule, so that poisoning says
/// nothing.
#[cfg(feature = "shuttle")]
mod imp {
    use std::sync::PoisonError;

    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64};
    pub(crate) use shuttle::sync::{Condvar, MutexGuard};
    use shuttle::sync::{RwLockReadGuard, RwLockWriteGuard};

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// Waits on `condvar` until somebody wakes it; `guard` is free meanwhile.
    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) use std::sync::atomic::Ordering;

pub(crate) use imp::{AtomicBool, AtomicU64, Condvar, Mutex, RwLock, wait};
