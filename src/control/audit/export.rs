//! Hands a part of the log to somebody else, as JSON lines or CSV, with what proves that nothing of it is missing.
//!
//! A JSON line is a record as it was sealed, byte for byte, so its hash can be computed again; the last line is the proof:
//! where each chain was taken up and left. It is written only when every chain in between was whole, so an export
//! without it is not complete.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::error::{AuditError, Finding};
use super::links::Links;
use super::read::{AuditReader, Span};
use super::record::{AuditRecord, Mark};
use crate::clock;
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::sign::encode_hex;

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// One JSON object a line, the proof last.
    JsonLines,
    /// A table for people, RFC 4180, every value in quotes. The proof is not in it.
    Csv,
}

/// What proves that an export is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Version of this proof: 1.
    pub v: u8,
    /// Whose records.
    pub tenant: String,
    /// Records from this moment on; none for all.
    pub from: Option<String>,
    /// Records from before this moment; none for all.
    pub until: Option<String>,
    /// How many.
    pub records: u64,
    /// The SHA-256 of everything that was written before the proof.
    pub sha256: String,
    /// Of which chains, in the order of their ids.
    pub chains: Vec<ChainProof>,
}

/// The part of one chain that an export has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainProof {
    /// The chain.
    pub chain: String,
    /// The node that writes it.
    pub node: String,
    /// The number of the first record of it.
    pub first: u64,
    /// The hash of the record before that: its `prev`.
    pub prev: String,
    /// The number of the last record of it.
    pub last: u64,
    /// The hash of that record. It is the `prev` of the next one, and in the verification of the whole log.
    pub head: String,
}

/// The columns of a CSV, in their order.
const COLUMNS: [&str; 17] = [
    "time", "chain", "number", "node", "actor", "role", "source", "action", "subject", "reason", "result",
    "request", "key", "detail", "mark", "prev", "hash",
];

/// Where an export goes, and what it was so far.
struct Written<'w, W> {
    out: &'w mut W,
    digest: Sha256,
    records: u64,
}

impl<W: AsyncWrite + Unpin> Written<'_, W> {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), AuditError> {
        self.digest.update(bytes);
        self.out.write_all(bytes).await.map_err(AuditError::Output)
    }
}

impl AuditReader<'_> {
    /// Writes all records of a span, oldest first, and returns the proof. Uses little memory, however long the log.
    ///
    /// # Errors
    /// [`AuditError::Broken`] as soon as something is missing or does not open: what was written is not whole then.
    /// [`AuditError::Output`] when `out` fails.
    pub async fn export<W: AsyncWrite + Unpin>(
        &self,
        tenant: &TenantId,
        span: Span,
        format: ExportFormat,
        out: &mut W,
    ) -> Result<Proof, AuditError> {
        let mut written = Written { out, digest: Sha256::new(), records: 0 };
        if format == ExportFormat::Csv {
            written.write(row(&COLUMNS.map(str::to_owned)).as_bytes()).await?;
        }
        let (mut links, mut text) = (Links::default(), Vec::new());
        let mut objects = std::pin::pin!(self.objects(tenant, span, None));
        while let Some(opened) = objects.try_next().await? {
            let (place, sealed) = opened.read?;
            let mut is_sound = true;
            links
                .follow(place, &sealed, |line, head, _| {
                    written.records += 1;
                    match format {
                        ExportFormat::JsonLines => text.extend_from_slice(line),
                        ExportFormat::Csv => match serde_json::from_slice(line) {
                            Ok(record) => {
                                text.extend_from_slice(csv_row(place.chain, head, record).as_bytes());
                            }
                            Err(_) => is_sound = false,
                        },
                    }
                    if format == ExportFormat::JsonLines {
                        text.push(b'\n');
                    }
                })
                .map_err(|fault| fault.finding)?;
            if !is_sound {
                return Err(Finding::Foreign { object: opened.name.to_string() }.into());
            }
            written.write(&text).await?;
            text.clear();
        }
        let proof = proof(tenant, span, links, (written.records, written.digest.clone()));
        if format == ExportFormat::JsonLines {
            let line = serde_json::to_string(&LastLine { proof: proof.clone() })
                .map_err(|error| AuditError::Output(error.into()))?;
            written.write(format!("{line}\n").as_bytes()).await?;
        }
        written.out.flush().await.map_err(AuditError::Output)?;
        Ok(proof)
    }
}

/// The last line of an export in JSON lines.
#[derive(Serialize, Deserialize)]
struct LastLine {
    proof: Proof,
}

fn proof(tenant: &TenantId, span: Span, links: Links, (records, digest): (u64, Sha256)) -> Proof {
    let mut chains: Vec<ChainProof> = links
        .chains
        .into_iter()
        .map(|(chain, followed)| ChainProof {
            chain: chain.to_string(),
            node: followed.node,
            first: followed.first,
            prev: followed.first_prev,
            last: followed.number.saturating_sub(1),
            head: followed.head,
        })
        .collect();
    chains.sort_by(|one, other| one.chain.cmp(&other.chain));
    Proof {
        v: 1,
        tenant: tenant.to_string(),
        from: span.from.map(clock::rfc3339),
        until: span.until.map(clock::rfc3339),
        records,
        sha256: encode_hex(&digest.finalize()),
        chains,
    }
}

fn csv_row(chain: RecordingId, head: &str, record: AuditRecord) -> String {
    let mark = record.mark.as_ref().map(|mark| match mark {
        Mark::Checkpoint { next_by, chains } => format!("next by {next_by}; {} chains seen", chains.len()),
        Mark::End { chains } => format!("{} chains seen", chains.len()),
        Mark::Purge { kept_since } => format!("kept since {kept_since}"),
    });
    let event = record.event;
    let none = Option::unwrap_or_default;
    row(&[
        record.time,
        chain.to_string(),
        record.number.to_string(),
        record.node,
        event.actor,
        event.role,
        none(event.source),
        event.action,
        event.subject,
        none(event.reason),
        event.result,
        event.request,
        none(event.key),
        none(event.detail),
        none(mark),
        record.prev,
        head.to_owned(),
    ])
}

/// Writes one row. No value can end its cell or its row, or be taken for a formula: a spreadsheet computes what begins
/// with one of `= + - @`, so such a value gets an apostrophe before it, and what is no printable character is escaped.
fn row(values: &[String; 17]) -> String {
    let mut text = String::new();
    for (index, value) in values.iter().enumerate() {
        text.push_str(if index == 0 { "\"" } else { ",\"" });
        if value.trim_start().starts_with(['=', '+', '-', '@', '\'', '|', '%', '＝', '＋', '－', '＠'])
            || value.starts_with(char::is_control)
        {
            text.push('\'');
        }
        for c in value.chars() {
            match c {
                '"' => text.push_str("\"\""),
                c if c.is_control() || is_invisible(c) => text.extend(c.escape_unicode()),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text.push_str("\r\n");
    text
}

/// Line ends of Unicode, and what turns the direction of text.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Why an export does not prove what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadExport {
    /// It has no proof as its last line: it is not whole.
    #[error("there is no proof in its last line: the export is not whole")]
    NoProof,
    /// A line is no record.
    #[error("line {0} is not an audit record")]
    NotARecord(u64),
    /// A record that follows none of the others.
    #[error("line {0} does not follow any record before it, nor the beginning of a chain")]
    Unlinked(u64),
    /// The records do not end where the proof says.
    #[error("the records do not end where the proof says")]
    OtherEnd,
    /// The bytes are others than those that the proof was made for.
    #[error("the digest is not that of the proof")]
    OtherBytes,
}

/// Checks an export in JSON lines line by line, with no key and no store: that its records are linked as its proof says.
/// Whether the log has these records is told by the heads: hold them against those of a verification.
#[derive(Default)]
pub struct ExportCheck {
    digest: Sha256,
    lines: u64,
    /// For the hash that the next record of a chain must have as `prev`: how many chains wait there, and the number.
    ends: HashMap<String, u64>,
    /// Records whose `prev` nobody has shown: beginnings of chains.
    begins: HashMap<(String, u64), u64>,
    proof: Option<Proof>,
}

#[derive(Deserialize)]
struct Linked {
    number: u64,
    prev: String,
}

impl ExportCheck {
    /// Takes the next line, without its end.
    ///
    /// # Errors
    /// [`BadExport`].
    pub fn line(&mut self, line: &[u8]) -> Result<(), BadExport> {
        self.lines += 1;
        if self.proof.is_some() {
            return Err(BadExport::NotARecord(self.lines));
        }
        if let Ok(LastLine { proof }) = serde_json::from_slice(line) {
            self.proof = Some(proof);
            return Ok(());
        }
        let Linked { number, prev } =
            serde_json::from_slice(line).map_err(|_| BadExport::NotARecord(self.lines))?;
        self.digest.update(line);
        self.digest.update(b"\n");
        match self.ends.remove(&prev) {
            Some(expected) if expected == number => {}
            Some(_) => return Err(BadExport::Unlinked(self.lines)),
            None => *self.begins.entry((prev, number)).or_default() += 1,
        }
        self.ends.insert(encode_hex(&Sha256::digest(line)), number + 1);
        Ok(())
    }

    /// Ends the check; returns the proof that holds.
    ///
    /// # Errors
    /// [`BadExport`].
    pub fn finish(mut self) -> Result<Proof, BadExport> {
        let proof = self.proof.ok_or(BadExport::NoProof)?;
        for chain in &proof.chains {
            let begin = self.begins.get_mut(&(chain.prev.clone(), chain.first)).filter(|count| **count > 0);
            *begin.ok_or(BadExport::OtherEnd)? -= 1;
            if self.ends.remove(&chain.head) != Some(chain.last + 1) {
                return Err(BadExport::OtherEnd);
            }
        }
        if !self.ends.is_empty() || self.begins.values().any(|count| *count > 0) {
            return Err(BadExport::OtherEnd);
        }
        if proof.sha256 != encode_hex(&self.digest.finalize()) || proof.records != self.lines - 1 {
            return Err(BadExport::OtherBytes);
        }
        Ok(proof)
    }
}
