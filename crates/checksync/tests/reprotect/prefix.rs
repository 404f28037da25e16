//! A client that writes one number after the other, so that what is left says exactly how far the writes have come.

use std::time::{Duration, Instant};

use gate::Namespace;

use super::asker::Asker;
use super::gaps::wall_clock_ns;

/// Number n is written to key n modulo this.
const KEYS: u64 = 10;
const A_WHILE: Duration = Duration::from_millis(300);

#[derive(Debug, Default)]
pub struct Writer {
    /// Each write's number is its place, from 1; by the wall clock, when it was answered.
    answered: Vec<u64>,
    /// The next one was sent, and not answered.
    in_doubt: bool,
}

impl Writer {
    pub fn written(&self) -> u64 {
        self.answered.len() as u64
    }

    pub fn write_for_a_while(&mut self, clients: &Namespace) {
        let mut server = Asker::connect(clients).unwrap();
        let until = Instant::now() + A_WHILE;
        while Instant::now() < until {
            let number = self.written() + 1;
            self.in_doubt = true;
            assert_eq!(server.ask(&format!("PUT k{} {number}", number % KEYS)).unwrap(), "OK");
            self.in_doubt = false;
            self.answered.push(wall_clock_ns());
        }
    }

    /// What is there has to be the state after one of the writes, none of those before the freeze missing. Later writes
    /// have never been.
    pub fn check_and_go_back(&mut self, clients: &Namespace, frozen_at_ns: u64) {
        let mut server = Asker::connect(clients).unwrap();
        let values: Vec<u64> = (0..KEYS).map(|key| read(&mut server, key)).collect();
        let newest = values.iter().copied().max().unwrap();
        for (key, value) in values.iter().enumerate() {
            let wanted = (1..=newest).rev().find(|number| number % KEYS == key as u64).unwrap_or(0);
            assert_eq!(*value, wanted, "key {key} after write {newest}: {values:?}");
        }
        assert!(newest <= self.written() + u64::from(self.in_doubt), "{newest} was never sent");
        let before = self.answered.iter().filter(|at| **at < frozen_at_ns).count() as u64;
        assert!(newest >= before, "{before} writes were answered before the freeze, {newest} are left");
        println!("{} of {} writes are left", newest, self.written());
        self.in_doubt = false;
        self.answered.truncate(usize::try_from(newest).unwrap());
        let mut unanswered = newest - self.written().min(newest);
        while unanswered > 0 {
            self.answered.push(wall_clock_ns());
            unanswered -= 1;
        }
    }
}

/// Zero: there is none.
fn read(server: &mut Asker, key: u64) -> u64 {
    let answer = server.ask(&format!("GET k{key}")).unwrap();
    answer.strip_prefix("VALUE ").map_or(0, |value| value.parse().unwrap())
}
