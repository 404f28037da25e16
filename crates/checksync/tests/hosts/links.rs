//! Links between hosts at a switch, which can be cut one by one and one way: the switch drops what came in at one port
//! and would leave by another. Each direction is a word of memory that a program of the kernel's reads: a cut is there
//! for the next frame, and both hosts' devices stay up.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use gate::Namespace;
use gate::netlink::{Direction, Netlink};
use sys::bpf::{Instruction, PACKET_CAME_BY, Register, WordArray, load_traffic_filter};

const DROP: i32 = 2;
/// The next program decides; without one, the frame passes.
const UNDECIDED: i32 = -1;

#[derive(Debug)]
pub struct Links {
    /// As they were plugged in.
    ports: Vec<String>,
    cut: WordArray,
}

impl Links {
    /// Between all that is plugged into the switch by these names.
    pub fn between(switch: &Namespace, ports: &[String]) -> io::Result<Self> {
        let cut = WordArray::create("links", ports.len() * ports.len())?;
        let links = Self { ports: ports.to_vec(), cut };
        switch.within(|| links.watch_all(&Netlink::open()?))?;
        Ok(links)
    }

    fn watch_all(&self, netlink: &Netlink) -> io::Result<()> {
        let numbers =
            self.ports.iter().map(|port| netlink.link(&format!("to-{port}")).map(|link| link.index));
        let numbers: Vec<u32> = numbers.collect::<io::Result<_>>()?;
        for (to, leaves_by) in numbers.iter().enumerate() {
            netlink.allow_filters(*leaves_by)?;
            for (from, came_by) in numbers.iter().enumerate().filter(|(from, _)| *from != to) {
                let program = self.unless_cut(*came_by, self.word(from, to))?;
                let rank = 1 + from as u16;
                netlink.set_filter(*leaves_by, Direction::Out, rank, program.as_fd(), "link")?;
            }
        }
        Ok(())
    }

    fn unless_cut(&self, came_by: u32, word: usize) -> io::Result<OwnedFd> {
        use Register::{R0, R1, R6, R7};
        let mut program = vec![
            Instruction::load_half(R0, R1, PACKET_CAME_BY),
            Instruction::skip_if_equal(R0, came_by as i32, 2),
            Instruction::set(R0, UNDECIDED),
            Instruction::exit(),
        ];
        program.extend(Instruction::array_address(R6, &self.cut));
        program.extend([
            Instruction::load_word(R7, R6, word as i16),
            Instruction::set(R0, UNDECIDED),
            Instruction::skip_if_equal(R7, 0, 1),
            Instruction::set(R0, DROP),
            Instruction::exit(),
        ]);
        load_traffic_filter("link", &program).map_err(|why| why.source)
    }

    fn word(&self, from: usize, to: usize) -> usize {
        from * self.ports.len() + to
    }

    fn number(&self, port: &str) -> usize {
        self.ports
            .iter()
            .position(|known| known == port)
            .unwrap_or_else(|| panic!("no port is called {port}"))
    }

    /// Nothing from `from` reaches `to` any more.
    pub fn cut(&self, from: &str, to: &str) {
        self.cut[self.word(self.number(from), self.number(to))].store(1, Ordering::SeqCst);
    }

    pub fn heal_all(&self) {
        self.cut.iter().for_each(|word| word.store(0, Ordering::SeqCst));
    }
}
