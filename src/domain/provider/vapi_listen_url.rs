//! Which websockets of Vapi's calls may be dialled.
//!
//! Their URLs come from outside, so they could point anywhere: only `wss` to a host below an allowed name, at the usual port,
//! with the path `/{call}/listen` or `/{call}/transport` of the call that they are given for. The host must be a name, so that
//! its addresses are resolved, and checked, by whoever dials.

use std::fmt;
use std::str::FromStr;

use super::vapi_webhook::{CallId, SecretUrl};

/// The longest name of a host (RFC 1035).
const MAX_HOST_BYTES: usize = 253;

/// A name below which all hosts are allowed, and itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSuffix(String);

/// Not the name of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed: the name of a host in lower case, such as \"vapi.ai\"")]
pub struct InvalidHost;

impl HostSuffix {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a host is this one or lies below it, label by label.
    pub fn allows(&self, host: &str) -> bool {
        host.strip_suffix(self.0.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    }
}

impl FromStr for HostSuffix {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        if is_host_name(text) { Ok(Self(text.to_owned())) } else { Err(InvalidHost) }
    }
}

/// Why a URL is not dialled. A closed set, used as a metric label; it says nothing of the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RefusedUrl {
    /// Another scheme than `wss`.
    #[error("scheme")]
    Scheme,
    /// A user or password, or a character that no URL of this kind has.
    #[error("form")]
    Form,
    /// A host that is no name in lower case, or not below an allowed one.
    #[error("host")]
    Host,
    /// A port.
    #[error("port")]
    Port,
    /// Another path, a query or a fragment.
    #[error("path")]
    Path,
    /// The path of another call.
    #[error("call")]
    OtherCall,
}

/// What may be dialled.
#[derive(Debug, Clone)]
pub struct ListenPolicy {
    /// Hosts that are allowed.
    pub hosts: Vec<HostSuffix>,
    /// Other ports than the usual one are allowed, for tests on one machine.
    pub any_port: bool,
}

/// A URL that may be dialled, once the addresses of its host were checked. `Debug` shows the host only.
#[derive(Clone, PartialEq, Eq)]
pub struct ListenUrl {
    host: String,
    url: SecretUrl,
}

impl ListenUrl {
    /// Checks the URL of a message about `call`.
    ///
    /// # Errors
    /// [`RefusedUrl`].
    pub fn check(url: &SecretUrl, call: &CallId, policy: &ListenPolicy) -> Result<Self, RefusedUrl> {
        let (checked, named) = Self::check_form(url, "listen", policy)?;
        if named == *call { Ok(checked) } else { Err(RefusedUrl::OtherCall) }
    }

    /// Checks the URL of a call's own line, which must be that of `call` where one is given; answers its call as well.
    ///
    /// # Errors
    /// [`RefusedUrl`].
    pub fn check_transport(
        url: &SecretUrl,
        call: Option<&str>,
        policy: &ListenPolicy,
    ) -> Result<(Self, CallId), RefusedUrl> {
        let (checked, named) = Self::check_form(url, "transport", policy)?;
        let is_named = call.is_none_or(|call| call.parse() == Ok(named.clone()));
        if is_named { Ok((checked, named)) } else { Err(RefusedUrl::OtherCall) }
    }

    /// Checks everything but which call it is.
    fn check_form(url: &SecretUrl, kind: &str, policy: &ListenPolicy) -> Result<(Self, CallId), RefusedUrl> {
        let text = url.expose();
        let rest = text.strip_prefix("wss://").ok_or(RefusedUrl::Scheme)?;
        if !rest.bytes().all(|b| b.is_ascii_graphic()) || rest.contains(['@', '\\', '%']) {
            return Err(RefusedUrl::Form);
        }
        let (authority, path) = rest.split_once('/').ok_or(RefusedUrl::Path)?;
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        };
        if !is_host_name(host) || !policy.hosts.iter().any(|allowed| allowed.allows(host)) {
            return Err(RefusedUrl::Host);
        }
        let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0) && !port.starts_with('+');
        if port.is_some_and(|port| port != "443" && !(policy.any_port && is_port(port))) {
            return Err(RefusedUrl::Port);
        }
        let (id, found) = path.split_once('/').ok_or(RefusedUrl::Path)?;
        let id = Some(id).filter(|_| found == kind).ok_or(RefusedUrl::Path)?;
        let id = id.parse::<CallId>().map_err(|_| RefusedUrl::Path)?;
        Ok((Self { host: host.to_owned(), url: url.clone() }, id))
    }

    /// Returns the name of the host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the whole URL, to be dialled.
    pub fn expose(&self) -> &str {
        self.url.expose()
    }
}

impl fmt::Debug for ListenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wss://{}/…", self.host)
    }
}

/// Labels of `a-z`, `0-9` and inner hyphens, the last of which is no number: no address in any of its spellings.
fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_name =
        text.rsplit('.').next().is_some_and(|label| label.starts_with(|c: char| c.is_ascii_lowercase()));
    text.len() <= MAX_HOST_BYTES && last_is_name && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CALL: &str = "01a024d9-bef8-7b44-9a10-6f2c8e51b7d0";

    fn check(url: &str) -> Result<ListenUrl, RefusedUrl> {
        let policy = ListenPolicy { hosts: vec!["vapi.ai".parse().unwrap()], any_port: false };
        ListenUrl::check(&SecretUrl::new(url), &CALL.parse().unwrap(), &policy)
    }

    #[test]
    fn the_urls_of_vapi_are_allowed() {
        for host in [
            "phone-call-websocket.aws-us-west-2-backend-production1.vapi.ai",
            "vapi.ai",
            "vapi.ai:443",
            "x.eu.vapi.ai",
        ] {
            let url = format!("wss://{host}/{CALL}/listen");
            let checked = check(&url).unwrap_or_else(|refused| panic!("{host}: {refused}"));
            assert_eq!(checked.expose(), url);
            assert!(!format!("{checked:?}").contains(CALL));
        }
        assert!(check(&format!("wss://vapi.ai/{}/listen", CALL.to_uppercase())).is_ok());
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        use RefusedUrl::{Form, Host, OtherCall, Path, Port, Scheme};
        let other = CALL.replace('d', "e");
        let id = CALL;
        for (url, why) in [
            (format!("ws://vapi.ai/{id}/listen"), Scheme),
            (format!("WSS://vapi.ai/{id}/listen"), Scheme),
            (format!("https://vapi.ai/{id}/listen"), Scheme),
            (String::new(), Scheme),
            (format!("wss://u:p@vapi.ai/{id}/listen"), Form),
            (format!("wss://evil.test\\@vapi.ai/{id}/listen"), Form),
            (format!("wss://vapi.ai/{id}/listen\r\nx: y"), Form),
            (format!("wss://vapi.ai%2eevil.test/{id}/listen"), Form),
            (format!("wss://evilvapi.ai/{id}/listen"), Host),
            (format!("wss://vapi.ai.evil.test/{id}/listen"), Host),
            (format!("wss://vapi.ai./{id}/listen"), Host),
            (format!("wss://.vapi.ai/{id}/listen"), Host),
            (format!("wss://127.0.0.1/{id}/listen"), Host),
            (format!("wss://2130706433/{id}/listen"), Host),
            (format!("wss://[::1]/{id}/listen"), Host),
            (format!("wss://0x7f.1/{id}/listen"), Host),
            (format!("wss://VAPI.AI/{id}/listen"), Host),
            (format!("wss:///{id}/listen"), Host),
            (format!("wss://vapi.ai:8443/{id}/listen"), Port),
            (format!("wss://vapi.ai:/{id}/listen"), Port),
            (format!("wss://vapi.ai:443:443/{id}/listen"), Port),
            (format!("wss://vapi.ai/{other}/listen"), OtherCall),
            (format!("wss://vapi.ai/{id}/transport"), Path),
            (format!("wss://vapi.ai/{id}/listen/"), Path),
            (format!("wss://vapi.ai/{id}/listen?x=1"), Path),
            (format!("wss://vapi.ai/{id}/listen#x"), Path),
            (format!("wss://vapi.ai//{id}/listen"), Path),
            (format!("wss://vapi.ai/x/../{id}/listen"), Path),
            ("wss://vapi.ai/listen".to_owned(), Path),
            ("wss://vapi.ai".to_owned(), Path),
        ] {
            assert_eq!(check(&url), Err(why), "{url}");
        }
        for bad in ["", "*.vapi.ai", ".vapi.ai", "Vapi.ai", "10.0.0.1", "a..b", "vapi.ai."] {
            assert_eq!(bad.parse::<HostSuffix>(), Err(InvalidHost), "{bad}");
        }
    }

    #[test]
    fn a_line_is_that_of_its_call() {
        let policy = ListenPolicy { hosts: vec!["vapi.ai".parse().unwrap()], any_port: false };
        let check = |url: &str, call: Option<&str>| {
            ListenUrl::check_transport(&SecretUrl::new(url), call, &policy)
                .map(|(_, call)| call.as_str().to_owned())
        };
        let url = format!("wss://api.vapi.ai/{CALL}/transport");
        let upper = CALL.to_uppercase();
        for call in [None, Some(CALL), Some(upper.as_str())] {
            assert_eq!(check(&url, call).as_deref(), Ok(CALL), "{call:?}");
        }
        for call in ["", "CA1", &CALL.replace('d', "e")] {
            assert_eq!(check(&url, Some(call)), Err(RefusedUrl::OtherCall), "{call}");
        }
        assert_eq!(check(&format!("wss://vapi.ai/{CALL}/listen"), None), Err(RefusedUrl::Path));
        assert_eq!(check(&format!("wss://evil.test/{CALL}/transport"), None), Err(RefusedUrl::Host));
    }

    #[test]
    fn other_ports_only_where_they_are_allowed() {
        let policy = ListenPolicy { hosts: vec!["localhost".parse().unwrap()], any_port: true };
        let check = |url: String| ListenUrl::check(&SecretUrl::new(&url), &CALL.parse().unwrap(), &policy);
        assert!(check(format!("wss://localhost:34567/{CALL}/listen")).is_ok());
        for port in ["0", "65536", "+443", "x"] {
            assert_eq!(
                check(format!("wss://localhost:{port}/{CALL}/listen")),
                Err(RefusedUrl::Port),
                "{port}"
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_is_allowed_has_the_one_form(url in "(wss://)?[a-z.:@/\\\\%0-9-]{0,40}(vapi\\.ai)?[:/a-z0-9.-]{0,20}") {
            for url in [url.clone(), format!("{url}/{CALL}/listen")] {
                if let Ok(checked) = check(&url) {
                    prop_assert!(checked.host() == "vapi.ai" || checked.host().ends_with(".vapi.ai"));
                    let (plain, port) = (format!("wss://{}/{CALL}/listen", checked.host()), format!("wss://{}:443/{CALL}/listen", checked.host()));
                    prop_assert!(url == plain || url == port);
                }
            }
        }
    }
}
