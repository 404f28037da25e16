//! Where a primary looks for its standby: at one address after the other, until somebody takes the app.
//!
//! Page stream and heartbeats are two connections, and have to be with the same host: both ask here. A standby that was
//! lost is looked for first where it was, since it may still hold a copy.

use std::sync::{Mutex, PoisonError};

#[derive(Debug)]
pub struct Candidates {
    /// Never empty.
    addresses: Vec<String>,
    at: Mutex<usize>,
}

impl Candidates {
    /// `addresses` has at least one.
    pub fn new(addresses: Vec<String>) -> Self {
        assert!(!addresses.is_empty(), "somebody has to be looked for");
        Self { addresses, at: Mutex::new(0) }
    }

    /// Whose turn it is.
    pub fn current(&self) -> String {
        self.addresses[*self.at.lock().unwrap_or_else(PoisonError::into_inner)].clone()
    }

    /// It is the next one's turn: this one can't be had.
    pub fn next(&self) {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        *at = (*at + 1) % self.addresses.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_turn_and_then_the_first_again() {
        let candidates = Candidates::new(vec!["b:1".to_owned(), "c:1".to_owned()]);
        let turns: Vec<String> = (0..3)
            .map(|_| {
                let turn = candidates.current();
                candidates.next();
                turn
            })
            .collect();
        assert_eq!(turns, ["b:1", "c:1", "b:1"]);
    }
}
