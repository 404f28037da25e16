//! A real etcd cluster on loopback addresses, whose members can be killed, paused and started again.

use std::net::SocketAddr;
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

#[derive(Debug)]
struct Member {
    client: SocketAddr,
    peer: SocketAddr,
    running: Option<Running>,
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
        let member = |_| Member { client: own_address(), peer: own_address(), running: None };
        let members: Vec<_> = (0..count).map(member).collect();
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

    pub fn kill(&mut self, number: usize) {
        self.members[number].running = None;
    }

    /// Starts a killed member again, with the data that it had.
    pub fn restart(&mut self, number: usize) {
        self.kill(number);
        self.launch(number);
        self.wait_listening(number);
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
        member.running = Some(Running::start(command));
    }

    fn wait_listening(&self, number: usize) {
        let client = self.members[number].client;
        let limit = Duration::from_secs(30);
        wait_until("a member of etcd to listen", limit, || std::net::TcpStream::connect(client).is_ok());
    }
}
