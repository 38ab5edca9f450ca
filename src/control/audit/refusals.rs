//! Bounds what refused strangers can write into a tenant's log.
//!
//! Anybody can ask for a recording without a grant that holds, and each such refusal would be an object in the bucket. The
//! first ones of a minute are recorded one by one; the others are counted, by what they were refused for and from where,
//! and told in a few records when the minute is over. Nothing that had an effect ever goes through here.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use super::record::AuditEvent;
use crate::domain::ids::TenantId;

/// Addresses told apart in one minute; the refusals of all others are told in one record.
const MAX_SOURCES: usize = 16;
/// Codes told apart for one address. They come from a closed set, which is smaller.
const MAX_CODES: usize = 16;

/// The refusals of the running minute, by tenant. Only configured tenants come here, so their number is bounded.
pub(super) struct Refusals {
    per_minute: u32,
    tenants: Mutex<HashMap<TenantId, Minute>>,
}

#[derive(Default)]
struct Minute {
    recorded: u32,
    sources: HashMap<Option<String>, Counted>,
}

struct Counted {
    /// The first one, to fill a record with.
    first: AuditEvent,
    codes: BTreeMap<String, u64>,
}

impl Refusals {
    pub(super) fn new(per_minute: u32) -> Self {
        Self { per_minute, tenants: Mutex::default() }
    }

    /// Takes a refusal; returns it if it is to be recorded by itself.
    pub(super) fn take(&self, tenant: &TenantId, event: AuditEvent) -> Option<AuditEvent> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let minute = match tenants.get_mut(tenant) {
            Some(minute) => minute,
            None => tenants.entry(tenant.clone()).or_default(),
        };
        if minute.recorded < self.per_minute {
            minute.recorded += 1;
            return Some(event);
        }
        minute.count(event);
        None
    }

    /// Ends the minute; returns what was only counted.
    pub(super) fn end_minute(&self) -> Vec<(TenantId, AuditEvent)> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = std::mem::take(&mut *tenants);
        let told = |(tenant, minute): (TenantId, Minute)| {
            minute.sources.into_iter().map(move |(source, counted)| (tenant.clone(), tell(source, counted)))
        };
        ended.into_iter().flat_map(told).collect()
    }
}

impl Minute {
    fn count(&mut self, event: AuditEvent) {
        let is_known = self.sources.contains_key(&event.source);
        let source = event.source.clone().filter(|_| is_known || self.sources.len() < MAX_SOURCES);
        let code = event.result.clone();
        let counted =
            self.sources.entry(source).or_insert_with(|| Counted { first: event, codes: BTreeMap::new() });
        let code = if counted.codes.len() < MAX_CODES { code } else { "other".to_owned() };
        *counted.codes.entry(code).or_default() += 1;
    }
}

fn tell(source: Option<String>, counted: Counted) -> AuditEvent {
    let total: u64 = counted.codes.values().sum();
    let codes: Vec<_> = counted.codes.iter().map(|(code, count)| format!("{code}={count}")).collect();
    AuditEvent {
        actor: "unknown".to_owned(),
        source,
        subject: String::new(),
        reason: None,
        result: "more-refusals".to_owned(),
        request: String::new(),
        detail: Some(format!("{total} more refusals within a minute: {}", codes.join(" "))),
        key: None,
        ..counted.first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(source: &str, code: &str) -> AuditEvent {
        AuditEvent {
            role: "player".to_owned(),
            source: Some(source.to_owned()),
            result: code.to_owned(),
            request: "r1".to_owned(),
            ..AuditEvent::by_operator("unknown", "play", "a recording".to_owned())
        }
    }

    #[test]
    fn what_is_beyond_the_bound_is_counted_and_nothing_is_lost() {
        let refusals = Refusals::new(10);
        let (tenant, other): (TenantId, TenantId) = ("acme".parse().unwrap(), "other".parse().unwrap());
        let mut alone = 0;
        for number in 0..1000_u64 {
            let event = refused(
                &format!("192.0.2.{}", number % 50),
                ["grant_malformed", "expired"][usize::from(number % 4 == 0)],
            );
            alone += u64::from(refusals.take(&tenant, event).is_some());
        }
        assert!(
            refusals.take(&other, refused("192.0.2.1", "expired")).is_some(),
            "each tenant has its own bound"
        );
        assert_eq!(alone, 10);
        let told = refusals.end_minute();
        assert_eq!(told.len(), MAX_SOURCES + 1);
        let total: u64 = told
            .iter()
            .map(|(_, event)| {
                event.detail.as_ref().unwrap().split(' ').next().unwrap().parse::<u64>().unwrap()
            })
            .sum();
        assert_eq!(alone + total, 1000);
        let rest = told.iter().find(|(_, event)| event.source.is_none()).unwrap();
        assert_eq!(
            (rest.0.as_str(), rest.1.result.as_str(), rest.1.action.as_str()),
            ("acme", "more-refusals", "play")
        );
        assert!(refusals.end_minute().is_empty());
        assert!(refusals.take(&tenant, refused("192.0.2.1", "expired")).is_some(), "a new minute");
    }
}
