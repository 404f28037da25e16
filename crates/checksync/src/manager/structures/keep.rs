//! The structures of one app on the side that serves it, and the library that changes them.
//!
//! All changes since the manager took the app have numbers, from 1. What was *taken* is in the store, and goes with
//! the next epoch; what was *released* is committed, or there is nobody who could take over without it, and only that
//! is told to the library. A library that joins gets the structures once all that they hold is released: what a
//! program before it had not been told, this one must not see before it is safe either.

use std::sync::Arc;

use structure::{Cursor, Malformed, Store, ToLibrary};

use super::library::Outbox;

#[derive(Debug, Default)]
pub struct Keep {
    store: Store,
    taken: u64,
    released: u64,
    library: Option<Joined>,
}

#[derive(Debug)]
struct Joined {
    number: u64,
    outbox: Arc<Outbox>,
    /// What was taken before it came.
    before: u64,
    granted: bool,
    /// Changes that it knows to be committed.
    told: u64,
}

impl Keep {
    pub fn new(store: Store) -> Self {
        Self { store, ..Self::default() }
    }

    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Lets a library in, one at a time.
    pub fn join(&mut self, number: u64, outbox: Arc<Outbox>) -> Result<(), String> {
        if let Some(other) = &self.library {
            return Err(format!("connection {} has the structures open; one at a time may", other.number));
        }
        self.library = Some(Joined { number, outbox, before: self.taken, granted: false, told: 0 });
        self.tell();
        Ok(())
    }

    pub fn leave(&mut self, number: u64) {
        self.library.take_if(|library| library.number == number);
    }

    /// Takes changes of the library with this number.
    pub fn take(&mut self, number: u64, frames: &[u8]) -> Result<(), Malformed> {
        // One that was shut out may have sent more.
        if self.library.as_ref().is_some_and(|library| library.number == number && library.granted) {
            self.taken += self.store.apply_all(frames)?;
        }
        Ok(())
    }

    /// Everything up to this number is safe.
    pub fn release(&mut self, up_to: u64) {
        assert!(up_to <= self.taken, "{up_to} of {} changes are released", self.taken);
        if self.released < up_to {
            self.released = up_to;
            self.tell();
        }
    }

    pub fn release_all(&mut self) {
        self.release(self.taken);
    }

    fn tell(&mut self) {
        let Some(library) = self.library.as_mut().filter(|library| self.released >= library.before) else {
            return;
        };
        if !library.granted {
            library.granted = true;
            library.outbox.grant();
        }
        let count = self.released - library.before;
        if library.told < count {
            library.told = count;
            library.outbox.say(ToLibrary::Committed { count });
        }
    }

    /// The last word to the library: nothing more is taken from it, and nothing told to it.
    pub fn shut_out(&mut self, last: Option<ToLibrary<'_>>) {
        let Some(library) = self.library.take() else { return };
        if let Some(last) = last {
            library.outbox.say(last);
        }
        library.outbox.close();
    }

    pub fn piece(&self, cursor: Cursor, bytes: usize, out: &mut Vec<u8>) -> Cursor {
        self.store.piece(cursor, bytes, out)
    }
}

#[cfg(test)]
mod tests {
    use structure::Change;

    use super::*;

    fn put(key: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        Change::Put { name: b"m", key, value: b"v" }.append(&mut frame);
        frame
    }

    fn committed(count: u64) -> Vec<u8> {
        let mut frame = Vec::new();
        ToLibrary::Committed { count }.append(&mut frame);
        frame
    }

    #[test]
    fn a_library_hears_of_its_own_changes_and_only_once_they_are_safe() {
        let (mut keep, outbox) = (Keep::default(), Arc::new(Outbox::default()));
        keep.join(1, Arc::clone(&outbox)).unwrap();
        keep.take(1, &[put(b"a"), put(b"b")].concat()).unwrap();
        assert_eq!(outbox.take_now(), Some(Vec::new()), "nothing is safe yet");
        keep.release(1);
        assert_eq!(outbox.take_now(), Some(committed(1)));
        keep.release(2);
        keep.release(2);
        assert_eq!(outbox.take_now(), Some(committed(2)));
    }

    #[test]
    fn the_next_library_waits_until_what_it_would_see_is_safe() {
        let mut keep = Keep::default();
        keep.join(1, Arc::default()).unwrap();
        keep.take(1, &put(b"a")).unwrap();
        assert!(keep.join(2, Arc::default()).is_err(), "two at a time");
        keep.leave(1);
        let outbox: Arc<Outbox> = Arc::default();
        keep.join(2, Arc::clone(&outbox)).unwrap();
        assert!(!outbox.is_granted());
        keep.take(2, &put(b"too early")).unwrap();
        assert_eq!(keep.taken(), 1);
        keep.release(1);
        assert!(outbox.is_granted());
        keep.take(2, &put(b"b")).unwrap();
        keep.release(2);
        assert_eq!(outbox.take_now(), Some(committed(1)), "it counts its own");
    }
}
