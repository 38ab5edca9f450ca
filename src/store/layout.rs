//! Where everything lies in the store. No name, tag or header ever holds personal data.
//!
//! ```text
//! r/<tenant tag>/<recording>/s/<writer>-<seq>.cmr     segments, put as they are cut
//! r/<tenant tag>/<recording>/m-<revision>.cmr         manifest
//! r/<tenant tag>/<recording>/final.cmr                segments, manifest and tail in one (revision 0)
//! r/<tenant tag>/<recording>/final-<revision>.cmr     the same after a later revision; the highest counts
//! k/<tenant tag>/<recording>/<revision>.json          envelope; the highest revision counts
//! e/<yyyy-mm-dd>/<tenant tag>/<recording>             expiry index
//! x/<tenant tag>/<kind>/<blind id>/<recording>        blind index: recordings of a call or party
//! x/<tenant tag>/of/<recording>/<kind>-<blind id>     blind index: the entries of a recording
//! h/<tenant tag>/<recording>/<revision>.json          retention order: hold, release, earlier expiry; the highest counts
//! d/<tenant tag>/<recording>.json                     deletion receipt
//! d/<tenant tag>/ledger/<number>.json                 deletion ledger, numbered from 0
//! n/<yyyy-mm-dd>/<tenant tag>/<ticket>                used tickets, by the date on which they expire
//! n/<yyyy-mm-dd>/<tenant tag>/vapi-<blind id>         calls of Vapi that a node hears, by the date of their beginning
//! i/<tenant tag>/<recording>/<Unix ms>-<order>        orders about live recordings, for the node that has the call
//! o/<tenant tag>/waiting/<notice>/<attempt>           notices that are to be delivered: 0000, and its attempts from 0001
//! o/<tenant tag>/sent/<notice>                        notices that were delivered, for a week
//! o/<tenant tag>/dead/<notice>                        notices that could not be delivered, for a month
//! q/<tenant tag>/r/<request>/<revision>               requests of people about what is kept of them; the highest counts
//! q/<tenant tag>/open/<Unix ms>-<request>             open requests, in the order of their dates
//! q/<tenant tag>/restricted/<blind id>/<request>      parties whose recordings nobody may use
//! t/<tenant tag>/<revision>                           a tenant's settings, sealed; the highest revision counts
//! y/<tenant tag>/<blind id>/<revision>-run            requests to the admin API that may come again, for a day
//! y/<tenant tag>/<blind id>/<revision>-done           their answers
//! a/<tenant tag>/<yyyy>/<mm>/<dd>/<time>-<chain>-<seq>.car   audit records; listed, they are in the order of time
//! ```

use crate::domain::ids::{BlindId, NoticeId, RecordingId, RequestId, TenantTag, WriterId};
use crate::domain::index::{IndexEntry, IndexKind};
use crate::domain::time::UnixMillis;

use super::ObjectName;

/// The prefix of all objects of a tenant's recordings.
pub fn recordings_prefix(tenant: TenantTag) -> String {
    format!("r/{tenant}/")
}

/// The prefix of all objects of a recording but its envelope and expiry entry.
pub fn recording_prefix(tenant: TenantTag, recording: RecordingId) -> String {
    format!("r/{tenant}/{recording}/")
}

/// The prefix of a recording's segments.
pub fn segments_prefix(tenant: TenantTag, recording: RecordingId) -> String {
    format!("r/{tenant}/{recording}/s/")
}

/// The prefix of a recording's manifests.
pub fn manifests_prefix(tenant: TenantTag, recording: RecordingId) -> String {
    format!("r/{tenant}/{recording}/m-")
}

/// One segment.
pub fn segment(tenant: TenantTag, recording: RecordingId, writer: WriterId, seq: u32) -> ObjectName {
    name(format!("r/{tenant}/{recording}/s/{writer}-{seq:08}.cmr"))
}

/// One revision of the manifest.
pub fn manifest(tenant: TenantTag, recording: RecordingId, revision: u32) -> ObjectName {
    name(format!("r/{tenant}/{recording}/m-{revision:04}.cmr"))
}

/// The final object.
pub fn final_object(tenant: TenantTag, recording: RecordingId) -> ObjectName {
    name(format!("r/{tenant}/{recording}/final.cmr"))
}

/// The prefix of all final objects of a recording.
pub fn finals_prefix(tenant: TenantTag, recording: RecordingId) -> String {
    format!("r/{tenant}/{recording}/final")
}

/// The final object that holds a later revision of the manifest than the first.
pub fn final_revision(tenant: TenantTag, recording: RecordingId, revision: u32) -> ObjectName {
    match revision {
        0 => final_object(tenant, recording),
        _ => name(format!("r/{tenant}/{recording}/final-{revision:04}.cmr")),
    }
}

/// The prefix of all retention orders of a recording.
pub fn orders_prefix(tenant: TenantTag, recording: RecordingId) -> String {
    format!("h/{tenant}/{recording}/")
}

/// One revision of a recording's retention order.
pub fn order(tenant: TenantTag, recording: RecordingId, revision: u32) -> ObjectName {
    name(format!("h/{tenant}/{recording}/{revision:04}.json"))
}

/// Reads the revision out of the name of a retention order.
pub fn order_revision(name: &ObjectName) -> Option<u32> {
    name.as_str().rsplit_once('/')?.1.strip_suffix(".json")?.parse().ok()
}

/// The receipt of a recording's deletion.
pub fn receipt(tenant: TenantTag, recording: RecordingId) -> ObjectName {
    name(format!("d/{tenant}/{recording}.json"))
}

/// The prefix of the receipts of a tenant, and of its ledger.
pub fn receipts_prefix(tenant: TenantTag) -> String {
    format!("d/{tenant}/")
}

/// Reads the recording out of the name of a receipt.
pub fn receipt_recording(name: &ObjectName) -> Option<RecordingId> {
    name.as_str().splitn(3, '/').nth(2)?.strip_suffix(".json")?.parse().ok()
}

/// The prefix of a tenant's deletion ledger.
pub fn ledger_prefix(tenant: TenantTag) -> String {
    format!("d/{tenant}/ledger/")
}

/// One entry of a tenant's deletion ledger. Names are in the order of their numbers.
pub fn ledger(tenant: TenantTag, number: u64) -> ObjectName {
    name(format!("{}{number:012}.json", ledger_prefix(tenant)))
}

/// Reads the number out of the name of an entry of the ledger.
pub fn ledger_number(name: &ObjectName) -> Option<u64> {
    let digits = name.as_str().rsplit_once('/')?.1.strip_suffix(".json")?;
    let is_number = digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

/// The entry of a recording in the expiry index; `date` is `yyyy-mm-dd`.
pub fn expiry(date: &str, tenant: TenantTag, recording: RecordingId) -> ObjectName {
    name(format!("e/{date}/{tenant}/{recording}"))
}

/// The prefix of the expiry index; its entries are in the order of their dates.
pub const EXPIRY_PREFIX: &str = "e/";

/// The prefix of used tickets; they are in the order of the dates on which they expire.
pub const TICKETS_PREFIX: &str = "n/";

/// A used ticket; `date` is `yyyy-mm-dd`. `None` for an id that is not of a ticket.
pub fn used_ticket(date: &str, tenant: TenantTag, id: &str) -> Option<ObjectName> {
    let is_id = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then(|| name(format!("{TICKETS_PREFIX}{date}/{tenant}/{id}")))
}

/// Says that a node hears a call of Vapi; `call` is blind. Beside the tickets.
pub fn heard_call(date: &str, tenant: TenantTag, call: &[u8; 16]) -> ObjectName {
    let call = call.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    name(format!("{TICKETS_PREFIX}{date}/{tenant}/vapi-{call}"))
}

/// The prefix of orders about live recordings.
pub const LIVE_ORDERS_PREFIX: &str = "i/";

/// An order about a live recording. `at_ms` orders the orders; more than one of a millisecond are one.
pub fn live_order(tenant: TenantTag, recording: RecordingId, at_ms: u64, order: &str) -> ObjectName {
    name(format!("{LIVE_ORDERS_PREFIX}{tenant}/{recording}/{at_ms:013}-{order}"))
}

/// Reads tenant, recording and time out of the name of an order about a live recording.
pub fn live_order_of(name: &ObjectName) -> Option<(TenantTag, RecordingId, u64)> {
    let mut parts = name.as_str().strip_prefix(LIVE_ORDERS_PREFIX)?.split('/');
    let (tenant, recording, file) = (parts.next()?, parts.next()?, parts.next()?);
    let at_ms = file.split_once('-')?.0.parse().ok().filter(|_| parts.next().is_none())?;
    Some((tenant.parse().ok()?, recording.parse().ok()?, at_ms))
}

/// Reads date, tenant and recording out of the name of an entry of the expiry index.
pub fn expiry_of(name: &ObjectName) -> Option<(&str, TenantTag, RecordingId)> {
    let mut parts = name.as_str().strip_prefix(EXPIRY_PREFIX)?.split('/');
    let (date, tenant, recording) = (parts.next()?, parts.next()?, parts.next()?);
    match parts.next() {
        None => Some((date, tenant.parse().ok()?, recording.parse().ok()?)),
        Some(_) => None,
    }
}

/// The prefix of everything in a tenant's blind index.
pub fn index_prefix(tenant: TenantTag) -> String {
    format!("x/{tenant}/")
}

/// The prefix of a term's entries in the blind index; they are in the order of their recordings.
pub fn index_term_prefix(tenant: TenantTag, entry: IndexEntry) -> String {
    format!("x/{tenant}/{}/{}/", entry.kind.name(), entry.blind)
}

/// The entry of a recording under a term of the blind index.
pub fn index_entry(tenant: TenantTag, entry: IndexEntry, recording: RecordingId) -> ObjectName {
    name(format!("{}{recording}", index_term_prefix(tenant, entry)))
}

/// Reads the recording out of the name of an entry under a term, or of what asks for one.
pub fn index_recording(name: &ObjectName) -> Option<RecordingId> {
    name.as_str().rsplit_once('/')?.1.parse().ok()
}

/// The prefix of what leads from a recording to its entries in the blind index.
pub fn index_of_prefix(tenant: TenantTag, recording: RecordingId) -> String {
    format!("x/{tenant}/of/{recording}/")
}

/// What leads from a recording to one of its entries in the blind index, so that no key is needed to remove them.
pub fn index_of(tenant: TenantTag, recording: RecordingId, entry: IndexEntry) -> ObjectName {
    let prefix = index_of_prefix(tenant, recording);
    name(format!("{prefix}{}-{}", entry.kind.name(), entry.blind))
}

/// The prefix of what asks for the entries of recordings.
pub fn index_wanted_prefix(tenant: TenantTag) -> String {
    format!("x/{tenant}/wanted/")
}

/// Asks whoever opens recordings to put the entries of this one: its node has not the key for them.
pub fn index_wanted(tenant: TenantTag, recording: RecordingId) -> ObjectName {
    name(format!("{}{recording}", index_wanted_prefix(tenant)))
}

/// Reads the entry out of the name of what leads to it.
pub fn index_entry_of(name: &ObjectName) -> Option<IndexEntry> {
    let (kind, blind) = name.as_str().rsplit_once('/')?.1.split_once('-')?;
    Some(IndexEntry { kind: IndexKind::from_name(kind)?, blind: blind.parse().ok()? })
}

/// The prefix of all that belongs to requests of people of a tenant.
pub fn people_prefix(tenant: TenantTag) -> String {
    format!("q/{tenant}/")
}

/// The prefix of all requests of a tenant.
pub fn requests_prefix(tenant: TenantTag) -> String {
    format!("q/{tenant}/r/")
}

/// The prefix of all revisions of a request.
pub fn request_prefix(tenant: TenantTag, request: RequestId) -> String {
    format!("q/{tenant}/r/{request}/")
}

/// One revision of a request.
pub fn request(tenant: TenantTag, request: RequestId, revision: u32) -> ObjectName {
    name(format!("{}{revision:04}", request_prefix(tenant, request)))
}

/// Reads the request out of the name of one of its revisions.
pub fn request_of(name: &ObjectName) -> Option<RequestId> {
    name.as_str().split('/').nth(3)?.parse().ok()
}

/// Reads the number out of the name of a revision.
pub fn request_revision(name: &ObjectName) -> Option<u32> {
    name.as_str().rsplit_once('/')?.1.parse().ok()
}

/// The prefix of what says which requests are open; in the order of their dates.
pub fn open_requests_prefix(tenant: TenantTag) -> String {
    format!("q/{tenant}/open/")
}

/// Says that a request is open, and by when it must be dealt with.
pub fn open_request(tenant: TenantTag, due: UnixMillis, request: RequestId) -> ObjectName {
    name(format!("{}{:015}-{request}", open_requests_prefix(tenant), due.0))
}

/// Reads date and request out of the name of what says that it is open.
pub fn open_request_of(name: &ObjectName) -> Option<(UnixMillis, RequestId)> {
    let (due, request) = name.as_str().rsplit_once('/')?.1.split_once('-')?;
    Some((UnixMillis(due.parse().ok()?), request.parse().ok()?))
}

/// The prefix of all restrictions of a tenant.
pub fn restrictions_prefix(tenant: TenantTag) -> String {
    format!("q/{tenant}/restricted/")
}

/// The prefix of the restrictions of a party.
pub fn restrictions_of_prefix(tenant: TenantTag, party: IndexEntry) -> String {
    format!("q/{tenant}/restricted/{}/", party.blind)
}

/// The restriction of a party that a request asks for.
pub fn restriction(tenant: TenantTag, party: IndexEntry, request: RequestId) -> ObjectName {
    name(format!("{}{request}", restrictions_of_prefix(tenant, party)))
}

/// Reads the request out of the name of a restriction.
pub fn restriction_request(name: &ObjectName) -> Option<RequestId> {
    name.as_str().rsplit_once('/')?.1.parse().ok()
}

/// The prefix of kept answers.
pub const ANSWERS_PREFIX: &str = "y/";

/// The prefix of the kept answers of a tenant.
pub fn answers_of_prefix(tenant: TenantTag) -> String {
    format!("{ANSWERS_PREFIX}{tenant}/")
}

/// The prefix of what is kept under one key.
pub fn answers_prefix(tenant: TenantTag, blind: BlindId) -> String {
    format!("{}{blind}/", answers_of_prefix(tenant))
}

/// Says that somebody works on a request, or holds the answer to it.
pub fn answer(tenant: TenantTag, blind: BlindId, revision: u32, is_done: bool) -> ObjectName {
    let what = if is_done { "done" } else { "run" };
    name(format!("{}{revision:04}-{what}", answers_prefix(tenant, blind)))
}

/// Reads the revision out of the name of such an object, and whether it is the answer.
pub fn answer_of(name: &ObjectName) -> Option<(u32, bool)> {
    let (revision, what) = name.as_str().rsplit_once('/')?.1.split_once('-')?;
    let is_done = match what {
        "run" => false,
        "done" => true,
        _ => return None,
    };
    Some((revision.parse().ok()?, is_done))
}

/// One object of audit records; `moment` is `yyyy/mm/dd/hhmmssmmm`.
pub fn audit(tenant: TenantTag, moment: &str, chain: RecordingId, seq: u32) -> ObjectName {
    name(format!("a/{tenant}/{moment}-{chain}-{seq:08}.car"))
}

/// What comes before all audit objects of a tenant that were written at `moment` or later.
pub fn audit_from(tenant: TenantTag, moment: &str) -> ObjectName {
    name(format!("a/{tenant}/{moment}"))
}

/// The prefix of a tenant's audit objects of one day; `date` is `yyyy-mm-dd`.
pub fn audit_day(tenant: TenantTag, date: &str) -> String {
    format!("a/{tenant}/{}/", date.replace('-', "/"))
}

/// The prefix of all audit objects of a tenant.
pub fn audit_prefix(tenant: TenantTag) -> String {
    format!("a/{tenant}/")
}

/// The prefix of what the store has of tenants.
pub const TENANTS_PREFIX: &str = "t/";

/// The prefix of a tenant's revisions; they are in the order of their numbers.
pub fn tenant_prefix(tenant: TenantTag) -> String {
    format!("{TENANTS_PREFIX}{tenant}/")
}

/// One revision of a tenant.
pub fn tenant_revision(tenant: TenantTag, revision: u32) -> ObjectName {
    name(format!("{TENANTS_PREFIX}{tenant}/{revision:08}"))
}

/// Reads tenant and revision out of the name of an object.
pub fn tenant_revision_of(name: &ObjectName) -> Option<(TenantTag, u32)> {
    let (tenant, revision) = name.as_str().strip_prefix(TENANTS_PREFIX)?.split_once('/')?;
    let revision = revision.parse().ok().filter(|number| format!("{number:08}") == revision)?;
    Some((tenant.parse().ok()?, revision))
}

/// Where a notice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoticePlace {
    /// To be delivered.
    Waiting,
    /// Delivered.
    Sent,
    /// Not deliverable.
    Dead,
}

impl NoticePlace {
    /// Returns the word for it, as in names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Sent => "sent",
            Self::Dead => "dead",
        }
    }
}

/// The prefix of all of a tenant's notices in one place.
pub fn notices_prefix(tenant: TenantTag, place: NoticePlace) -> String {
    format!("o/{tenant}/{}/", place.name())
}

/// The prefix of a waiting notice and its attempts.
pub fn waiting_prefix(tenant: TenantTag, notice: NoticeId) -> String {
    format!("o/{tenant}/waiting/{notice}/")
}

/// A waiting notice, or one of its attempts, counted from 1.
pub fn waiting_notice(tenant: TenantTag, notice: NoticeId, attempt: u32) -> ObjectName {
    name(format!("o/{tenant}/waiting/{notice}/{attempt:04}"))
}

/// A notice that waits no more.
pub fn settled_notice(tenant: TenantTag, place: NoticePlace, notice: NoticeId) -> ObjectName {
    name(format!("o/{tenant}/{}/{notice}", place.name()))
}

/// Reads the notice, and its attempt if it waits, out of the name of an object.
pub fn notice_of(name: &ObjectName) -> Option<(NoticeId, u32)> {
    let mut parts = name.as_str().strip_prefix("o/")?.split('/').skip(1);
    let (place, notice) = (parts.next()?, parts.next()?.parse().ok()?);
    match (place, parts.next(), parts.next()) {
        ("waiting", Some(attempt), None) => Some((notice, attempt.parse().ok()?)),
        ("sent" | "dead", None, None) => Some((notice, 0)),
        _ => None,
    }
}

/// Reads the recording out of the name of one of its objects.
pub fn recording_of(name: &ObjectName) -> Option<RecordingId> {
    name.as_str().split('/').nth(2)?.parse().ok()
}

/// What an object of a recording is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordingPart {
    /// A segment.
    Segment {
        /// Its writer.
        writer: WriterId,
        /// Its number.
        seq: u32,
    },
    /// A manifest.
    Manifest {
        /// Its revision.
        revision: u32,
    },
    /// A final object.
    Final {
        /// The revision of its manifest.
        revision: u32,
    },
}

/// Reads out of the name of an object below `r/` what it is; `None` for a foreign one.
pub fn part_of(name: &ObjectName) -> Option<RecordingPart> {
    let stem = name.as_str().splitn(4, '/').nth(3)?.strip_suffix(".cmr")?;
    if let Some((writer, seq)) = stem.strip_prefix("s/").and_then(|file| file.split_once('-')) {
        return Some(RecordingPart::Segment { writer: writer.parse().ok()?, seq: seq.parse().ok()? });
    }
    if let Some(revision) = stem.strip_prefix("m-") {
        return Some(RecordingPart::Manifest { revision: revision.parse().ok()? });
    }
    let revision = match stem {
        "final" => 0,
        later => later.strip_prefix("final-")?.parse().ok()?,
    };
    Some(RecordingPart::Final { revision })
}

fn name(text: String) -> ObjectName {
    ObjectName::new(text).expect("hexadecimal ids, digits, dots, dashes and slashes are a valid name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_read_from_their_names() {
        let (tenant, notice) = (TenantTag([1; 16]), NoticeId([2; 16]));
        for attempt in [0, 1, 9999] {
            assert_eq!(notice_of(&waiting_notice(tenant, notice, attempt)), Some((notice, attempt)));
        }
        for place in [NoticePlace::Sent, NoticePlace::Dead] {
            assert_eq!(notice_of(&settled_notice(tenant, place, notice)), Some((notice, 0)));
        }
        for foreign in ["waiting/x/0000", "elsewhere/0", "sent"] {
            assert_eq!(notice_of(&name(format!("o/{tenant}/{foreign}"))), None);
        }
        assert_eq!(notice_of(&name(format!("o/{tenant}/waiting/{notice}"))), None);
        assert_eq!(notice_of(&name(format!("o/{tenant}/sent/{notice}/0000"))), None);
    }

    #[test]
    fn revisions_of_tenants_are_read_from_their_names() {
        let tenant = TenantTag([1; 16]);
        for revision in [1, 9, 99_999_999] {
            assert_eq!(tenant_revision_of(&tenant_revision(tenant, revision)), Some((tenant, revision)));
        }
        for foreign in ["1", "000000001", "00000001/x", "0000000a"] {
            assert_eq!(tenant_revision_of(&name(format!("t/{tenant}/{foreign}"))), None, "{foreign}");
        }
    }

    #[test]
    fn answers_are_read_from_their_names() {
        let (tenant, blind) = (TenantTag([1; 16]), BlindId([2; 16]));
        for (revision, is_done) in [(0, false), (0, true), (12_345, true)] {
            assert_eq!(answer_of(&answer(tenant, blind, revision, is_done)), Some((revision, is_done)));
        }
        for foreign in ["0000-other", "x-run", "0000"] {
            assert_eq!(answer_of(&name(format!("{}{foreign}", answers_prefix(tenant, blind)))), None);
        }
    }

    #[test]
    fn index_entries_are_read_from_their_names() {
        let (tenant, recording) = (TenantTag([1; 16]), RecordingId([2; 16]));
        for kind in [IndexKind::Call, IndexKind::Party] {
            let entry = IndexEntry { kind, blind: BlindId([3; 16]) };
            assert_eq!(index_entry_of(&index_of(tenant, recording, entry)), Some(entry));
            assert_eq!(index_recording(&index_entry(tenant, entry, recording)), Some(recording));
        }
        assert_eq!(index_recording(&index_wanted(tenant, recording)), Some(recording));
        assert_eq!(index_entry_of(&name(format!("{}other-0", index_of_prefix(tenant, recording)))), None);
    }

    #[test]
    fn requests_are_read_from_their_names() {
        let (tenant, id) = (TenantTag([1; 16]), RequestId([2; 16]));
        let party = IndexEntry { kind: IndexKind::Party, blind: crate::domain::ids::BlindId([3; 16]) };
        let revision = request(tenant, id, 17);
        assert_eq!((request_of(&revision), request_revision(&revision)), (Some(id), Some(17)));
        assert_eq!(restriction_request(&restriction(tenant, party, id)), Some(id));
        for due in [UnixMillis(0), UnixMillis(1_790_000_000_000), UnixMillis(999_999_999_999_999)] {
            assert_eq!(open_request_of(&open_request(tenant, due, id)), Some((due, id)));
        }
        assert_eq!(open_request_of(&name(format!("{}x-{id}", open_requests_prefix(tenant)))), None);
    }

    #[test]
    fn parts_are_read_from_their_names() {
        let (tenant, recording, writer) = (TenantTag([1; 16]), RecordingId([2; 16]), WriterId([3; 16]));
        let segment = segment(tenant, recording, writer, 12_345_678);
        assert_eq!(part_of(&segment), Some(RecordingPart::Segment { writer, seq: 12_345_678 }));
        for revision in [0, 1, 9999, 10_000] {
            let (manifest, object) =
                (manifest(tenant, recording, revision), final_revision(tenant, recording, revision));
            assert_eq!(part_of(&manifest), Some(RecordingPart::Manifest { revision }));
            assert_eq!(part_of(&object), Some(RecordingPart::Final { revision }));
        }
        assert_eq!(part_of(&name(format!("r/{tenant}/{recording}/final.txt"))), None);
        assert_eq!(part_of(&name(format!("r/{tenant}/{recording}/finally.cmr"))), None);
    }
}
