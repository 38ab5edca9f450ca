//! How an agent knows that a call comes from this callseal: Twilio's own signature is over our URL and says nothing there.

use super::sign::{encode_hex, hmac_sha256};

/// The tenant's id.
pub const TENANT_HEADER: &str = "x-callseal-tenant";
/// The route's name.
pub const ROUTE_HEADER: &str = "x-callseal-route";
/// A random id of this stream: 32 hexadecimal digits.
pub const STREAM_HEADER: &str = "x-callseal-stream";
/// Unix seconds.
pub const TIMESTAMP_HEADER: &str = "x-callseal-timestamp";
/// The signatures, see [`Proof::signatures`].
pub const PROOF_HEADER: &str = "x-callseal-signature";

/// What is signed.
#[derive(Debug, Clone, Copy)]
pub struct Proof<'a> {
    /// Unix seconds of the handshake. An agent should not believe one that is minutes old.
    pub timestamp: u64,
    /// The tenant's id.
    pub tenant: &'a str,
    /// The route's name.
    pub route: &'a str,
    /// The stream's random id. An agent should take each once.
    pub stream: &'a str,
    /// Path and query of the agent's URL, as dialled.
    pub target: &'a str,
}

impl Proof<'_> {
    /// Signs with every secret: `v1=<hex>`, several separated by commas, so that secrets can be changed one after the other.
    ///
    /// `hex` is HMAC-SHA-256 of the lines `callseal-relay-v1`, timestamp, tenant, route, stream and target, joined by
    /// newlines without one at the end. Empty without secrets.
    pub fn signatures(&self, secrets: &[&[u8]]) -> String {
        let signed = format!(
            "callseal-relay-v1\n{}\n{}\n{}\n{}\n{}",
            self.timestamp, self.tenant, self.route, self.stream, self.target
        );
        let sign = |secret: &&[u8]| format!("v1={}", encode_hex(&hmac_sha256(secret, [signed.as_bytes()])));
        secrets.iter().map(sign).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_secret_signs_every_field() {
        let proof = Proof {
            timestamp: 1_790_000_000,
            tenant: "acme-dental",
            route: "reception",
            stream: "000102030405060708090a0b0c0d0e0f",
            target: "/twilio?x=1",
        };
        // printf 'callseal-relay-v1\n1790000000\nacme-dental\nreception\n000102030405060708090a0b0c0d0e0f\n/twilio?x=1' |
        // openssl dgst -sha256 -hmac secret-1
        let known = "v1=003aa81191ebe0e4fc40cfd14ff328ea0e159d53e499bd52a4cb56de31d00da6";
        assert_eq!(proof.signatures(&[b"secret-1"]), known);
        let two = proof.signatures(&[b"secret-1", b"secret-2"]);
        assert!(two.starts_with(&format!("{known},v1=")), "{two}");
        assert_eq!(proof.signatures(&[]), "");
        let others = [
            Proof { timestamp: 1_790_000_001, ..proof },
            Proof { tenant: "acme", ..proof },
            Proof { route: "default", ..proof },
            Proof { stream: "00", ..proof },
            Proof { target: "/twilio", ..proof },
        ];
        assert!(others.iter().all(|other| other.signatures(&[b"secret-1"]) != known));
    }
}
