//! The same over IPv6: an address of the app's own, announced by unsolicited neighbour advertisements.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use gate::netlink::Netlink;
use testkit::needs;
use testkit::programs::go_app;

use super::STRONG;
use super::asker::Asker;
use super::street::{Pair, SOON, Side};

const SERVICE: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 9));
const CLIENTS: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 3));
const HOST_B: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2));
const PREFIX: u8 = 64;

fn server() -> Vec<String> {
    let listen = format!("[{SERVICE}]:7000");
    [go_app("kv").display().to_string(), "serve".into(), "--listen".into(), listen].to_vec()
}

/// The hosts, of which the clients' have this address.
fn street(of_the_clients: IpAddr) -> Pair {
    let pair = Pair::build();
    let add = |device: &str, address| -> io::Result<()> {
        let netlink = Netlink::open()?;
        netlink.add_address(netlink.link(device)?.index, address, PREFIX)
    };
    pair.clients.within(|| add("eth0", of_the_clients)).unwrap();
    pair.namespace(Side::B).within(|| add("br0", HOST_B)).unwrap();
    pair
}

fn start(pair: &mut Pair) {
    pair.start_standby();
    pair.start_primary_at(&format!("{SERVICE}/{PREFIX}"), STRONG, &server());
}

/// With the host's power its device is gone as well, and nobody may go on asking for it. (That the announcement alone
/// tells is a test of the gate's: here the copy also asks for its clients, which tells them.)
#[test]
fn connections_go_on_at_the_address_that_moves() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    const AT_ONCE: Duration = Duration::from_secs(3);
    let deaths: [fn(&mut Pair); 2] = [|pair| pair.kill_manager(Side::A), Pair::power_off_a];
    for die in deaths {
        let mut pair = street(CLIENTS);
        start(&mut pair);
        pair.wait_until_protected();
        let mut clients: Vec<Asker> =
            (0..4).map(|_| Asker::connect_to(SERVICE, &pair.clients).unwrap()).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.ask(&format!("PUT k{n} before")).unwrap(), "OK");
        }
        let mut somebody = Asker::connect_to(SERVICE, pair.namespace(Side::B)).unwrap();
        assert_eq!(somebody.ask("GET k0").unwrap(), "VALUE before");
        drop(somebody);
        // Asked and not answered, perhaps.
        clients[0].send("PUT k0 after").unwrap();
        let died = Instant::now();
        die(&mut pair);
        assert_eq!(clients[0].answer().unwrap(), "OK", "{}", pair.logs());
        assert!(died.elapsed() < AT_ONCE, "{:?}", died.elapsed());
        for (n, client) in clients.iter_mut().enumerate() {
            let value = if n == 0 { "after" } else { "before" };
            assert_eq!(
                client.ask(&format!("GET k{n}")).unwrap(),
                format!("VALUE {value}"),
                "{}",
                pair.logs()
            );
        }
        pair.takeover();
        let asked = Instant::now();
        let mut somebody = Asker::connect_to(SERVICE, pair.namespace(Side::B)).unwrap();
        assert_eq!(somebody.ask("GET k1").unwrap(), "VALUE before");
        assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    }
}

#[test]
fn an_address_that_somebody_has_is_refused_by_name() {
    needs!("root", "pagemap-scan", "go", CAP_NET_ADMIN, CAP_BPF);
    let mut pair = street(SERVICE);
    start(&mut pair);
    let ended = pair.manager(Side::A).wait(SOON);
    let log = pair.log_of(Side::A);
    assert!(!ended.success() && log.contains("address fd78::9 is in use already on br0"), "{log}");
}
