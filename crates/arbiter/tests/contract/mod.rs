//! What every register must do, whoever keeps it. All owners are lives of one host: a witness takes no others from it.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use arbiter::{Arbiter, ArbiterError, Member, Register, Swap};

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// An empty register takes a first value, each swap wins only against what is there, and apps share nothing.
pub fn swaps_win_only_against_the_expected_value(arbiter: &mut dyn Arbiter, app: &str) {
    assert_eq!(arbiter.read(app, soon()).unwrap(), None);
    let first = Register::first(Member::new("a", 1));
    assert_eq!(arbiter.swap(app, None, first.clone(), soon()).unwrap(), Swap::Won);
    let other = Register::first(Member::new("a", 2));
    assert_eq!(arbiter.swap(app, None, other, soon()).unwrap(), Swap::Lost(Some(first.clone())));
    let taken = first.taken_by(Member::new("a", 2));
    assert_eq!(arbiter.swap(app, Some(&first), taken.clone(), soon()).unwrap(), Swap::Won);
    let rival = first.taken_by(Member::new("a", 3));
    assert_eq!(arbiter.swap(app, Some(&first), rival, soon()).unwrap(), Swap::Lost(Some(taken.clone())));
    assert_eq!(arbiter.read(app, soon()).unwrap(), Some(taken));
    assert_eq!(arbiter.read(&format!("{app}-other"), soon()).unwrap(), None);
    assert!(matches!(arbiter.read("a/b", soon()), Err(ArbiterError::BadName(_))));
}

/// A swap that is made again, because its answer was lost, has won if it has landed.
pub fn a_repeated_swap_has_won(arbiter: &mut dyn Arbiter, app: &str) {
    let first = Register::first(Member::new("a", 1));
    assert_eq!(arbiter.swap(app, None, first.clone(), soon()).unwrap(), Swap::Won);
    assert_eq!(arbiter.swap(app, None, first.clone(), soon()).unwrap(), Swap::Won);
    let taken = first.taken_by(Member::new("a", 2));
    assert_eq!(arbiter.swap(app, Some(&first), taken.clone(), soon()).unwrap(), Swap::Won);
    assert_eq!(arbiter.swap(app, Some(&first), taken.clone(), soon()).unwrap(), Swap::Won);
    assert_eq!(arbiter.swap(app, None, first, soon()).unwrap(), Swap::Lost(Some(taken)));
}

/// Each of `terms` is asked for by all racers at once, and won by one.
pub fn each_term_has_one_winner(open: impl Fn() -> Box<dyn Arbiter> + Sync, app: &str, terms: u64) {
    const RACERS: u64 = 6;
    let race = |number: u64| {
        let (mut arbiter, mut won) = (open(), Vec::new());
        let me = Member::new("a", number);
        let mut seen = arbiter.read(app, soon()).unwrap();
        while seen.as_ref().is_none_or(|register| register.term.0 < terms) {
            let new =
                seen.as_ref().map_or_else(|| Register::first(me.clone()), |old| old.taken_by(me.clone()));
            match arbiter.swap(app, seen.as_ref(), new.clone(), soon()).unwrap() {
                Swap::Won => {
                    won.push(new.term.0);
                    seen = Some(new);
                }
                Swap::Lost(current) => seen = current,
            }
        }
        won
    };
    let mut winners = BTreeMap::<u64, u64>::new();
    thread::scope(|scope| {
        let race = &race;
        let racers: Vec<_> = (0..RACERS).map(|number| scope.spawn(move || race(number))).collect();
        for racer in racers {
            for term in racer.join().unwrap() {
                *winners.entry(term).or_default() += 1;
            }
        }
    });
    assert_eq!(winners, (1..=terms).map(|term| (term, 1)).collect());
}
