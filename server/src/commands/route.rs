//! Runs on: main thread, before any core is started.
//!
//! The address of this host that other hosts reach: that of its default route. The kernel is asked over netlink.
//!
//! IPv4 goes before IPv6. The route's preferred source counts, and without one the first address of its interface.
//!
//! **Source**: `netlink(7)`, `rtnetlink(7)`; etcd v3.7.1 `pkg/netutil/routes_linux.go`.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    net::IpAddr,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// Longest time that the kernel is waited for; it answers at once.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// The kernel sends a dump in pieces of at most this size. **Units** bytes.
const PIECE_MAX: usize = 64 << 10;
/// Length of the head of a message: length, kind, flags, sequence number, port.
const HEAD_LEN: usize = 16;
/// Length of what stands in a route before its attributes.
const ROUTE_LEN: usize = 12;
/// Length of what stands in an address before its attributes.
const ADDRESS_LEN: usize = 8;
/// Attributes and messages begin at multiples of this.
const ALIGN: usize = 4;

/// The address of the default route.
///
/// **Errors** the socket's; there is no default route, or no address for it.
pub(super) fn default_host() -> io::Result<IpAddr> {
    host_of(&dump(libc::RTM_GETROUTE, 0)?, |family| dump(libc::RTM_GETADDR, family))
}

/// A message: its kind, and what follows its head.
type Message = (u16, Vec<u8>);

/// Asks the kernel for everything of one kind, of the address family `family`; 0 for all.
fn dump(kind: u16, family: u8) -> io::Result<Vec<Message>> {
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).expect("flags of 16 bits");
    let mut request = Vec::from(17_u32.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // Sequence number and port; the kernel sees whose socket it is.
    request.extend([0; 8]);
    request.push(family);
    socket.send(&request)?;
    let mut messages = Vec::new();
    let mut piece = vec![0; PIECE_MAX];
    loop {
        let len = (&socket).read(&mut piece)?;
        for message in messages_of(&piece[..len]) {
            match i32::from(message.0) {
                libc::NLMSG_DONE => return Ok(messages),
                libc::NLMSG_ERROR => return Err(io::Error::other("the kernel refuses to list its routes")),
                _ => messages.push(message),
            }
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The messages of a piece, up to the first that is not whole.
fn messages_of(mut piece: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let (Some(len), Some(kind)) = (u32_at(piece, 0), u16_at(piece, 4)) {
        let len = len as usize;
        let Some(body) = piece.get(HEAD_LEN..len) else { break };
        messages.push((kind, body.to_vec()));
        piece = piece.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    messages
}

/// The value of an attribute.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let (Some(len), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let value = attributes.get(ALIGN..usize::from(len))?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(usize::from(len).next_multiple_of(ALIGN)..).unwrap_or_default();
    }
    None
}

/// An IP address, by its length.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_not_v4| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The address of the default route among `routes`. `addresses` gives the addresses of a family.
fn host_of(routes: &[Message], addresses: impl Fn(u8) -> io::Result<Vec<Message>>) -> io::Result<IpAddr> {
    let mut defaults = BTreeMap::new();
    for (_, route) in routes.iter().filter(|(kind, route)| *kind == libc::RTM_NEWROUTE && route.len() >= ROUTE_LEN) {
        let (family, destination_bits, table) = (route[0], route[1], route[4]);
        if destination_bits == 0 && table == libc::RT_TABLE_MAIN {
            defaults.insert(family, &route[ROUTE_LEN..]);
        }
    }
    // By number, IPv4 is the first family.
    for (family, attributes) in defaults.iter() {
        if let Some(host) = host_of_route(attributes, || addresses(*family))? {
            return Ok(host);
        }
    }
    let what = if defaults.is_empty() { "route" } else { "host" };
    Err(io::Error::other(format!("could not find default {what}")))
}

fn host_of_route(attributes: &[u8], addresses: impl Fn() -> io::Result<Vec<Message>>) -> io::Result<Option<IpAddr>> {
    let Some(interface) = attribute(attributes, libc::RTA_OIF).and_then(|value| u32_at(value, 0)) else {
        return Err(io::Error::other("could not find default route"));
    };
    if let Some(source) = attribute(attributes, libc::RTA_PREFSRC) {
        return Ok(address(source));
    }
    let is_of_interface = |(kind, body): &Message| *kind == libc::RTM_NEWADDR && u32_at(body, 4) == Some(interface);
    let found = addresses()?
        .into_iter()
        .find(is_of_interface)
        .ok_or_else(|| io::Error::other(format!("could not find address for interface index {interface}")))?;
    Ok(found.1.get(ADDRESS_LEN..).and_then(|attributes| attribute(attributes, libc::IFA_ADDRESS)).and_then(address))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    const V4: u8 = 2;
    const V6: u8 = 10;

    fn attributes(list: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, value) in list {
            bytes.extend(u16::try_from(ALIGN + value.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
        }
        bytes
    }

    fn route(family: u8, destination_bits: u8, table: u8, list: &[(u16, &[u8])]) -> Message {
        let head = [family, destination_bits, 0, 0, table, 0, 0, 0, 0, 0, 0, 0];
        (libc::RTM_NEWROUTE, [&head[..], &attributes(list)].concat())
    }

    fn found(routes: &[Message]) -> Result<String, String> {
        let addresses = |family| {
            let of = |interface: u32, value: &[u8]| {
                let head = [&[family, 24, 0, 0][..], &interface.to_ne_bytes()].concat();
                (libc::RTM_NEWADDR, [head, attributes(&[(9, b"odd"), (libc::IFA_ADDRESS, value)])].concat())
            };
            Ok(vec![of(1, &[127, 0, 0, 1]), of(2, &[10, 0, 0, 2]), of(2, &[10, 0, 0, 3])])
        };
        host_of(routes, addresses).map(|host| host.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_route_of_ipv4_goes_first_and_its_source_before_the_interfaces_address() {
        let interface = |number: u32| number.to_ne_bytes();
        let (one, two, three) = (interface(1), interface(2), interface(3));
        let (source, source6) = ([192, 0, 2, 9], [0xfd; 16]);
        let lan = route(V4, 24, 254, &[(libc::RTA_OIF, &one)]);
        let local = route(V4, 0, 255, &[(libc::RTA_OIF, &one)]);
        let plain = route(V4, 0, 254, &[(libc::RTA_OIF, &two)]);
        let with_source = route(V4, 0, 254, &[(libc::RTA_PREFSRC, &source), (libc::RTA_OIF, &two)]);
        let v6 = route(V6, 0, 254, &[(libc::RTA_OIF, &two), (libc::RTA_PREFSRC, &source6)]);
        assert_eq!(found(&[lan.clone(), local, plain.clone(), v6.clone()]), Ok("10.0.0.2".into()));
        assert_eq!(found(&[v6.clone(), with_source]), Ok("192.0.2.9".into()));
        assert!(found(&[lan.clone(), v6]).is_ok_and(|host| host.starts_with("fdfd:")));
        assert_eq!(found(&[lan]), Err("could not find default route".into()));
        let unknown = route(V4, 0, 254, &[(libc::RTA_OIF, &three)]);
        assert_eq!(found(&[unknown]), Err("could not find address for interface index 3".into()));
        assert_eq!(found(&[route(V4, 0, 254, &[])]), Err("could not find default route".into()));
    }

    #[test]
    fn pieces_are_split_into_messages_whatever_their_lengths_say() {
        let message = |len: u32, body: &[u8]| [&len.to_ne_bytes()[..], &7_u16.to_ne_bytes(), &[0; 10], body].concat();
        let two = [message(18, &[1, 2, 0, 0]), message(16, &[])].concat();
        assert_eq!(messages_of(&two), [(7, vec![1, 2]), (7, vec![])]);
        assert_eq!(messages_of(&message(99, &[1])), []);
        assert_eq!(messages_of(&message(3, &[1])), []);
        assert_eq!(attribute(&[2, 0, 1, 0, 9, 9, 9, 9], 1), None);
    }

    /// A connected UDP socket has the address of the route to its peer. Nothing is sent.
    #[test]
    fn the_kernel_gives_the_address_of_the_route_to_far_away() {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let far = socket.connect("8.8.8.8:9").and_then(|()| socket.local_addr()).map(|address| address.ip());
        match (default_host(), far) {
            (Ok(host), Ok(far)) => assert_eq!(host, far),
            (host, far) => assert!(far.is_err(), "{host:?}, but {far:?}"),
        }
    }
}
