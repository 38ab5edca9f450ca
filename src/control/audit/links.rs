//! Holds chains together: whether each object and each record follows the one before it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::Deserialize;

use super::error::{Finding, Id};
use super::place::Place;
use super::read::lines;
use super::record::Mark;
use crate::clock;
use crate::domain::cmr::sha256;
use crate::domain::ids::RecordingId;
use crate::domain::sign::encode_hex;
use crate::domain::time::UnixMillis;

/// What of a record binds it into its chain.
#[derive(Debug, Deserialize)]
pub(super) struct Link {
    number: u64,
    prev: String,
    #[serde(default)]
    after: Option<String>,
    pub(super) node: String,
    #[serde(default)]
    pub(super) mark: Option<Mark>,
}

/// How far a chain was followed.
#[derive(Debug, Clone)]
pub(super) struct Followed {
    /// The number of the first record that was seen, and what it says of the one before it.
    pub(super) first: u64,
    pub(super) first_prev: String,
    pub(super) first_after: Option<UnixMillis>,
    /// Objects, and so the number of the next one; records, and the hash of the last one.
    pub(super) objects: u32,
    pub(super) number: u64,
    pub(super) head: String,
    pub(super) last: UnixMillis,
    pub(super) node: String,
}

/// A finding, and the time of the newest of the records that it is about, if that can be told.
pub(super) struct Fault {
    pub(super) finding: Finding,
    pub(super) of: Option<UnixMillis>,
}

impl From<Finding> for Fault {
    fn from(finding: Finding) -> Self {
        Self { finding, of: None }
    }
}

/// All chains that were seen.
#[derive(Default)]
pub(super) struct Links {
    pub(super) chains: HashMap<RecordingId, Followed>,
}

impl Links {
    /// Follows a chain over one object, and shows each of its lines. After a finding the chain goes on with what is there.
    pub(super) fn follow(
        &mut self,
        place: Place,
        text: &[u8],
        mut show: impl FnMut(&[u8], &str, &Link),
    ) -> Result<(), Fault> {
        let chain = Id(place.chain);
        let mut fault: Option<Fault> = None;
        let mut followed = match self.chains.entry(place.chain) {
            Entry::Vacant(_) => None,
            Entry::Occupied(known) => {
                let known = known.get();
                if place.seq < known.objects || place.at < known.last {
                    return Err(Finding::Repeated { chain, seq: place.seq }.into());
                }
                if place.seq > known.objects {
                    fault = Some(Finding::Missing { chain, from: known.objects, seq: place.seq }.into());
                }
                Some(known.clone())
            }
        };
        for line in lines(text) {
            let number = followed.as_ref().map_or(0, |followed| followed.number);
            let Ok(link) = serde_json::from_slice::<Link>(line) else {
                return Err(Finding::Unlinked { chain, number }.into());
            };
            let is_linked = match &followed {
                Some(followed) => link.number == followed.number && link.prev == followed.head,
                None if place.seq == 0 => link.number == 0 && link.prev.bytes().all(|b| b == b'0'),
                None => true,
            };
            let after = link.after.as_deref().and_then(clock::parse_rfc3339);
            match &mut fault {
                None if !is_linked => fault = Some(Finding::Unlinked { chain, number }.into()),
                // What is missing before this record is as old as it says.
                Some(fault) if fault.of.is_none() => fault.of = after,
                None | Some(_) => {}
            }
            let head = encode_hex(&sha256(line));
            let state = followed.get_or_insert_with(|| Followed {
                first: link.number,
                first_prev: link.prev.clone(),
                first_after: after,
                objects: place.seq,
                number: link.number,
                head: String::new(),
                last: place.at,
                node: link.node.clone(),
            });
            show(line, &head, &link);
            (state.number, state.head, state.last) = (link.number + 1, head, place.at);
        }
        if let Some(mut state) = followed {
            state.objects = place.seq + 1;
            self.chains.insert(place.chain, state);
        }
        fault.map_or(Ok(()), Err)
    }
}
