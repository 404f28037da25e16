//! What the user says about a cell's network: `--address 10.0.0.9/24 --link br0 [--gateway 10.0.0.1]`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum SpecError {
    #[error("{0:?} is no address with its prefix; write it like 10.0.0.9/24 or fd00::9/64")]
    Form(String),
    #[error("{0} is no address that a service can have; give one of the link's own network that is free")]
    NotOfAHost(IpAddr),
    #[error(
        "gateway {gateway} and address {address} are not of one family; give both as IPv4 or both as IPv6"
    )]
    Families { gateway: IpAddr, address: IpAddr },
    #[error(
        "{0:?} can't be the name of a network device: those have 1 to 15 bytes without '/', ':' and white space \
         (`ip link` lists them)"
    )]
    Link(String),
}

/// The service's address, and how many of its leading bits name the network that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceAddress {
    ip: IpAddr,
    prefix: u8,
}

impl ServiceAddress {
    pub fn new(ip: IpAddr, prefix: u8) -> Result<Self, SpecError> {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        if prefix == 0 || prefix > bits {
            return Err(SpecError::Form(format!("{ip}/{prefix}")));
        }
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast {
            return Err(SpecError::NotOfAHost(ip));
        }
        Ok(Self { ip, prefix })
    }

    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

impl FromStr for ServiceAddress {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let form = || SpecError::Form(text.to_owned());
        let (ip, prefix) = text.split_once('/').ok_or_else(form)?;
        let (ip, prefix) = (ip.parse().map_err(|_| form())?, prefix.parse().map_err(|_| form())?);
        Self::new(ip, prefix)
    }
}

impl fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// Where a cell is on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSpec {
    pub address: ServiceAddress,
    /// A bridge, or the device that leads to the clients. With the latter, the host itself and the cell do not
    /// reach each other (a property of `macvlan`); with a bridge they do.
    pub link: String,
    /// Who forwards what is for other networks; without one only the address's own network is reached.
    pub gateway: Option<IpAddr>,
}

impl NetworkSpec {
    pub fn new(
        address: ServiceAddress,
        link: impl Into<String>,
        gateway: Option<IpAddr>,
    ) -> Result<Self, SpecError> {
        let (ip, link) = (address.ip, link.into());
        match gateway {
            Some(gateway) if gateway.is_ipv4() != ip.is_ipv4() => {
                Err(SpecError::Families { gateway, address: ip })
            }
            _ if !names_a_device(&link) => Err(SpecError::Link(link)),
            _ => Ok(Self { address, link, gateway }),
        }
    }
}

/// As the kernel has it (`dev_valid_name`).
fn names_a_device(name: &str) -> bool {
    const BYTES_MAX: usize = 15;
    let odd = |c: char| c.is_whitespace() || "/:\0".contains(c);
    !name.is_empty() && name.len() <= BYTES_MAX && name != "." && name != ".." && !name.contains(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in ["10.0.0.9/24", "fd00::9/64", "192.0.2.1/32"] {
            assert_eq!(text.parse::<ServiceAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_service_address_is_refused_by_name() {
        for text in ["10.0.0.9", "10.0.0.9/33", "10.0.0.9/0", "x/24", "10.0.0.9/", "fd00::9/129", "/24"] {
            assert!(matches!(text.parse::<ServiceAddress>(), Err(SpecError::Form(_))), "{text}");
        }
        for text in ["127.0.0.1/8", "0.0.0.0/8", "::1/128", "224.0.0.1/4", "255.255.255.255/32", "ff02::1/16"]
        {
            assert!(matches!(text.parse::<ServiceAddress>(), Err(SpecError::NotOfAHost(_))), "{text}");
        }
    }

    #[test]
    fn names_that_no_device_can_have_are_refused() {
        let address: ServiceAddress = "10.0.0.9/24".parse().unwrap();
        let spec = |name: &str| NetworkSpec::new(address, name, None);
        for name in
            ["", ".", "..", "a/b", "a b", "br0\n", "br0\0x", "eth0:1", "sixteen-letters!", "brücke-brücke-"]
        {
            assert_eq!(spec(name), Err(SpecError::Link(name.to_owned())));
        }
        assert_eq!(spec(&"x".repeat(70_000)), Err(SpecError::Link("x".repeat(70_000))));
        for name in ["br0", "fifteen-letters", "x", "...", "brücke"] {
            assert_eq!(spec(name).unwrap().link, name);
        }
    }

    #[test]
    fn gateway_of_the_other_family_is_refused() {
        let address = "10.0.0.9/24".parse().unwrap();
        let refused = NetworkSpec::new(address, "br0", Some("fd00::1".parse().unwrap()));
        assert!(matches!(refused, Err(SpecError::Families { .. })));
    }
}
