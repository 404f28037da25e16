//! A state that comes as a change of the one before: of which, and whether it fits, is looked at.

use image::frame::FrameKind;
use image::{CheckpointId, StateChange};

use crate::mutated::Dice;
use crate::{Outcome, Parts, Victim, both, feed};

pub fn of_another_state_are_refused() {
    let victim = Victim::new();
    let [next, full] = both(&victim);
    let no_change = |since| {
        let mut before = full.state.clone();
        StateChange::between(since, &mut before, &full.state).expect("a change")
    };
    let with = |parts: &Parts, since| parts.frames_with(|writer| writer.state_change(&no_change(since)));
    assert_eq!(
        feed(&victim.standby, &with(&next, victim.last)),
        Outcome::Prepared,
        "what is held is its base"
    );
    let CheckpointId { term, epoch } = victim.last;
    for other in [CheckpointId::new(term.0, epoch.0 - 1), CheckpointId::new(term.0 + 1, epoch.0)] {
        victim.refuses_for("a change of another state", &with(&next, other), "it goes on from");
    }
    victim.refuses_for("a full epoch with a change", &with(&full, victim.last), "is not here");
    victim.still_serves();
}

pub fn mutated_never_break_the_engine() {
    const ROUNDS: u64 = 400;
    let victim = Victim::new();
    assert_eq!(feed(&victim.standby, &victim.next), Outcome::Prepared, "unchanged, it is accepted");
    for seed in 1..=ROUNDS {
        feed(&victim.standby, &Dice::of(seed).mutate(&victim.next, &[FrameKind::StateChange]));
    }
    victim.still_serves();
}
