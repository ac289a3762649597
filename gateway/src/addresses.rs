//! How much may come from one address? Connections, requests, and requests that nobody believed.
//!
//! An address of IPv6 counts with its /64, which is what one customer has. Exempt are the networks that
//! `limits.exempt_addresses` names (loopback unless told otherwise: a proxy on the same machine brings everybody).
//! Behind proxies that `limits.trusted_proxies` names, the caller is the last address of `X-Forwarded-For` that is none of
//! theirs: each proxy writes whom it was called by at the end, and what stands before that the caller may have made up.
//! A right token is heard also where many wrong ones came from: people share addresses.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::http::HeaderMap;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use ipnet::IpNet;
use tokio::sync::OwnedSemaphorePermit;

use crate::config::Limits;
use crate::edge::refused;
use crate::rate::Buckets;

/// Who counts as one.
pub type Address = IpAddr;

/// Where proxies write whom they were called by.
const FORWARDED: &str = "x-forwarded-for";

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Somebody whose connections and requests are counted.
    Counted(Address),
    /// A proxy that is believed: each request says whose it is.
    Proxy,
    /// Somebody who is not counted.
    Exempt,
}

/// What came from where.
pub struct Addresses {
    exempt: Vec<IpNet>,
    proxies: Vec<IpNet>,
    connections_max: usize,
    /// Open connections; none is kept at 0.
    open: DashMap<Address, usize>,
    requests: Buckets<Address>,
    failed: Buckets<Address>,
}

/// A connection's place among those that may be open, given back when it is dropped.
pub struct Place {
    _among_all: OwnedSemaphorePermit,
    _of_address: Option<OfAddress>,
}

impl Place {
    pub fn new(among_all: OwnedSemaphorePermit, of_address: Option<OfAddress>) -> Self {
        Self {
            _among_all: among_all,
            _of_address: of_address,
        }
    }
}

/// A connection counted for its address.
pub struct OfAddress(Arc<Addresses>, Address);

impl Drop for OfAddress {
    fn drop(&mut self) {
        if let Entry::Occupied(mut open) = self.0.open.entry(self.1) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

/// As many connections are open from there as may be.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany;

impl Addresses {
    /// With the limits as configured.
    pub fn new(limits: &Limits) -> Self {
        let max = limits.addresses_remembered_max;
        Self {
            exempt: limits.exempt_addresses.clone(),
            proxies: limits.trusted_proxies.clone(),
            connections_max: limits.address_connections(),
            open: DashMap::new(),
            requests: Buckets::per_second(limits.address_requests_per_second, max),
            failed: Buckets::per_minute(limits.address_failed_logins_per_minute, max),
        }
    }

    /// Who is it that connects?
    pub fn of(&self, ip: IpAddr) -> Peer {
        let ip = ip.to_canonical();
        let is_in = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        if is_in(&self.proxies) {
            return Peer::Proxy;
        }
        if is_in(&self.exempt) {
            return Peer::Exempt;
        }
        Peer::Counted(match ip {
            IpAddr::V4(_) => ip,
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
        })
    }

    /// Whom does a request count for? None: nobody who is counted.
    pub fn caller(&self, peer: Peer, headers: &HeaderMap) -> Option<Address> {
        match peer {
            Peer::Counted(address) => Some(address),
            Peer::Exempt => None,
            Peer::Proxy => self.forwarded(headers),
        }
    }

    /// Whom the outermost proxy that is believed was called by. What cannot be read is one caller, whoever wrote it; a
    /// request that was not forwarded is the proxy's own.
    fn forwarded(&self, headers: &HeaderMap) -> Option<Address> {
        for line in headers.get_all(FORWARDED).iter().rev() {
            for hop in line.to_str().unwrap_or("?").rsplit(',').map(str::trim) {
                let ip = hop.parse::<IpAddr>();
                let ip = ip.or_else(|_| hop.parse::<SocketAddr>().map(|at| at.ip()));
                let Ok(ip) = ip else {
                    return Some(Ipv6Addr::UNSPECIFIED.into());
                };
                match self.of(ip) {
                    Peer::Proxy => {}
                    Peer::Exempt => return None,
                    Peer::Counted(address) => return Some(address),
                }
            }
        }
        None
    }

    /// Counts a connection. The table is as large as there are connections.
    pub fn admit(self: &Arc<Self>, address: Address) -> Result<OfAddress, TooMany> {
        let mut open = self.open.entry(address).or_insert(0);
        if *open >= self.connections_max {
            refused("address_connections");
            return Err(TooMany);
        }
        *open += 1;
        Ok(OfAddress(self.clone(), address))
    }

    /// Counts a request; the error says after how many seconds the next is allowed.
    pub fn count_request(&self, address: &Address) -> Result<(), u32> {
        let taken = self.requests.take(address);
        taken.inspect_err(|_| refused("address_requests"))
    }

    /// Counts a request that nobody believed.
    pub fn count_failed(&self, address: &Address) -> Result<(), u32> {
        let taken = self.failed.take(address);
        taken.inspect_err(|_| refused("address_failed_logins"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(connections: usize) -> Arc<Addresses> {
        Arc::new(Addresses::new(&Limits {
            address_connections_max: connections,
            ..Limits::default()
        }))
    }

    #[test]
    fn a_customer_is_one_and_the_own_machine_is_nobody() {
        let of = |ip: &str| addresses(1).of(ip.parse().unwrap());
        for own in ["127.0.0.1", "::1", "::ffff:127.0.0.9"] {
            assert_eq!(of(own), Peer::Exempt);
        }
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    }

    #[test]
    fn an_address_has_so_many_connections_and_nothing_is_kept_of_who_has_gone() {
        let addresses = addresses(2);
        let (one, two) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = addresses.admit(one).unwrap();
        let _second = addresses.admit(one).unwrap();
        assert!(addresses.admit(one).is_err() && addresses.admit(two).is_ok());
        drop(first);
        let _third = addresses.admit(one).unwrap();
        assert_eq!(addresses.open.len(), 1);
    }

    #[test]
    fn behind_proxies_the_caller_is_whom_the_outermost_of_ours_names() {
        let addresses = Addresses::new(&Limits {
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            ..Limits::default()
        });
        let caller = |from: &str, lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED, line.parse().unwrap());
            }
            addresses.caller(addresses.of(from.parse().unwrap()), &headers)
        };
        let is = |ip: &str| Some(ip.parse().unwrap());
        assert_eq!(caller("10.0.0.1", &["192.0.2.7"]), is("192.0.2.7"));
        assert_eq!(caller("10.0.0.1", &["192.0.2.7:4711"]), is("192.0.2.7"));
        assert_eq!(caller("10.0.0.1", &["[2001:db8::7]:1"]), is("2001:db8::"));
        // What the caller made up stands before what our proxies wrote.
        let made_up = ["127.0.0.1, 198.51.100.1, 192.0.2.7", "10.0.0.2"];
        assert_eq!(caller("10.0.0.1", &made_up), is("192.0.2.7"));
        assert_eq!(caller("10.0.0.1", &["192.0.2.7, nonsense"]), is("::"));
        assert_eq!(caller("10.0.0.1", &[""]), is("::"));
        assert_eq!(caller("10.0.0.1", &[]), None);
        // Nobody else is believed.
        assert_eq!(caller("192.0.2.1", &["192.0.2.7"]), is("192.0.2.1"));
        assert_eq!(caller("127.0.0.1", &["192.0.2.7"]), None);
    }
}
