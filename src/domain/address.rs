//! Ranges of network addresses, as grants and the lists of trusted proxies name them.
//!
//! Only the arithmetic of addresses: nothing here resolves a name or opens a socket.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::fmt;
use std::str::FromStr;

/// Why a text is not a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIpRange {
    /// Not an IPv4 or IPv6 address.
    #[error("address range must start with an IPv4 or IPv6 address")]
    Address,
    /// The part after the slash is not a number of bits.
    #[error("prefix length must be 0 to 32 for IPv4 and 0 to 128 for IPv6")]
    Prefix,
    /// Bits behind the prefix are set, so the writer meant something else.
    #[error("address has bits set behind its prefix")]
    HostBits,
    /// An IPv4 address in IPv6 clothes: no source address would ever match it.
    #[error("an IPv4 range must be written as IPv4")]
    Mapped,
}

/// A range of addresses in CIDR form, `203.0.113.0/24` or `2001:db8::/32`; a bare address is a range of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpRange {
    /// The first address of the range; the bits behind the prefix are zero.
    network: IpAddr,
    /// At most 32 for IPv4 and 128 for IPv6.
    prefix: u8,
}

impl IpRange {
    /// Whether it is one customer's line at most: an IPv4 address, or an IPv6 network of 64 bits, whose addresses change by themselves.
    pub fn is_one_line(&self) -> bool {
        self.prefix >= if self.network.is_ipv4() { 32 } else { 64 }
    }

    /// Whether `address` lies in the range.
    ///
    /// An IPv4-mapped IPv6 address (`::ffff:203.0.113.7`, as dual-stack sockets report it) counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.network.is_ipv4() && masked(address, self.prefix) == self.network
    }
}

impl FromStr for IpRange {
    type Err = InvalidIpRange;

    fn from_str(text: &str) -> Result<Self, InvalidIpRange> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let network: IpAddr = address.parse().map_err(|_| InvalidIpRange::Address)?;
        if network.to_canonical() != network {
            return Err(InvalidIpRange::Mapped);
        }
        let width = width(network);
        let prefix = prefix.map_or(Some(width), |digits| parse_prefix(digits, width));
        let prefix = prefix.ok_or(InvalidIpRange::Prefix)?;
        if masked(network, prefix) != network {
            return Err(InvalidIpRange::HostBits);
        }
        Ok(Self { network, prefix })
    }
}

impl fmt::Display for IpRange {
    /// Writes the CIDR form, the prefix always included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// Addresses that no server of the internet has: IANA's registries of special-purpose addresses (RFC 6890), with those
/// that stand for an IPv4 address, because what they reach depends on the network.
const SPECIAL: [&str; 23] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
];

/// The only addresses of IPv6 that servers of the internet have so far (RFC 4291); all others are local or not assigned.
const ASSIGNED: &str = "2000::/3";

/// Whether an address may be that of a server of the internet: none of this machine or network, none for many, none that is
/// reserved or stands for an address of another kind.
pub fn is_public(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let is_in = |text: &str| text.parse::<IpRange>().is_ok_and(|range| range.contains(address));
    (address.is_ipv4() || is_in(ASSIGNED)) && !SPECIAL.into_iter().any(is_in)
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Reads one to three digits without sign or leading zero.
fn parse_prefix(digits: &str, width: u8) -> Option<u8> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|prefix| plain && *prefix <= width)
}

/// Clears the bits behind the first `prefix` ones.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let behind = u32::from(width(address) - prefix);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(behind).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(behind).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> IpRange {
        text.parse().unwrap_or_else(|fault| panic!("{text}: {fault}"))
    }

    #[test]
    fn ranges_contain_what_they_name() {
        let rows = [
            ("203.0.113.0/24", "203.0.113.255", true),
            ("203.0.113.0/24", "203.0.114.0", false),
            ("203.0.113.0/24", "::ffff:203.0.113.9", true),
            ("203.0.113.7", "203.0.113.7", true),
            ("203.0.113.7", "203.0.113.8", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "127.0.0.1", false),
            ("::/0", "::ffff:127.0.0.1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/33", "2001:db8:7fff::", true),
            ("2001:db8::/33", "2001:db8:8000::", false),
            ("2001:db8::1/128", "2001:db8::1", true),
            ("2001:db8::1/128", "2001:db8::2", false),
            ("2001:db8::1/128", "127.0.0.1", false),
        ];
        for (text, address, inside) in rows {
            assert_eq!(range(text).contains(address.parse().unwrap()), inside, "{address} in {text}");
        }
    }

    #[test]
    fn text_is_checked() {
        use InvalidIpRange::{Address, HostBits, Mapped, Prefix};
        let rows = [
            ("", Address),
            ("localhost", Address),
            ("203.0.113", Address),
            ("203.0.113.0 /24", Address),
            ("203.0.0113.0/24", Address),
            ("[::1]/128", Address),
            ("fe80::1%eth0/64", Address),
            ("203.0.113.0/", Prefix),
            ("203.0.113.0/33", Prefix),
            ("203.0.113.0/+8", Prefix),
            ("203.0.113.0/024", Prefix),
            ("203.0.113.0/24/1", Prefix),
            ("::/129", Prefix),
            ("::/256", Prefix),
            ("203.0.113.1/24", HostBits),
            ("2001:db8::1/64", HostBits),
            ("::ffff:203.0.113.0/120", Mapped),
        ];
        for (text, fault) in rows {
            assert_eq!(text.parse::<IpRange>(), Err(fault), "{text:?}");
        }
    }

    #[test]
    fn only_servers_of_the_internet_are_public() {
        assert!(SPECIAL.iter().all(|text| text.parse::<IpRange>().is_ok()));
        for public in [
            "1.1.1.1",
            "34.208.0.1",
            "100.63.255.255",
            "172.32.0.1",
            "2606:4700::1",
            "2a01:4f8::1",
            "::ffff:1.1.1.1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "192.0.0.8",
            "198.19.0.1",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "8000::1",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
    }

    proptest! {
        #[test]
        fn a_range_holds_its_network_and_is_read_back(bits in any::<u128>(), v4 in any::<bool>(), prefix in 0u8..=128) {
            let address = if v4 {
                IpAddr::V4(Ipv4Addr::from_bits((bits >> 96) as u32))
            } else {
                IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical()
            };
            let prefix = prefix.min(width(address));
            let range = IpRange { network: masked(address, prefix), prefix };
            prop_assert!(range.contains(address));
            if range.network.to_canonical() == range.network {
                prop_assert_eq!(range.to_string().parse(), Ok(range));
            }
        }
    }
}
