//! Good frames with some bytes changed, and right checksums: nothing of it may break the engine.

use bytes::Bytes;
use image::frame::{Frame, FrameKind};

use crate::{Victim, both, feed, promoted};

/// A generator of our own, so that a failure comes again with its seed.
pub struct Dice(u64);

impl Dice {
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below
    }

    /// Changes some bytes of one frame's payload, and makes its checksum right again.
    pub fn mutate(&mut self, frames: &[Bytes], kinds: &[FrameKind]) -> Vec<Bytes> {
        let mut parsed: Vec<Frame> =
            frames.iter().map(|frame| Frame::parse(frame.clone()).expect("a good frame")).collect();
        let eligible: Vec<usize> = (0..parsed.len()).filter(|&at| kinds.contains(&parsed[at].kind)).collect();
        let at = eligible[self.roll(eligible.len())];
        let mut payload = parsed[at].payload.to_vec();
        for _ in 0..=self.roll(6) {
            let place = self.roll(payload.len());
            payload[place] = match self.roll(3) {
                0 => payload[place] ^ 1 << self.roll(8),
                1 => [0, 1, 0x7f, 0x80, 0xff][self.roll(5)],
                _ => self.roll(256) as u8,
            };
        }
        parsed[at].payload = payload.into();
        parsed.iter().map(|frame| Frame::encode(frame.kind, frame.sequence, &frame.payload)).collect()
    }
}

const ALL: &[FrameKind] =
    &[FrameKind::Header, FrameKind::Layout, FrameKind::Pages, FrameKind::State, FrameKind::End];

pub fn epochs_never_break_the_engine() {
    const ROUNDS: u64 = 400;
    let victim = Victim::new();
    let [next, _] = both(&victim);
    for seed in 1..=ROUNDS {
        feed(&victim.standby, &Dice::of(seed).mutate(&next.frames(), ALL));
    }
    victim.still_serves();
}

pub fn full_syncs_never_break_the_engine() {
    const ROUNDS: u64 = 60;
    let victim = Victim::new();
    for seed in 1..=ROUNDS {
        let kinds = if seed % 2 == 0 { ALL } else { &[FrameKind::Layout] };
        feed(&victim.standby, &Dice::of(seed).mutate(&victim.full, kinds));
    }
    victim.still_serves();
}

pub fn states_never_break_a_takeover() {
    const ROUNDS: u64 = 40;
    let victim = Victim::new();
    for seed in 1..=ROUNDS {
        let frames = Dice::of(seed).mutate(&victim.full, &[FrameKind::State]);
        // Restored or not: it is told, and nothing else breaks.
        let _told = promoted(&frames);
    }
    victim.still_serves();
}
