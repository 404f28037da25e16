//! One place per name. What belongs there may take its time to be made: meanwhile nobody waits for the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
enum Place<T> {
    Reserved,
    Taken(T),
}

#[derive(Debug)]
pub struct Places<T> {
    max: usize,
    places: Mutex<HashMap<String, Place<T>>>,
}

/// What there is under a name.
#[derive(Debug)]
pub enum Found<T, R> {
    /// What was said of it.
    There(R),
    /// Nothing, and the caller is the one to make it.
    Free(Reservation<T>),
}

/// Why nothing can be made under a name.
#[derive(Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// Somebody is just making it.
    Reserved,
    Full(usize),
}

/// Dropped, it gives the place back.
#[derive(Debug)]
pub struct Reservation<T> {
    places: Arc<Places<T>>,
    name: String,
}

impl<T> Places<T> {
    pub fn new(max: usize) -> Self {
        Self { max, places: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Place<T>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `look` says of the one with this name, if there is one.
    pub fn find<R>(&self, name: &str, look: impl FnOnce(&T) -> R) -> Option<R> {
        match self.lock().get(name) {
            Some(Place::Taken(one)) => Some(look(one)),
            Some(Place::Reserved) | None => None,
        }
    }

    /// The same; a free place is reserved. Those that are `gone` give theirs up.
    pub fn find_or_reserve<R>(
        self: &Arc<Self>,
        name: &str,
        gone: impl Fn(&T) -> bool,
        look: impl FnOnce(&T) -> R,
    ) -> Result<Found<T, R>, NoPlace> {
        let mut places = self.lock();
        places.retain(|_, place| !matches!(place, Place::Taken(one) if gone(one)));
        match places.get(name) {
            Some(Place::Taken(one)) => return Ok(Found::There(look(one))),
            Some(Place::Reserved) => return Err(NoPlace::Reserved),
            None if places.len() >= self.max => return Err(NoPlace::Full(self.max)),
            None => places.insert(name.to_owned(), Place::Reserved),
        };
        Ok(Found::Free(Reservation { places: Arc::clone(self), name: name.to_owned() }))
    }

    /// Empties all places. What is just being made will find none.
    pub fn take_all(&self) -> Vec<T> {
        let taken = |place| match place {
            Place::Taken(one) => Some(one),
            Place::Reserved => None,
        };
        self.lock().drain().filter_map(|(_, place)| taken(place)).collect()
    }
}

impl<T> Reservation<T> {
    /// Hands it back if all places were emptied meanwhile.
    pub fn fill(self, made: T) -> Result<(), T> {
        match self.places.lock().get_mut(&self.name) {
            Some(place @ Place::Reserved) => *place = Place::Taken(made),
            Some(Place::Taken(_)) | None => return Err(made),
        }
        Ok(())
    }
}

impl<T> Drop for Reservation<T> {
    fn drop(&mut self) {
        let mut places = self.places.lock();
        if let Some(Place::Reserved) = places.get(&self.name) {
            places.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserve(places: &Arc<Places<u32>>, name: &str) -> Reservation<u32> {
        match places.find_or_reserve(name, |one| *one == 0, |one| *one) {
            Ok(Found::Free(reservation)) => reservation,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_that_is_being_made_keeps_nobody_from_the_others() {
        let places = Arc::new(Places::new(10));
        let slow = reserve(&places, "slow");
        reserve(&places, "quick").fill(7).unwrap();
        assert_eq!(places.find("quick", |one| *one), Some(7));
        assert_eq!(places.find("slow", |one| *one), None);
        assert_eq!(places.find_or_reserve("slow", |_| false, |_| ()).unwrap_err(), NoPlace::Reserved);
        slow.fill(8).unwrap();
        assert_eq!(places.find("slow", |one| *one), Some(8));
    }

    #[test]
    fn who_fails_or_is_gone_gives_the_place_up() {
        const GONE: u32 = 0;
        let places = Arc::new(Places::new(1));
        let failing = reserve(&places, "a");
        assert_eq!(places.find_or_reserve("b", |_| false, |_| ()).unwrap_err(), NoPlace::Full(1));
        drop(failing);
        reserve(&places, "b").fill(GONE).unwrap();
        reserve(&places, "c").fill(7).unwrap();
        assert_eq!((places.find("b", |_| ()), places.find("c", |one| *one)), (None, Some(7)));
    }

    #[test]
    fn what_is_made_after_the_end_is_handed_back() {
        let places = Arc::new(Places::new(2));
        let late = reserve(&places, "late");
        reserve(&places, "early").fill(1).unwrap();
        assert_eq!(places.take_all(), [1]);
        assert_eq!(late.fill(2), Err(2));
    }
}
