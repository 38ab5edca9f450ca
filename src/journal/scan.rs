//! Reading one file of the journal, record by record.

use std::io::{self, BufReader, Read};

use bytes::Bytes;

use super::record::{
    self, CUT, FINISHED, HEADER_BYTES, MAGIC, MAX_BODY_BYTES, OPENED, SEALED, SEALED_FIELDS_BYTES, STORED,
};
use crate::domain::ids::{RecordingId, TenantTag, WriterId};

/// How much is read from a file at once, in bytes.
const READ_BYTES: usize = 1 << 20;

/// A whole record of a file. Sealed bytes stay in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Opened { recording: RecordingId, tenant_tag: TenantTag, body: Bytes },
    Sealed { recording: RecordingId, writer: WriterId, seq: u32, offset: u32, length: u32, at: u64 },
    Cut { recording: RecordingId, writer: WriterId, seq: u32, length: u32 },
    Stored { recording: RecordingId, writer: WriterId, seq: u32 },
    Finished { recording: RecordingId },
}

impl Found {
    pub(super) fn recording(&self) -> RecordingId {
        match self {
            Self::Opened { recording, .. }
            | Self::Sealed { recording, .. }
            | Self::Cut { recording, .. }
            | Self::Stored { recording, .. }
            | Self::Finished { recording } => *recording,
        }
    }
}

/// How a file ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// After a whole record.
    Clean,
    /// In a record that the file's end cuts, or in zeros: a crash.
    Torn,
    /// In a record that is wrong although more follows, or that cannot be read.
    Corrupt,
}

/// What reading a file found out about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scanned {
    pub(super) ending: Ending,
    /// The bytes of the whole records.
    pub(super) length: u64,
    pub(super) records: u64,
}

/// Reads whole records until the end or the first that is not whole; holds one record in memory.
pub(super) fn scan(file: impl Read, visit: impl FnMut(Found)) -> Scanned {
    scan_buffered(BufReader::with_capacity(READ_BYTES, file), visit)
}

/// As [`scan`], from memory or through a buffer.
pub(super) fn scan_buffered(mut reader: impl Read, mut visit: impl FnMut(Found)) -> Scanned {
    let mut scanned = Scanned { ending: Ending::Clean, length: 0, records: 0 };
    let mut body = Vec::new();
    loop {
        let kind = match read_record(&mut reader, &mut body) {
            Ok(kind) => kind,
            Err(ending) => {
                scanned.ending = ending;
                return scanned;
            }
        };
        let body_at = scanned.length + HEADER_BYTES as u64;
        scanned.length = body_at + body.len() as u64;
        scanned.records += 1;
        if let Some(found) = parse(kind, &body, body_at) {
            visit(found);
        }
    }
}

/// Reads one record, returns its kind and leaves its body in `body`.
fn read_record(reader: &mut impl Read, body: &mut Vec<u8>) -> Result<u8, Ending> {
    let mut header = [0; HEADER_BYTES];
    match read_up_to(reader, &mut header)? {
        0 => return Err(Ending::Clean),
        HEADER_BYTES => {}
        _ => return Err(Ending::Torn),
    }
    let [start @ .., _, _, _, _] = &header;
    let [m0, m1, m2, m3, kind, _, _, _, n0, n1, n2, n3, c0, c1, c2, c3] = header;
    let length = usize::try_from(u32::from_be_bytes([n0, n1, n2, n3])).unwrap_or(usize::MAX);
    if [m0, m1, m2, m3] != MAGIC || length > MAX_BODY_BYTES {
        // A power loss may leave the file longer than what reached the disk.
        return Err(if header == [0; HEADER_BYTES] { Ending::Torn } else { Ending::Corrupt });
    }
    body.resize(length, 0);
    if read_up_to(reader, body)? < length {
        return Err(Ending::Torn);
    }
    if record::checksum(start, &[body]) != u32::from_be_bytes([c0, c1, c2, c3]) {
        let is_last = read_up_to(reader, &mut [0])? == 0;
        return Err(if is_last { Ending::Torn } else { Ending::Corrupt });
    }
    Ok(kind)
}

/// Fills `out` as far as the file reaches. A file that cannot be read is corrupt from there on.
fn read_up_to(reader: &mut impl Read, out: &mut [u8]) -> Result<usize, Ending> {
    let wanted = out.len();
    let mut rest = out;
    while !rest.is_empty() {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(read) => rest = rest.split_at_mut(read).1,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Ending::Corrupt),
        }
    }
    Ok(wanted - rest.len())
}

/// Takes a body apart; nothing for kinds that mean nothing to a reader or are unknown.
fn parse(kind: u8, body: &[u8], body_at: u64) -> Option<Found> {
    let (recording, rest) = body.split_first_chunk()?;
    let recording = RecordingId(*recording);
    if kind == FINISHED {
        return Some(Found::Finished { recording });
    }
    let (second, rest) = rest.split_first_chunk()?;
    if kind == OPENED {
        let body = Bytes::copy_from_slice(rest);
        return Some(Found::Opened { recording, tenant_tag: TenantTag(*second), body });
    }
    let writer = WriterId(*second);
    let (seq, rest) = take_u32(rest)?;
    if kind == STORED {
        return Some(Found::Stored { recording, writer, seq });
    }
    let (number, rest) = take_u32(rest)?;
    match kind {
        CUT => Some(Found::Cut { recording, writer, seq, length: number }),
        SEALED => {
            let at = body_at + SEALED_FIELDS_BYTES as u64;
            let length = u32::try_from(rest.len()).ok()?;
            number.checked_add(length)?;
            Some(Found::Sealed { recording, writer, seq, offset: number, length, at })
        }
        _ => None,
    }
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Record;

    #[test]
    fn the_layout_is_the_published_one() {
        let mut file = Vec::new();
        record::encode_begin(0x0102, 3, &mut file);
        let (recording, writer) = (RecordingId([0xaa; 16]), WriterId([0xbb; 16]));
        Record::Stored { recording, writer, seq: 7 }.encode(&mut file);
        let hex: String = file.iter().map(|byte| format!("{byte:02x}")).collect();
        let begin = "434d4a31000000000000000cefdb9885000000000000010200000003";
        let stored =
            format!("434d4a310400000000000024{}{}{}00000007", "cd399a47", "aa".repeat(16), "bb".repeat(16));
        assert_eq!(hex, format!("{begin}{stored}"));
    }

    #[test]
    fn long_runs_are_split_and_unknown_kinds_skipped() {
        let mut file = b"CMJ1\x09\0\0\0\0\0\0\0".to_vec();
        let crc = record::checksum(&file, &[]);
        file.extend(crc.to_be_bytes());
        let (recording, writer) = (RecordingId([1; 16]), WriterId([2; 16]));
        let bytes = Bytes::from(vec![5; (2 << 20) + 9]);
        let sealed_at = crate::clock::monotonic();
        Record::Sealed { recording, writer, seq: 0, offset: 4, bytes, sealed_at }.encode(&mut file);
        let mut found = vec![];
        let scanned = scan(&file[..], |record| found.push(record));
        assert_eq!(scanned, Scanned { ending: Ending::Clean, length: file.len() as u64, records: 4 });
        let place =
            |found| if let Found::Sealed { offset, length, .. } = found { (offset, length) } else { (0, 0) };
        let places: Vec<_> = found.into_iter().map(place).collect();
        assert_eq!(places, [(4, 1 << 20), (4 + (1 << 20), 1 << 20), (4 + (2 << 20), 9)]);
    }
}
