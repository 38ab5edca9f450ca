//! Network names as the configuration writes them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::domain::address::is_public;

const PUBLIC_SCHEME: &str = "wss://";

/// Why a text is not a valid name; it says what is allowed, not what was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("allowed: {0}")]
pub struct InvalidName(&'static str);

/// The name under which providers and players reach this node: `wss://host` or `wss://host:port`, exactly as written.
///
/// Providers sign the URL they dial, so nothing about it is normalised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    text: String,
    host: String,
}

impl PublicUrl {
    /// Returns the URL as written, without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the host as written; an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns host and port as written.
    pub fn authority(&self) -> &str {
        self.text.strip_prefix(PUBLIC_SCHEME).unwrap_or(&self.text)
    }

    /// Returns the start of URLs for browsers: `https://` and the same host and port.
    pub fn https(&self) -> String {
        format!("https://{}", self.authority())
    }
}

impl FromStr for PublicUrl {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let authority = text.strip_prefix(PUBLIC_SCHEME);
        let host = authority.and_then(host_of).ok_or(InvalidName(
            "\"wss://host\" or \"wss://host:port\", without a path, a user or a slash at the end",
        ))?;
        Ok(Self { text: text.to_owned(), host: host.to_owned() })
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A node's name: 1 to 63 characters of `A-Z`, `a-z`, `0-9`, `-`, `_` and `.`, as host names and pods have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName(String);

impl NodeName {
    /// Returns the name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for NodeName {
    fn default() -> Self {
        Self("node-1".to_owned())
    }
}

impl FromStr for NodeName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if (1..=63).contains(&text.len()) && text.bytes().all(is_allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidName("1 to 63 characters of A-Z, a-z, 0-9, '-', '_' and '.'"))
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The origin of a web page that may use a tenant's recordings, exactly as browsers send it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WebOrigin(String);

impl WebOrigin {
    /// Returns the origin, to compare with an `Origin` header byte for byte.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WebOrigin {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let secure = text.strip_prefix("https://").and_then(host_of).is_some();
        let local = text.strip_prefix("http://").and_then(host_of).is_some_and(is_local);
        if (secure || local) && !text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidName(
            "\"https://host\" or \"https://host:port\" in lower case; http for this machine only",
        ))
    }
}

/// Where a websocket is dialled: `wss://host[:port][/path][?query]`.
///
/// The path may hold a secret, so `Debug` shows the host only.
#[derive(Clone, PartialEq, Eq)]
pub struct SocketUrl {
    authority: String,
    host: String,
    port: u16,
    target: String,
}

impl SocketUrl {
    /// Returns the host as written; an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port, 443 unless given.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns host and port as written: the `Host` header.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Returns path and query; at least `/`.
    pub fn target(&self) -> &str {
        &self.target
    }
}

impl FromStr for SocketUrl {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        parse_url(text, PUBLIC_SCHEME).ok_or(InvalidName(
            "\"wss://host/path\" or \"wss://host:port/path\", without a user and without '#'",
        ))
    }
}

fn parse_url(text: &str, scheme: &str) -> Option<SocketUrl> {
    let rest = text.strip_prefix(scheme)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    let host = host_of(authority)?;
    let is_target = |b: u8| {
        b.is_ascii_graphic()
            && !matches!(b, b'#' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
    };
    if !target.bytes().all(is_target) {
        return None;
    }
    let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    let port = port.and_then(|(_, port)| port.parse().ok()).unwrap_or(443);
    let slash = if target.starts_with('/') { "" } else { "/" };
    Some(SocketUrl {
        authority: authority.to_owned(),
        host: host.to_owned(),
        port,
        target: format!("{slash}{target}"),
    })
}

impl fmt::Debug for SocketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wss://{}/…", self.authority)
    }
}

/// Where requests are sent: `https://host[:port][/path][?query]`.
///
/// Path and query may hold a secret, so `Debug` shows the host only.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpsUrl(SocketUrl);

impl HttpsUrl {
    /// Returns the host as written; an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        self.0.host()
    }

    /// Returns the port, 443 unless given.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Returns host and port as written: the `Host` header, and all of it that may be shown.
    pub fn authority(&self) -> &str {
        self.0.authority()
    }

    /// Returns path and query; at least `/`.
    pub fn target(&self) -> &str {
        self.0.target()
    }
}

impl FromStr for HttpsUrl {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        parse_url(text, "https://").map(Self).ok_or(InvalidName(
            "\"https://host/path\" or \"https://host:port/path\", without a user and without '#'",
        ))
    }
}

impl fmt::Debug for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}/…", self.authority())
    }
}

/// Returns the host of `host`, `host:port`, `[v6]` or `[v6]:port`; nothing when it is something else.
pub(super) fn host_of(authority: &str) -> Option<&str> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        return (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)).then_some(host);
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let is_name = (1..=253).contains(&host.len())
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && !host.starts_with(['.', '-']);
    (is_name && port.is_none_or(is_port)).then_some(host)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Whether a host is on this machine or in this network by what is written; where a name leads to is seen when it is dialled.
pub(super) fn is_private_host(host: &str) -> bool {
    let name = host.trim_end_matches('.');
    host.parse::<IpAddr>().map_or_else(
        |_| name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost"),
        |address| !is_public(address),
    )
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_urls_are_taken_apart() {
        let url: SocketUrl = "wss://agent.internal:8443/twilio?x=1".parse().unwrap();
        assert_eq!(
            (url.host(), url.port(), url.authority(), url.target()),
            ("agent.internal", 8443, "agent.internal:8443", "/twilio?x=1")
        );
        assert_eq!(format!("{url:?}"), "wss://agent.internal:8443/…");
        let short: SocketUrl = "wss://[::1]".parse().unwrap();
        assert_eq!((short.host(), short.port(), short.target()), ("::1", 443, "/"));
        assert_eq!("wss://a?b".parse::<SocketUrl>().unwrap().target(), "/?b");
        for bad in [
            "ws://a/",
            "https://a",
            "wss://",
            "wss://u@a/",
            "wss://a/#f",
            "wss://a/b c",
            "wss://a:0/",
            "wss://a/é",
        ] {
            assert!(bad.parse::<SocketUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_of_receivers_are_taken_apart_and_never_shown() {
        let url: HttpsUrl = "https://hooks.example.com/a/b?token=x".parse().unwrap();
        assert_eq!((url.host(), url.port(), url.target()), ("hooks.example.com", 443, "/a/b?token=x"));
        assert_eq!(format!("{url:?}"), "https://hooks.example.com/…");
        for bad in [
            "http://a/",
            "wss://a/",
            "https://",
            "https://u:p@a/",
            "https://a/#f",
            "https://a/ b",
            "HTTPS://a",
        ] {
            assert!(bad.parse::<HttpsUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn public_urls_are_kept_as_written() {
        for good in
            ["wss://media.example.com", "wss://Media.Example.com:443", "wss://[::1]:8443", "wss://127.0.0.1"]
        {
            let url: PublicUrl = good.parse().expect(good);
            assert_eq!(url.as_str(), good);
        }
        let url: PublicUrl = "wss://[::1]:8443".parse().unwrap();
        assert_eq!(
            (url.host(), url.authority(), url.https().as_str()),
            ("::1", "[::1]:8443", "https://[::1]:8443")
        );
        for bad in [
            "",
            "wss://",
            "ws://a",
            "https://a",
            "WSS://a",
            "wss://a/",
            "wss://a/b",
            "wss://a?b",
            "wss://a#b",
            "wss://u@a",
            "wss://a:",
            "wss://a:0",
            "wss://a:65536",
            "wss://a:+1",
            "wss://a:1:2",
            "wss://[::1",
            "wss://[a]",
            "wss://::1",
            "wss://a b",
            "wss://a\n",
            "wss://é",
            "wss://-a",
            "wss://.a",
        ] {
            assert!(bad.parse::<PublicUrl>().is_err(), "{bad:?}");
        }
    }
}
