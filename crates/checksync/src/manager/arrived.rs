//! What came in on the primary and the copy has not seen: repeated after a takeover, it spares the clients the wait
//! for their own timers.

use std::collections::VecDeque;

use gate::Recorded;
use image::CheckpointId;
use wire::ArrivedPacket;

/// Beyond it the oldest are forgotten: their senders repeat them.
const BYTES_MAX: usize = 64 << 20;
const OVERHEAD_BYTES: usize = 64;

#[derive(Debug, Default)]
pub struct Arrived {
    packets: VecDeque<Recorded>,
    bytes: usize,
}

impl Arrived {
    pub fn keep(&mut self, packets: Vec<ArrivedPacket>) {
        for ArrivedPacket { since, packet } in packets {
            self.bytes += packet.len() + OVERHEAD_BYTES;
            self.packets.push_back(Recorded { since, packet: packet.into() });
        }
        while self.bytes > BYTES_MAX && self.forget_oldest() {}
    }

    /// Epoch `id` is held here: what came before its barrier is in it.
    pub fn covered_by(&mut self, id: CheckpointId) {
        while self.packets.front().is_some_and(|packet| packet.since < Some(id)) && self.forget_oldest() {}
    }

    pub fn take(&mut self) -> Vec<Recorded> {
        self.bytes = 0;
        std::mem::take(&mut self.packets).into()
    }

    fn forget_oldest(&mut self) -> bool {
        let oldest = self.packets.pop_front();
        self.bytes -= oldest.as_ref().map_or(0, |oldest| oldest.packet.len() + OVERHEAD_BYTES);
        oldest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(epoch: u64, len: usize) -> ArrivedPacket {
        ArrivedPacket { since: Some(CheckpointId::new(1, epoch)), packet: vec![epoch as u8; len].into() }
    }

    #[test]
    fn what_an_epoch_covers_is_forgotten_and_the_rest_kept_in_order() {
        let mut arrived = Arrived::default();
        arrived.keep(vec![
            ArrivedPacket { since: None, packet: vec![0].into() },
            packet(1, 10),
            packet(2, 10),
        ]);
        arrived.keep(vec![packet(3, 10)]);
        arrived.covered_by(CheckpointId::new(1, 2));
        let kept: Vec<_> = arrived.take().iter().map(|recorded| recorded.since.unwrap().epoch.0).collect();
        assert_eq!(kept, [2, 3]);
        assert_eq!(arrived.bytes, 0);
    }

    #[test]
    fn memory_is_bounded() {
        let mut arrived = Arrived::default();
        for epoch in 0..2000 {
            arrived.keep(vec![packet(epoch, 60_000)]);
        }
        assert!(arrived.bytes <= BYTES_MAX);
        assert_eq!(arrived.take().last().unwrap().since, Some(CheckpointId::new(1, 1999)));
    }
}
