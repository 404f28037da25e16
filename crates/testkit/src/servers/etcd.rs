//! A real etcd cluster, whose members can be killed, paused and started again: on loopback addresses, or each on a host
//! of its own.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::own_address;
use crate::process::Running;
use crate::wait::wait_until;

/// Certificates for the connections of clients.
#[derive(Debug, Clone)]
pub struct EtcdFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Dropping it kills all members. Their data is in the directory that was given.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    cluster: String,
    directory: PathBuf,
    files: Option<EtcdFiles>,
}

/// Does something on a host, and returns when it is done.
pub type Enter = Box<dyn Fn(&mut (dyn FnMut() + Send))>;

/// Where a member is: the address of a host, and how to get there.
pub struct EtcdPlace {
    pub address: IpAddr,
    pub enter: Enter,
}

struct Member {
    client: SocketAddr,
    peer: SocketAddr,
    enter: Enter,
    running: Option<Running>,
}

impl fmt::Debug for EtcdPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EtcdPlace({})", self.address)
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Member({}, {:?})", self.client, self.running)
    }
}

impl Etcd {
    /// Starts `count` members with their data below `directory`, and waits until they take connections.
    #[must_use]
    pub fn start(count: usize, directory: &Path) -> Self {
        Self::start_with(count, directory, None)
    }

    /// With TLS for clients, who must show a certificate of the same authority.
    #[must_use]
    pub fn start_with(count: usize, directory: &Path, files: Option<EtcdFiles>) -> Self {
        let here = || -> Enter { Box::new(|work| work()) };
        let member = |_| Member { client: own_address(), peer: own_address(), enter: here(), running: None };
        Self::launch_all((0..count).map(member).collect(), directory, files)
    }

    /// With a host for each member.
    #[must_use]
    pub fn start_on(places: Vec<EtcdPlace>, directory: &Path) -> Self {
        let member = |EtcdPlace { address, enter }| Member {
            client: SocketAddr::new(address, 2379),
            peer: SocketAddr::new(address, 2380),
            enter,
            running: None,
        };
        Self::launch_all(places.into_iter().map(member).collect(), directory, None)
    }

    fn launch_all(members: Vec<Member>, directory: &Path, files: Option<EtcdFiles>) -> Self {
        let count = members.len();
        let cluster = members.iter().enumerate().map(|(n, member)| format!("m{n}=http://{}", member.peer));
        let cluster = cluster.collect::<Vec<_>>().join(",");
        let mut etcd = Self { members, cluster, directory: directory.to_owned(), files };
        for number in 0..count {
            etcd.launch(number);
        }
        for number in 0..count {
            etcd.wait_listening(number);
        }
        etcd
    }

    /// HOST:PORT of every member, with commas between.
    #[must_use]
    pub fn endpoints(&self) -> String {
        self.members.iter().map(|member| member.client.to_string()).collect::<Vec<_>>().join(",")
    }

    /// Whether a member has not ended by itself.
    pub fn is_running(&mut self, number: usize) -> bool {
        self.members[number].running.as_mut().is_some_and(Running::is_running)
    }

    pub fn kill(&mut self, number: usize) {
        self.members[number].running = None;
    }

    /// Starts a killed member again, with the data that it had.
    pub fn restart(&mut self, number: usize) {
        self.kill(number);
        self.launch(number);
        self.wait_listening(number);
    }

    /// All of them; one alone would wait for another to listen.
    pub fn restart_all(&mut self) {
        (0..self.members.len()).for_each(|number| self.kill(number));
        (0..self.members.len()).for_each(|number| self.launch(number));
        (0..self.members.len()).for_each(|number| self.wait_listening(number));
    }

    /// It keeps its connections and answers nothing.
    pub fn pause(&self, number: usize) {
        self.signal(number, Signal::STOP);
    }

    pub fn resume(&self, number: usize) {
        self.signal(number, Signal::CONT);
    }

    fn signal(&self, number: usize, signal: Signal) {
        self.members[number].running.as_ref().expect("a member that runs").signal(signal);
    }

    fn launch(&mut self, number: usize) {
        let scheme = if self.files.is_some() { "https" } else { "http" };
        let member = &mut self.members[number];
        let data = self.directory.join(format!("m{number}"));
        let (client, peer) = (format!("{scheme}://{}", member.client), format!("http://{}", member.peer));
        let mut command = Command::new("etcd");
        command.args(["--name", &format!("m{number}"), "--initial-cluster", &self.cluster]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        command.args(["--logger", "zap", "--log-outputs"]).arg(self.directory.join(format!("m{number}.log")));
        command.arg("--data-dir").arg(data);
        if let Some(EtcdFiles { ca, certificate, key }) = &self.files {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        }
        let (mut command, mut running) = (Some(command), None);
        (member.enter)(&mut || running = command.take().map(Running::start));
        member.running = running;
    }

    fn wait_listening(&self, number: usize) {
        let Member { client, enter, .. } = &self.members[number];
        let limit = Duration::from_secs(30);
        enter(&mut || {
            wait_until("a member of etcd to listen", limit, || std::net::TcpStream::connect(client).is_ok());
        });
    }
}
