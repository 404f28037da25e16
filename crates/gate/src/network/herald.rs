//! Tells the link where the service's address is now, again and again for about a second, and whenever
//! somebody else says that it is theirs.
//!
//! It only speaks between [`Herald::begin`] and [`Herald::end`]; once `end` has returned, nothing of it leaves
//! any more. And of its own accord it speaks only while the cell's permit lasts: whoever stood still for so long that
//! somebody else has the address by now hears of that first, and must not contradict.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::frame;
use crate::netlink::Mac;
use crate::packet::{self, await_readable, step};

/// When the announcement is repeated, after the first.
const REPEATS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_millis(1000),
];
/// Two that both believe to have the address must not fill the link with it.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const FRAME_BYTES_MAX: usize = 2048;

#[derive(Debug)]
pub struct Herald {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    address: IpAddr,
    mac: Mac,
    announcements: Vec<Vec<u8>>,
    mouth: OwnedFd,
    /// What it says of its own accord leaves only while the cell's permit lasts.
    permitted_mouth: OwnedFd,
    ear: OwnedFd,
    wake: OwnedFd,
    duty: Mutex<Duty>,
}

#[derive(Debug)]
enum Duty {
    Silent,
    /// When it last spoke, and when it has to again; the next comes last.
    Speaking {
        last: Instant,
        due: Vec<Instant>,
    },
    Over,
}

impl Herald {
    /// Silent, on a device of this thread's namespace.
    pub fn start(device: u32, address: IpAddr, mac: Mac, mark: u32) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            address,
            mac,
            announcements: frame::announcements(address, mac),
            mouth: packet::sender(device)?,
            permitted_mouth: packet::marked_sender(device, mark)?,
            ear: packet::receiver(device, claims_protocol(address), &claims(address))?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            duty: Mutex::new(Duty::Silent),
        });
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new().name("herald".to_owned()).spawn(move || own.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Announces the address before it returns, whatever the permit says: who calls this has the right to. The
    /// repetitions follow. Fails if the device can't send, and is then as silent as before.
    pub fn begin(&self) -> io::Result<()> {
        let mut duty = self.shared.duty();
        self.shared.announce(&self.shared.mouth)?;
        let now = Instant::now();
        let due = REPEATS.iter().rev().map(|after| now + *after).collect();
        *duty = Duty::Speaking { last: now, due };
        drop(duty);
        self.shared.ring();
        Ok(())
    }

    pub fn end(&self) {
        *self.shared.duty() = Duty::Silent;
    }

    /// Asks the link who has the address, and waits for the answer for so long.
    pub fn ask_for_owner(&self, patience: Duration) -> io::Result<Option<Mac>> {
        const QUESTIONS: u32 = 3;
        let question = frame::probe(self.shared.address, self.shared.mac);
        // Claims from before the question may be out of date.
        self.shared.hear_rival();
        for _ in 0..QUESTIONS {
            send(&self.shared.mouth, &question, SendFlags::empty())?;
            let end = Instant::now() + patience / QUESTIONS;
            while let Some(left) = end.checked_duration_since(Instant::now()) {
                await_readable([&self.shared.ear], Some(left))?;
                if let Some(owner) = self.shared.hear_rival() {
                    return Ok(Some(owner));
                }
            }
        }
        Ok(None)
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        *self.shared.duty() = Duty::Over;
        self.shared.ring();
        if let Some(thread) = self.thread.take() {
            // It does nothing that panics.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn duty(&self) -> MutexGuard<'_, Duty> {
        self.duty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // A full counter is as loud as a ring.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn announce(&self, mouth: &OwnedFd) -> io::Result<()> {
        for announcement in &self.announcements {
            send(mouth, announcement, SendFlags::empty())?;
        }
        Ok(())
    }

    fn run(&self) {
        while let Some(patience) = self.patience() {
            let silent = patience.is_none();
            let ready = if silent {
                // Who asks for the owner reads the answers: leave them alone.
                await_readable([&self.wake], None).map(|[woken]| [woken, false])
            } else {
                await_readable([&self.wake, &self.ear], patience)
            };
            let Ok([woken, heard]) = ready else { return };
            if woken {
                let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            }
            let rival = heard.then(|| self.hear_rival()).flatten();
            self.speak_if_due(rival.is_some());
        }
    }

    /// How long it may sleep; for ever while it is silent. Nothing once its time is over.
    fn patience(&self) -> Option<Option<Duration>> {
        const LONG: Duration = Duration::from_secs(3600);
        let now = Instant::now();
        match &*self.duty() {
            Duty::Silent => Some(None),
            Duty::Speaking { due, .. } => {
                Some(Some(due.last().map_or(LONG, |due| due.saturating_duration_since(now))))
            }
            Duty::Over => None,
        }
    }

    fn speak_if_due(&self, rival: bool) {
        let now = Instant::now();
        let mut duty = self.duty();
        let Duty::Speaking { last, due } = &mut *duty else { return };
        if rival {
            let soonest = (*last + PAUSE_MIN).max(now);
            // Before what is due anyway, unless that comes first.
            if due.last().is_none_or(|due| *due > soonest) {
                due.push(soonest);
            }
        }
        if due.last().is_some_and(|due| *due <= now) {
            due.pop();
            *last = now;
            // A link that is down hears nothing, as if the permit were over; the next time is due soon, or when a rival
            // is heard.
            let _ = self.announce(&self.permitted_mouth);
        }
    }

    fn hear_rival(&self) -> Option<Mac> {
        let mut bytes = [0; FRAME_BYTES_MAX];
        let mut found = None;
        while let Ok((len, _)) = recv(&self.ear, &mut bytes, RecvFlags::empty()) {
            found = found.or(frame::rival(&bytes[..len.min(FRAME_BYTES_MAX)], self.address, self.mac));
        }
        found
    }
}

fn claims_protocol(address: IpAddr) -> i32 {
    if address.is_ipv4() { libc::ETH_P_ARP } else { libc::ETH_P_IPV6 }
}

/// Lets through what may be a claim to `address`, so that nothing else wakes us.
fn claims(address: IpAddr) -> Vec<libc::sock_filter> {
    use libc::{BPF_ABS, BPF_B, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    const ARP_SENDER: u32 = 28;
    const NEXT_HEADER: u32 = 20;
    const ICMP_KIND: u32 = 54;
    const ADVERTISED: u32 = 62;
    let expect = |size: u32, at: u32, value: u32, to_the_end: u8| {
        [step(BPF_LD | size | BPF_ABS, 0, 0, at), step(BPF_JMP | BPF_JEQ | BPF_K, 0, to_the_end, value)]
    };
    let words = |octets: &[u8]| -> Vec<u32> {
        octets.chunks_exact(4).map(|word| u32::from_be_bytes(word.try_into().unwrap_or_default())).collect()
    };
    let mut expected = match address {
        IpAddr::V4(address) => vec![(BPF_W, ARP_SENDER, u32::from(address))],
        IpAddr::V6(address) => {
            let mut expected = vec![(BPF_B, NEXT_HEADER, 58), (BPF_B, ICMP_KIND, 136)];
            let words = words(&address.octets());
            expected.extend(
                words.into_iter().zip([0, 4, 8, 12]).map(|(word, at)| (BPF_W, ADVERTISED + at, word)),
            );
            expected
        }
    };
    let count = expected.len() as u8;
    let checks = expected.drain(..).zip(0..).flat_map(|((size, at, value), index)| {
        let left_after = (count - index - 1) * 2;
        expect(size, at, value, left_after + 1)
    });
    let mut program: Vec<_> = checks.collect();
    program.push(step(BPF_RET | BPF_K, 0, 0, FRAME_BYTES_MAX as u32));
    program.push(step(BPF_RET | BPF_K, 0, 0, 0));
    program
}
