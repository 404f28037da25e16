//! Datagrams that the app has not read when its host dies are read by its copy, which answers those who sent them.

use std::net::{SocketAddr, UdpSocket};

use testkit::needs;
use testkit::wait::Deadline;

use super::STRONG;
use super::street::{Pair, SERVICE, SOON, Side};

/// Reads what has come to one port, and answers it, only when it is told to on the other one.
const PROGRAM: &str = "
import socket
mail, door = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
mail.bind(('0.0.0.0', 7001))
door.bind(('0.0.0.0', 7002))
mail.setblocking(False)
while True:
    word, who = door.recvfrom(64)
    while word == b'read':
        try:
            letter, sender = mail.recvfrom(2048)
        except BlockingIOError:
            break
        mail.sendto(b'heard ' + letter, sender)
    door.sendto(word, who)
";

enum End {
    Killed,
    PowerOff,
    Moved,
}

#[test]
fn datagrams_that_wait_survive_a_takeover() {
    needs!("root", "pagemap-scan", CAP_NET_ADMIN, CAP_BPF);
    for (options, end) in
        [(STRONG, End::Killed), (STRONG, End::PowerOff), (STRONG, End::Moved), (&[], End::Moved)]
    {
        let program = ["python3", "-c", PROGRAM].map(str::to_owned);
        let mut pair = Pair::protecting(options, &program);
        let [a, b, door] = [(); 3].map(|()| client(&pair, 7001));
        door.connect(SocketAddr::new(SERVICE.into(), 7002)).unwrap();
        tell(&pair, &door, b"ready?");
        for (sender, word) in [(&a, &b"one"[..]), (&b, b"two"), (&a, b""), (&a, b"four")] {
            sender.send(word).unwrap();
        }
        // In strong consistency an answer is heard when what was there before it is in a checkpoint.
        tell(&pair, &door, b"there?");
        // Nor is what an earlier look has seen forgotten.
        let epoch = || pair.app(Side::A).and_then(|app| app["epoch"].as_u64());
        let now = pair.wait("an epoch", epoch);
        pair.wait("two epochs", || epoch().filter(|later| *later > now + 1));
        match end {
            End::Killed => pair.kill_manager(Side::A),
            End::PowerOff => pair.power_off_a(),
            End::Moved => drop(pair.switch_over()),
        }
        if !matches!(end, End::Moved) {
            pair.takeover();
        }
        tell(&pair, &door, b"read");
        for (sender, word) in
            [(&a, &b"heard one"[..]), (&b, b"heard two"), (&a, b"heard "), (&a, b"heard four")]
        {
            let mut heard = [0; 64];
            let len = sender.recv(&mut heard).unwrap_or_else(|why| panic!("{why}: {}", pair.logs()));
            assert_eq!(&heard[..len], word, "{}", pair.logs());
        }
    }
}

fn client(pair: &Pair, port: u16) -> UdpSocket {
    let client = pair.clients.within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    client.connect(SocketAddr::new(SERVICE.into(), port)).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client
}

/// Until it is answered: a datagram may get lost.
fn tell(pair: &Pair, door: &UdpSocket, word: &[u8]) {
    door.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    let answered = Deadline::after(SOON).poll(|| {
        door.send(word).ok()?;
        let mut heard = [0; 64];
        let len = door.recv(&mut heard).ok()?;
        (&heard[..len] == word).then_some(())
    });
    assert!(answered.is_some(), "nobody answers: {}", pair.logs());
}
