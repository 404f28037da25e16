//! The faults, by name; how each is brought about, and how it ends.

use rustix::process::{Pid, Signal, kill_process};
use testkit::process::Running;

use super::scene::{A, B, Scene};

/// A host, or all of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    A,
    B,
    Etcd,
    Clients,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    App,
    Guard,
    /// The manager that runs the app; the gate and the record with it: they are threads of its own.
    Manager,
    /// The daemon beside it, which is nobody's standby yet.
    DaemonA,
    Standby,
    Member(usize),
    AllMembers,
    /// All that runs on host a.
    HostA,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing gets from the first to the second.
    Cut(Vec<(Place, Place)>),
    /// It is started again when the fault is over, if it is not somebody's copy.
    Kill(Victim),
    Pause(Victim),
    /// One upon the other.
    Both(Box<[Self; 2]>),
    /// Of a member of the register.
    FullDisk(usize),
    /// All disks of the register.
    FullDisks,
    /// What the managers of a host keep.
    FullRunDirectory(usize),
    /// One member of the register after the other is killed and started again.
    RestartMembers,
}

const LINKS: [(Place, Place); 5] = [
    (Place::A, Place::B),
    (Place::A, Place::Etcd),
    (Place::B, Place::Etcd),
    (Place::A, Place::Clients),
    (Place::B, Place::Clients),
];

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::Etcd => "etcd",
            Self::Clients => "clients",
        }
    }

    fn ports(self) -> &'static [&'static str] {
        match self {
            Self::A => &["a"],
            Self::B => &["b"],
            Self::Etcd => &["e0", "e1", "e2"],
            Self::Clients => &["clients"],
        }
    }
}

impl Victim {
    fn name(self) -> String {
        match self {
            Self::App => "app".to_owned(),
            Self::Guard => "guard".to_owned(),
            Self::Manager => "manager".to_owned(),
            Self::DaemonA => "daemon-beside".to_owned(),
            Self::Standby => "standby".to_owned(),
            Self::Member(number) => format!("etcd-{number}"),
            Self::AllMembers => "etcd".to_owned(),
            Self::HostA => "host".to_owned(),
        }
    }
}

impl Fault {
    /// All that there are.
    pub fn all() -> Vec<Self> {
        let both = |(from, to)| vec![(from, to), (to, from)];
        let mut all: Vec<Self> = LINKS.iter().map(|link| Self::Cut(both(*link))).collect();
        for (number, first) in LINKS.iter().enumerate() {
            let pairs = LINKS[number + 1..].iter().map(|second| [both(*first), both(*second)].concat());
            all.extend(pairs.map(Self::Cut));
        }
        all.extend(LINKS.iter().flat_map(|link| both(*link)).map(|one_way| Self::Cut(vec![one_way])));
        let members = (0..3).map(Victim::Member);
        let killed =
            [Victim::App, Victim::Guard, Victim::Manager, Victim::DaemonA, Victim::Standby, Victim::HostA];
        all.extend(killed.into_iter().chain(members.clone()).chain([Victim::AllMembers]).map(Self::Kill));
        all.extend(killed.into_iter().chain(members).chain([Victim::AllMembers]).map(Self::Pause));
        let cut = |from, to| Self::Cut(both((from, to)));
        let pairs = [
            // The guard says nothing, and ends the app late.
            [Self::Pause(Victim::Guard), Self::Kill(Victim::Manager)],
            // Nobody may serve until there is a register again, or somebody who may take over.
            [Self::Pause(Victim::AllMembers), Self::Kill(Victim::Manager)],
            [Self::Pause(Victim::AllMembers), Self::Kill(Victim::Standby)],
            [Self::Pause(Victim::Standby), Self::Kill(Victim::Manager)],
            [cut(Place::B, Place::Etcd), Self::Kill(Victim::Manager)],
            [cut(Place::B, Place::Etcd), Self::Pause(Victim::Manager)],
            // The winner has it, and the loser does not hear of it.
            [cut(Place::A, Place::Etcd), Self::Pause(Victim::Manager)],
            [cut(Place::A, Place::Etcd), Self::Kill(Victim::Standby)],
            // No majority.
            [Self::Kill(Victim::Member(0)), Self::Kill(Victim::Member(1))],
            [Self::Kill(Victim::Member(0)), Self::Kill(Victim::Manager)],
            [Self::Kill(Victim::Member(1)), cut(Place::A, Place::B)],
        ];
        all.extend(pairs.map(|pair| Self::Both(Box::new(pair))));
        all.extend((0..3).map(Self::FullDisk));
        all.push(Self::FullDisks);
        all.extend([A, B].map(Self::FullRunDirectory));
        all.push(Self::RestartMembers);
        all
    }

    pub fn named(name: &str) -> Self {
        let found = Self::all().into_iter().find(|fault| fault.name() == name);
        found.unwrap_or_else(|| panic!("no fault is called {name}"))
    }

    pub fn name(&self) -> String {
        match self {
            Self::Cut(ways) => {
                let link = |(from, to): &(Place, Place)| {
                    let sign = if ways.contains(&(*to, *from)) { "-" } else { ">" };
                    format!("{}{sign}{}", from.name(), to.name())
                };
                let told = ways
                    .iter()
                    .enumerate()
                    .filter(|(number, (from, to))| !ways[..*number].contains(&(*to, *from)));
                let links: Vec<_> = told.map(|(_, way)| link(way)).collect();
                format!("cut {}", links.join(" "))
            }
            Self::Kill(whom) => format!("kill {}", whom.name()),
            Self::Pause(whom) => format!("pause {}", whom.name()),
            Self::Both(both) => format!("{}, {}", both[0].name(), both[1].name()),
            Self::FullDisk(number) => format!("full disk etcd-{number}"),
            Self::FullDisks => "full disk etcd".to_owned(),
            Self::FullRunDirectory(host) => format!("full disk {}", ["a", "b"][*host]),
            Self::RestartMembers => "restart etcd".to_owned(),
        }
    }

    pub fn needs_small_disks(&self) -> bool {
        matches!(self, Self::FullDisk(_) | Self::FullDisks | Self::FullRunDirectory(_))
    }

    pub fn strike(&self, scene: &mut Scene) {
        match self {
            Self::Cut(ways) => ways.iter().for_each(|(from, to)| cut(scene, *from, *to)),
            Self::Kill(whom) => kill(scene, *whom),
            Self::Pause(whom) => signal(scene, *whom, Signal::STOP),
            Self::Both(both) => both.iter().for_each(|fault| fault.strike(scene)),
            Self::FullDisk(number) => scene.disks[*number].fill(),
            Self::FullDisks => scene.disks[..3].iter().for_each(super::disks::Disk::fill),
            Self::FullRunDirectory(host) => scene.disks[3 + host].fill(),
            Self::RestartMembers => (0..3).for_each(|number| scene.etcd.restart(number)),
        }
    }

    pub fn end(&self, scene: &mut Scene) {
        match self {
            Self::Cut(_) => scene.links.heal_all(),
            Self::Kill(whom) => start_again(scene, *whom),
            Self::Pause(whom) => signal(scene, *whom, Signal::CONT),
            Self::Both(both) => both.iter().for_each(|fault| fault.end(scene)),
            Self::FullDisk(number) => free_member(scene, *number),
            Self::FullDisks => (0..3).for_each(|number| free_member(scene, number)),
            Self::FullRunDirectory(host) => scene.disks[3 + host].free(),
            Self::RestartMembers => (),
        }
    }
}

fn cut(scene: &Scene, from: Place, to: Place) {
    for from in from.ports() {
        to.ports().iter().for_each(|to| scene.links.cut(from, to));
    }
}

/// Whoever ended on a full disk is started again, as an operator would.
fn free_member(scene: &mut Scene, number: usize) {
    scene.disks[number].free();
    if !scene.etcd.is_running(number) {
        scene.etcd.restart(number);
    }
}

fn kill(scene: &mut Scene, whom: Victim) {
    match whom {
        Victim::Member(number) => scene.etcd.kill(number),
        Victim::AllMembers => (0..3).for_each(|number| scene.etcd.kill(number)),
        Victim::HostA => {
            // At one blow: whoever sees another die would say so.
            signal(scene, whom, Signal::STOP);
            signal(scene, whom, Signal::KILL);
        }
        Victim::App | Victim::Guard | Victim::Manager | Victim::DaemonA | Victim::Standby => {
            signal(scene, whom, Signal::KILL);
        }
    }
}

fn start_again(scene: &mut Scene, whom: Victim) {
    match whom {
        Victim::Member(number) => scene.etcd.restart(number),
        Victim::AllMembers => scene.etcd.restart_all(),
        Victim::DaemonA | Victim::HostA => scene.start_daemon(A),
        Victim::Standby => scene.start_daemon(B),
        // The daemon beside it is there.
        Victim::App | Victim::Guard | Victim::Manager => (),
    }
}

fn signal(scene: &mut Scene, whom: Victim, signal: Signal) {
    let manager = |running: &Running| Pid::from_raw(running.pid().cast_signed());
    let (a, b) = (&scene.street.hosts[A], &scene.street.hosts[B]);
    let (primary, daemon) = (a.primary.as_ref().and_then(manager), a.daemon.as_ref().and_then(manager));
    let victims = match whom {
        Victim::App => vec![Some(scene.app)],
        Victim::Guard => vec![Some(scene.guard)],
        Victim::Manager => vec![primary],
        Victim::DaemonA => vec![daemon],
        Victim::Standby => vec![b.daemon.as_ref().and_then(manager)],
        Victim::HostA => vec![primary, daemon, Some(scene.guard), Some(scene.app)],
        Victim::Member(_) | Victim::AllMembers => return scene.signal_members(whom, signal),
    };
    for victim in victims.into_iter().flatten() {
        // It may have ended with another.
        let _ = kill_process(victim, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_name_of_its_own() {
        let names: Vec<_> = Fault::all().iter().map(Fault::name).collect();
        let mut distinct = names.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        for name in [
            "cut a-b",
            "cut a>b",
            "cut etcd>a",
            "cut a-b a-etcd",
            "kill manager",
            "pause guard, kill manager",
        ] {
            assert_eq!(Fault::named(name).name(), name);
        }
    }
}
