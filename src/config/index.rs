//! By what recordings can be looked for.
//!
//! The reason for each value stands beside the option in `config/callseal.toml`.

use toml::Table;

use crate::domain::index::{PartyKey, PartyKeys};

use super::raw;
use super::scope::Scope;

/// Names of parties; each is looked up in the metadata of every call.
const MAX_PARTY_KEYS: usize = 32;

/// By what recordings can be looked for.
#[derive(Debug, Clone, Default)]
pub struct Index {
    /// The names under which the metadata of calls holds parties.
    pub party_keys: PartyKeys,
}

impl Index {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::Index) = top.section("index", table);
        let Some(given) = raw.party_keys else { return Self::default() };
        if given.len() > MAX_PARTY_KEYS {
            let problem = format!("{} names are given; allowed: at most {MAX_PARTY_KEYS}", given.len());
            scope.fault("party_keys", problem);
        }
        let parse = |(index, name): (usize, &String)| scope.parse(&format!("party_keys[{index}]"), name);
        let keys = given.iter().enumerate().filter_map(parse);
        Self { party_keys: keys.collect::<Vec<PartyKey>>().into_iter().collect() }
    }
}
