//! How many connections one client address has.
//!
//! Shared by the listener, which takes a place for a connection, and the
//! connection's task, which holds it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The places of all addresses.
#[derive(Debug)]
pub(super) struct Places {
    taken: Mutex<HashMap<IpAddr, usize>>,
    per_address_max: usize,
}

/// A connection's place, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    /// So many for each address.
    pub(super) fn new(per_address_max: usize) -> Arc<Self> {
        Arc::new(Self {
            taken: Mutex::default(),
            per_address_max,
        })
    }

    /// A place for a connection from there; `None` when all are taken.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        // A client is the same one whether or not it came by a socket for IPv6.
        let address = address.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.get(&address).copied().unwrap_or(0) >= self.per_address_max {
            return None;
        }
        *taken.entry(address).or_default() += 1;
        Some(Place {
            places: self.clone(),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = &self.places.taken;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_places_and_gives_them_back() {
        let places = Places::new(2);
        let one: IpAddr = [192, 0, 2, 1].into();
        let mapped = std::net::Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped();
        let first = places.take(one).expect("a place");
        let second = places.take(mapped.into()).expect("a place");
        assert!(places.take(one).is_none());
        assert!(places.take([192, 0, 2, 2].into()).is_some());
        drop(first);
        assert!(places.take(one).is_some());
        drop(second);
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
