//! A network that leads nowhere: for an app that is to run and to be heard by nobody.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use super::{DEVICE, DEVICE_INDEX, NetworkError, to};
use crate::namespace::{self, Namespace};
use crate::netlink::Netlink;

/// The other end of the cell's device, in the same namespace.
const FAR_END: &str = "nowhere";
/// Nobody answers there.
const QUESTIONS: u32 = 1;
const PATIENCE: Duration = Duration::from_millis(1);

/// A namespace with its own loopback, and with these addresses on a device that is called and numbered as in every
/// cell, so that whoever listens there can. Only what is started in there reaches them. There is a route to everybody else,
/// since a socket may be connected to somebody, and whoever goes it is told at once that nobody is there.
pub fn sealed_network(addresses: &[IpAddr]) -> Result<Namespace, NetworkError> {
    let namespace = Namespace::new().map_err(to("make a network namespace"))?;
    namespace::within(namespace.as_fd(), || {
        let inside = Netlink::open().map_err(to("speak with the kernel about devices"))?;
        // The peer of a pair is born first, and the first has the number that is wanted.
        let made = inside.add_veth(FAR_END, DEVICE, namespace.as_fd());
        made.map_err(to("make a device that leads nowhere"))?;
        let far_end = inside.link(FAR_END).map_err(to("look at a device"))?.index;
        for end in [DEVICE_INDEX, far_end] {
            inside.keep_quiet(end).map_err(to("keep a device quiet"))?;
            inside.set_up(end).map_err(to("switch a device on"))?;
        }
        for address in addresses {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            match inside.add_address(DEVICE_INDEX, *address, bits) {
                Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => (),
                added => added.map_err(to("give a device its address"))?,
            }
        }
        for any in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            let asked = inside.ask_for_neighbours(DEVICE_INDEX, any, QUESTIONS, PATIENCE);
            let routed = asked.and_then(|()| inside.make_everybody_a_neighbour(DEVICE_INDEX, any));
            match routed {
                // A kernel without IPv6 has no sockets of it either.
                Err(_) if any.is_ipv6() && !addresses.iter().any(IpAddr::is_ipv6) => (),
                routed => routed.map_err(to("set a device's routes"))?,
            }
        }
        Ok::<_, NetworkError>(())
    })?;
    Ok(namespace)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn who_listens_in_a_sealed_network_is_heard_inside_and_nowhere_else() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: needs root");
        }
        let address: IpAddr = "192.0.2.77".parse().unwrap();
        let sealed = sealed_network(&[address, "2001:db8::77".parse().unwrap()]).unwrap();
        let device = sealed.within(|| Netlink::open()?.link(DEVICE)).unwrap();
        assert_eq!((device.index, device.up), (DEVICE_INDEX, true));
        let listener = sealed.within(|| TcpListener::bind((address, 0))).unwrap();
        let place = listener.local_addr().unwrap();
        sealed.within(|| TcpStream::connect(place)).unwrap();
        let another = sealed_network(&[]).unwrap();
        assert!(another.within(|| TcpStream::connect(place)).is_err());
        let listener6 = sealed.within(|| TcpListener::bind("[2001:db8::77]:0")).unwrap();
        sealed.within(|| TcpStream::connect(listener6.local_addr()?)).unwrap();
        for (own, other) in [("192.0.2.77:0", "198.51.100.1:80"), ("[2001:db8::77]:0", "[2001:db8:1::1]:80")]
        {
            // As it is done for a socket of the app's that was connected to somebody.
            sealed.within(|| UdpSocket::bind(own)?.connect(other)).unwrap();
            let why = sealed.within(|| TcpStream::connect(other)).unwrap_err();
            assert_eq!(why.raw_os_error(), Some(libc::EHOSTUNREACH), "{other}");
        }
    }
}
