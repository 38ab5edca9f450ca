//! What one audit record says.

use serde::{Deserialize, Serialize};

/// What happened. Texts are bounded by whoever makes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// Who: a grant's subject, an operator, a node.
    pub actor: String,
    /// In which role: `player`, `operator`, `node`.
    pub role: String,
    /// From which address, if there is one.
    pub source: Option<String>,
    /// What: `play`, `record`, `mint-grant`, …
    pub action: String,
    /// To what: a recording, mostly.
    pub subject: String,
    /// Why, in the actor's words.
    pub reason: Option<String>,
    /// `allowed`, or the code of the refusal.
    pub result: String,
    /// The request's id; empty when no request was behind it.
    pub request: String,
    /// What else belongs to it, such as the recording root.
    pub detail: Option<String>,
    /// By which key it could be done: the `kid` of a grant or ticket, the id of a token. Never the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl AuditEvent {
    /// What a person or program orders that may; `allowed` unless said otherwise.
    pub fn by_operator(actor: &str, action: &str, subject: String) -> Self {
        Self::new(actor, "operator", action, subject)
    }

    /// What a node does of its own; `actor` is its name, or that of its part.
    pub fn by_node(actor: &str, action: &str, subject: String) -> Self {
        Self::new(actor, "node", action, subject)
    }

    fn new(actor: &str, role: &str, action: &str, subject: String) -> Self {
        Self {
            actor: actor.to_owned(),
            role: role.to_owned(),
            source: None,
            action: action.to_owned(),
            subject,
            reason: None,
            result: "allowed".to_owned(),
            request: String::new(),
            detail: None,
            key: None,
        }
    }
}

/// One link of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Version of this record: 1.
    pub v: u8,
    /// Its number in its chain, from 0.
    pub number: u64,
    /// SHA-256 of the record before it as stored, hexadecimal; zeros for the first.
    pub prev: String,
    /// The time of the record before it; none for the first. Tells what of a chain was kept when its beginning was
    /// removed with age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// RFC 3339, UTC. Never goes back within a chain.
    pub time: String,
    /// The node that wrote it.
    pub node: String,
    /// What happened.
    #[serde(flatten)]
    pub event: AuditEvent,
    /// What it says about the log itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
}

impl AuditRecord {
    /// Whether it only says how far its chain has come: a checkpoint or an end.
    pub fn is_about_its_chain(&self) -> bool {
        matches!(self.mark, Some(Mark::Checkpoint { .. } | Mark::End { .. }))
    }
}

/// What a record says about the log itself; such records are written by nodes on their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Mark {
    /// The chain was this long at this time, and goes on.
    Checkpoint {
        /// The chain's next record is written by then, RFC 3339. After that the chain counts as silent.
        next_by: String,
        /// The ends of other chains of the tenant that were seen since the last look.
        chains: Vec<ChainEnd>,
    },
    /// The chain ends here.
    End {
        /// As with a checkpoint.
        chains: Vec<ChainEnd>,
    },
    /// Records from before this UTC date, `2026-11-23`, are removed because of their age.
    Purge {
        /// From this date on all records are kept.
        kept_since: String,
    },
}

impl Mark {
    /// The word for what it does, which is its record's action.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Checkpoint { .. } => "checkpoint",
            Self::End { .. } => "end",
            Self::Purge { .. } => "purge-audit",
        }
    }
}

/// How far a chain had come when another one looked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainEnd {
    /// The chain's id.
    pub chain: String,
    /// How many objects it had.
    pub objects: u32,
    /// The time of the last of them, RFC 3339.
    pub at: String,
}
