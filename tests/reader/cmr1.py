#!/usr/bin/env python3
"""Reference reader of the CMR1 recording format, written from docs/FORMAT.md alone.

Section numbers in comments are those of docs/FORMAT.md. It is slow and strict on purpose: it shares no code
with callseal, so a recording that both readers describe in the same words says what the text says.
"""
import argparse, base64, hashlib, json, re, struct, sys, zlib
from dataclasses import dataclass, field
from hmac import compare_digest
from pathlib import Path

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError:
    sys.exit("cmr1.py needs the package `cryptography`: pip install -r tests/reader/requirements.txt")

# Section 4: object header
MAGIC = bytes.fromhex("89434d520d0a1a0a")
VERSION, SUITE, SEGMENT, MANIFEST = 1, 1, 1, 2
FIXED_HEADER, COMMITMENT = 144, 32
MIN_HEADER, MAX_MANIFEST_HEADER = FIXED_HEADER + COMMITMENT, 4 << 20
# Section 5: frame kinds; 7 to 14 are unknown and skipped
AUDIO, AUDIO_AT, GAP, EVENT, TABLE, METADATA, TIME_INDEX, TRAILER = 0, 1, 2, 3, 4, 5, 6, 15
LAST, MIN_SEALED = 0x8000, 17
ROLES = ("caller", "agent", "channel", "mixed")
# Bytes of a sample and its silence, mu-law zero and linear zero
CODECS, RATES = {"ulaw": (1, b"\xff"), "s16le": (2, b"\0")}, range(8000, 48001)
# Sections 6 and 7
END_REASONS, GAP_REASONS, NO_AUDIO = range(1, 6), range(1, 6), 0xFFFFFFFF
ENDS_WITH_TRAILER, HAS_NO_TRAILER = 1, 2
STATES = ("complete", "recovered", "closed_by_policy")
# Section 16
MAX_FRAMES, MAX_SEALED_BYTES, MAX_HOURS = 65536, 16 << 20, 24


class CmrError(Exception):
    """One error class of section 14, by name."""

    def __init__(self, name, detail=""):
        super().__init__(f"{name}: {detail}")
        self.name, self.detail, self.frames = name, detail, []


def require(condition, name, detail):
    if not condition:
        raise CmrError(name, detail)


@dataclass
class Expected:
    """What authorisation says (section 4); key_id is None when neither key nor envelope is at hand."""
    tenant_tag: bytes
    recording_id: bytes
    key_id: bytes = None


@dataclass
class Frame:
    index: int
    kind: int
    track: int
    body: bytes            # for audio the payload, otherwise the body as sealed
    pts: int = None
    samples: int = 0
    value: object = None   # gap reason, decoded event, or decoded trailer


@dataclass
class Opened:
    header: dict
    state: str = ""
    consumed: int = 0
    frames: list = field(default_factory=list)


# ---------------------------------------------------------------- keys, section 3

def hkdf(salt, key, info, length):
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(key)


def sha256(value):
    return hashlib.sha256(value).digest()


def tenant_tag(name):
    return sha256(b"cmr1 tenant\0" + name.encode())[:16]


def key_id(dek, tag, recording_id):
    return hkdf(b"cmr1 key-id", dek, tag + recording_id, 16)


def derive(dek, salt, info, digest):
    okm = hkdf(salt, dek, info + b"\0" + digest, 76)
    return okm[:32], okm[32:44], okm[44:]


def nonce(base, index, last):
    return bytes(a ^ b for a, b in zip(base, struct.pack(">IQ", 0, index | last << 63)))


def wrap_context(tag, recording_id, kid, kek_name):
    name = kek_name.encode()
    return b"cmr1 wrap\0" + tag + recording_id + kid + struct.pack(">H", len(name)) + name


def wrap_local(dek, kek, salt, context):
    key, iv, commitment = derive(kek, salt, b"cmr1 wrap", sha256(context))
    return b"\1" + salt + commitment + AESGCM(key).encrypt(iv, dek, context)


def unwrap_local(blob, kek, context):
    """Section 11, provider `local`."""
    require(len(blob) == 113, "MalformedHeader", f"wrap of {len(blob)} bytes")
    require(blob[0] == 1, "UnsupportedVersion", f"wrap version {blob[0]}")
    key, iv, commitment = derive(kek, blob[1:33], b"cmr1 wrap", sha256(context))
    require(compare_digest(commitment, blob[33:65]), "WrongKeyOrTamperedHeader", "commitment of the wrap")
    try:
        return AESGCM(key).decrypt(iv, blob[65:], context)
    except InvalidTag:
        raise CmrError("FrameAuth", "tag of the wrap") from None


# Key pairs are rare, and X-Wing is half the time of a start: only what needs it imports it.
def recipient_name(private, sender):
    """Section 11.11."""
    import xwing
    return sha256(b"cmr1 recipient name\0" + xwing.public_of(private) + sender)


def _recipient_box_key(name, sender, secret, ciphertext):
    return hkdf(sender, secret, b"cmr1 recipient key\0" + name + sha256(ciphertext), 32)


def _recipient_context(tag, recording_id, kid, name):
    return wrap_context(tag, recording_id, kid, "xwing/" + name.hex())


def wrap_recipient(dek, private, sender, eseed, salt, ids):
    """Derandomised, for vectors; `ids` are tenant tag, recording and key id."""
    import xwing
    name = recipient_name(private, sender)
    secret, ciphertext = xwing.encapsulate(xwing.public_of(private), eseed)
    context = _recipient_context(*ids, name)
    key, iv, commitment = derive(_recipient_box_key(name, sender, secret, ciphertext), salt, b"cmr1 recipient",
                                 sha256(context))
    return b"\1" + ciphertext + b"\1" + salt + commitment + AESGCM(key).encrypt(iv, dek, context)


def unwrap_recipient(blob, private, sender, ids):
    """Section 11.11, provider `recipient`."""
    import xwing
    require(len(blob) == 1 + xwing.CIPHERTEXT + 113, "MalformedHeader", f"wrap of {len(blob)} bytes")
    require(blob[0] == 1, "UnsupportedVersion", f"wrap version {blob[0]}")
    ciphertext, box, name = blob[1:1 + xwing.CIPHERTEXT], blob[1 + xwing.CIPHERTEXT:], recipient_name(private, sender)
    require(box[0] == 1, "UnsupportedVersion", f"box version {box[0]}")
    try:
        secret = xwing.decapsulate(private, ciphertext)
    except ValueError:
        raise CmrError("WrongKeyOrTamperedHeader", "X25519 comes to nothing") from None
    context = _recipient_context(*ids, name)
    key, iv, commitment = derive(_recipient_box_key(name, sender, secret, ciphertext), box[1:33], b"cmr1 recipient",
                                 sha256(context))
    require(compare_digest(commitment, box[33:65]), "WrongKeyOrTamperedHeader", "commitment of the wrap")
    try:
        return AESGCM(key).decrypt(iv, box[65:], context)
    except InvalidTag:
        raise CmrError("FrameAuth", "tag of the wrap") from None


# ---------------------------------------------------------------- CBOR, RFC 8949, definite lengths only

def cbor(body, where):
    """Decodes exactly one item; anything else in `body` is an error."""
    try:
        value, at = _cbor_item(body, 0, 0)
    except (ValueError, IndexError, struct.error) as error:
        raise CmrError("MalformedFrame", f"{where}: CBOR: {error}") from None
    require(at == len(body), "MalformedFrame", f"{where}: bytes after the CBOR item")
    return value


def _cbor_item(body, at, depth):
    if depth > 16:
        raise ValueError("nested too deep")
    major, info, at = body[at] >> 5, body[at] & 31, at + 1
    size = {24: 1, 25: 2, 26: 4, 27: 8}.get(info, 0)
    if info > 27 or at + size > len(body):
        raise ValueError("indefinite, reserved or cut")
    raw, at = body[at:at + size], at + size
    number = int.from_bytes(raw, "big") if size else info
    if major == 0:
        return number, at
    if major == 1:
        return -1 - number, at
    if major in (2, 3):
        if at + number > len(body):
            raise ValueError("string past the end")
        piece = bytes(body[at:at + number])
        return (piece if major == 2 else piece.decode()), at + number
    if major == 4:
        items = []
        for _ in range(number):
            item, at = _cbor_item(body, at, depth + 1)
            items.append(item)
        return items, at
    if major == 5:
        items = {}
        for _ in range(number):
            name, at = _cbor_item(body, at, depth + 1)
            if type(name) not in (str, int) or name in items:
                raise ValueError("map key of another type, or twice")
            items[name], at = _cbor_item(body, at, depth + 1)
        return items, at
    if major == 7 and size in (2, 4, 8):
        return struct.unpack({2: ">e", 4: ">f", 8: ">d"}[size], raw)[0], at
    if major == 7 and info in (20, 21, 22):
        return {20: False, 21: True, 22: None}[info], at
    raise ValueError("tag or simple value")


# ---------------------------------------------------------------- one object, sections 4, 5 and 13.1

def parse_header(blob):
    require(blob[:8] == MAGIC, "NotARecording", "magic")
    require(len(blob) >= MIN_HEADER, "MalformedHeader", "shorter than a header")
    version, suite, kind, flags, header_len = struct.unpack(">BBBBI", blob[8:16])
    require(version == VERSION, "UnsupportedVersion", f"version {version}")
    require(suite == SUITE, "UnsupportedSuite", f"suite {suite}")
    require(kind in (SEGMENT, MANIFEST), "MalformedHeader", f"type {kind}")
    require(flags == 0, "MalformedHeader", f"flags {flags}")
    seq, reserved, created_ms = struct.unpack(">IIQ", blob[80:96])
    require(reserved == 0, "MalformedHeader", "reserved bytes")
    longest = MIN_HEADER if kind == SEGMENT else MAX_MANIFEST_HEADER
    require(MIN_HEADER <= header_len <= min(longest, len(blob)), "MalformedHeader", f"header_len {header_len}")
    return {"type": kind, "header_len": header_len, "tenant_tag": blob[16:32], "recording_id": blob[32:48],
            "key_id": blob[48:64], "writer_id": blob[64:80], "seq": seq, "created_ms": created_ms,
            "salt": blob[96:128], "prev": blob[128:144], "extension": blob[144:header_len - COMMITMENT],
            "bound": blob[:header_len - COMMITMENT], "commitment": blob[header_len - COMMITMENT:header_len]}


def split_frame(blob, at, index, start):
    """The state if no whole frame begins at `at`, otherwise (last, end of the frame)."""
    rest = len(blob) - at
    if rest == 0:
        return "Unfinished"
    prefix = int.from_bytes(blob[at:at + 2], "big")
    length = prefix & ~LAST
    if rest < 2 or rest - 2 < length:
        return "TornTail"
    require(length >= MIN_SEALED, "MalformedFrame", f"frame {index}: L = {length}")
    require(index < MAX_FRAMES and at + 2 + length - start <= MAX_SEALED_BYTES, "LimitExceeded", f"frame {index}")
    return prefix >= LAST, at + 2 + length


def open_object(blob, dek, expected):
    """Section 13.1. Without a DEK it only walks the frame boundaries and releases nothing."""
    header = parse_header(blob)
    for name in ("tenant_tag", "recording_id", "key_id"):
        want = getattr(expected, name)
        require(want is None or compare_digest(header[name], want), "ContextMismatch", name)
    if dek is not None:
        key, base, commitment = derive(dek, header["salt"], b"cmr1 object", sha256(header["bound"]))
        require(compare_digest(commitment, header["commitment"]), "WrongKeyOrTamperedHeader", "commitment")
        cipher = AESGCM(key)
    opened, at, index, cursors, widths = Opened(header), header["header_len"], 0, {}, {}
    try:
        while True:
            split = split_frame(blob, at, index, header["header_len"])
            if isinstance(split, str):
                opened.state, opened.consumed = split, at
                return opened
            last, end = split
            if dek is not None:
                prefix = blob[at:at + 2]
                try:
                    inner = cipher.decrypt(nonce(base, index, last), blob[at + 2:end], commitment[:14] + prefix)
                except InvalidTag:
                    raise CmrError("FrameAuth", f"frame {index}") from None
                opened.frames.append(parse_inner(inner, index, last, header, opened.frames, cursors, widths))
            at, index = end, index + 1
            if last:
                opened.state, opened.consumed = "Complete", at
                return opened
    except CmrError as error:
        error.frames = opened.frames
        raise


def sample_widths(table):
    """Bytes of a sample by track, from frame 0; section 5. A table that cannot be read names none."""
    try:
        entries = cbor(table, "track table")
        return {e["track"]: CODECS[e["codec"]][0] for e in entries if e["codec"] in CODECS}
    except (CmrError, KeyError, TypeError):
        return {}


def parse_inner(inner, index, last, header, before, cursors, widths):
    """Section 5, the rules that one object decides alone. `cursors`: end of each track's latest audio."""
    frame = Frame(index, inner[0] >> 4, inner[0] & 15, inner[1:])

    def must(condition, detail):
        require(condition, "MalformedFrame", f"frame {index}: {detail}")

    must(last == (frame.kind == TRAILER), "F and kind 15 belong together")
    if frame.kind in (AUDIO_AT, GAP, EVENT):
        must(len(frame.body) >= 4, "no room for pts")
        frame.pts, frame.body = int.from_bytes(frame.body[:4], "big"), frame.body[4:]
    if frame.kind == AUDIO:
        must(frame.track in cursors, "first audio of a track needs an explicit pts")
        frame.pts = cursors[frame.track]
    if frame.kind == TABLE and index == 0:
        widths.update(sample_widths(frame.body))
    if frame.kind in (AUDIO, AUDIO_AT):
        width = widths.get(frame.track, 1)
        must(len(frame.body) % width == 0, "audio ends inside a sample")
        frame.samples = len(frame.body) // width
        cursors[frame.track] = frame.pts + frame.samples
    if frame.kind == GAP:
        must(len(frame.body) == 5, "gap body")
        frame.samples, frame.value = struct.unpack(">IB", frame.body)
        must(frame.value in GAP_REASONS, f"gap reason {frame.value}")
    if frame.kind in (AUDIO, AUDIO_AT, GAP):
        must(frame.pts + frame.samples < 1 << 32, "pts past u32")
    if frame.kind == EVENT:
        frame.value = cbor(frame.body, f"frame {index}")
        must(isinstance(frame.value, dict), "event is no map")
    if frame.kind == TRAILER and header["type"] == MANIFEST:
        must(len(frame.body) > 1 and frame.body[0] < len(STATES), "manifest state")
        frame.value = STATES[frame.body[0]], cbor(frame.body[1:], f"frame {index}")
        must(isinstance(frame.value[1], dict), "manifest reason is no map")
    elif frame.kind == TRAILER:
        must(len(frame.body) >= 6, "trailer body")
        count, reason, n = struct.unpack(">IBB", frame.body[:6])
        must(len(frame.body) == 6 + 24 * n, "trailer length")
        must(count == index + 1, f"trailer counts {count} frames")
        seen, listed = track_totals(before), set()
        for entry in struct.iter_unpack(">BBHIIIQ", frame.body[6:]):
            must(entry[1:3] == (0, 0), "trailer reserved bytes")
            must(entry[0] not in listed, "trailer lists a track twice")
            must(seen.get(entry[0]) == entry[3:], f"trailer counts of track {entry[0]}")
            listed.add(entry[0])
        frame.value = reason, listed
    return frame


def track_totals(frames):
    """Per track with audio: (frames, first_pts, end_pts, payload bytes), as in a segment trailer."""
    totals = {}
    for f in frames:
        if f.kind in (AUDIO, AUDIO_AT):
            n, first, end, size = totals.get(f.track, (0, f.pts, 0, 0))
            totals[f.track] = (n + 1, min(first, f.pts), max(end, f.pts + f.samples), size + len(f.body))
    return totals


def whole_object(blob, dek, expected):
    """Opens bytes that must hold one object and nothing else."""
    opened = open_object(blob, dek, expected)
    if opened.state == "Complete" and opened.consumed != len(blob):
        error = CmrError("TrailingData", f"{len(blob) - opened.consumed} bytes after the trailer")
        error.frames = opened.frames
        raise error
    return opened


# ---------------------------------------------------------------- an object's place in a recording, sections 6 and 7

def check_segment(opened):
    """The rules of a segment's contents; returns (track table, metadata or None)."""
    header, frames = opened.header, opened.frames
    require(header["type"] == SEGMENT, "StateMismatch", "not a segment")
    if not frames:
        return {}, None
    require(frames[0].kind == TABLE, "MalformedFrame", "frame 0 is no track table")
    table = cbor(frames[0].body, "track table")
    tracks = {}
    for entry in table if isinstance(table, list) else [None]:
        good = isinstance(entry, dict) and type(entry.get("track")) is int and 0 <= entry["track"] <= 15 \
            and entry["track"] not in tracks and entry.get("role") in ROLES and entry.get("codec") in CODECS \
            and type(entry.get("rate")) is int and entry["rate"] in RATES and entry.get("channels") == 1
        require(good, "MalformedFrame", f"track table: {entry}")
        tracks[entry["track"]] = entry
    formats = {(entry["codec"], entry["rate"]) for entry in tracks.values()}
    require(len(formats) == 1, "MalformedFrame", "track table with several formats")
    pieces = 0
    while pieces + 1 < len(frames) and frames[pieces + 1].kind == METADATA:
        pieces += 1
    for f in frames[pieces + 1:]:
        require(f.kind not in (TABLE, METADATA, TIME_INDEX), "MalformedFrame", f"frame {f.index}: kind {f.kind} here")
        require(f.kind not in (AUDIO, AUDIO_AT, GAP) or f.track in tracks, "MalformedFrame",
                f"frame {f.index}: track {f.track} is not in the table")
    metadata = None
    require(not pieces or header["seq"] == 0, "MalformedFrame", "metadata outside seq 0")
    if pieces and pieces + 1 < len(frames):  # a torn segment may end inside its metadata
        metadata = cbor(b"".join(f.body for f in frames[1:pieces + 1]), "metadata")
        require(isinstance(metadata, dict), "MalformedFrame", "metadata is no map")
    if opened.state == "Complete":
        reason, listed = frames[-1].value
        require(reason in END_REASONS, "MalformedFrame", f"end reason {reason}")
        require(listed == set(track_totals(frames)), "MalformedFrame", "trailer omits a track")
    return tracks, metadata


@dataclass
class Row:
    writer_id: bytes
    seq: int
    flags: int = None      # None: no manifest yet
    byte_len: int = None
    sha256: bytes = None


def parse_rows(extension):
    """The clear extension of a manifest, section 7."""
    try:
        (n_writers,), at = struct.unpack_from(">H", extension), 2
        writers = [extension[at + 16 * i:at + 16 * i + 16] for i in range(n_writers)]
        (n_rows,), at = struct.unpack_from(">I", extension, at + 16 * n_writers), at + 16 * n_writers + 4
    except struct.error:
        raise CmrError("MalformedHeader", "row table is cut") from None
    require(len(set(writers)) == n_writers, "MalformedHeader", "a writer listed twice")
    require(len(extension) - at == 44 * n_rows, "MalformedHeader", "row table length")
    rows = []
    for writer, flags, zero, seq, byte_len, digest in struct.iter_unpack(">HBBII32s", extension[at:]):
        require(writer < n_writers and zero == 0, "MalformedHeader", f"row {len(rows)}")
        require(flags in (ENDS_WITH_TRAILER, HAS_NO_TRAILER), "MalformedHeader", f"row {len(rows)}: flags {flags}")
        rows.append(Row(writers[writer], seq, flags, byte_len, digest))
    return rows


def read_manifest(blob, dek, expected):
    """Returns (header, rows, metadata, time index, (state, reason)); the last three are None without a DEK."""
    opened = whole_object(blob, dek, expected)
    require(opened.header["type"] == MANIFEST and opened.state == "Complete", "StateMismatch", "manifest")
    require(opened.header["prev"] == bytes(16), "ChainMismatch", "manifest with prev")
    rows = parse_rows(opened.header["extension"])
    if dek is None:
        return opened.header, rows, None, None, None
    known = [f for f in opened.frames if f.kind <= TIME_INDEX or f.kind == TRAILER]
    order = "".join("%x" % f.kind for f in known)
    require(re.fullmatch("5+6+f", order), "MalformedFrame", f"manifest frames {order}")
    metadata = cbor(b"".join(f.body for f in known if f.kind == METADATA), "metadata")
    require(isinstance(metadata, dict), "MalformedFrame", "metadata is no map")
    body = b"".join(f.body for f in known if f.kind == TIME_INDEX)
    tracks = list(body[1:1 + body[0]]) if body else []
    require(body and len(body) == 1 + body[0] + 8 * len(rows) * body[0], "MalformedFrame", "time index length")
    require(all(t < 16 for t in tracks) and tracks == sorted(set(tracks)), "MalformedFrame", "time index tracks")
    spans = list(struct.iter_unpack(">II", body[1 + len(tracks):]))
    index = [dict(zip(tracks, spans[n * len(tracks):])) for n in range(len(rows))]
    return opened.header, rows, metadata, index, known[-1].value


# ---------------------------------------------------------------- a recording, sections 2, 8 and 13.2

def locate(folder):
    """Returns (manifest bytes, revision by name, end of rows, segments by tail, fetch(row, offset), stored rows);
    each of the first four is None where the layout does not say it. Of several revisions the highest counts."""
    def named(pattern, sub="."):
        found = [(re.fullmatch(pattern, p.name), p) for p in sorted((folder / sub).glob("*"))]
        return [(m, p) for m, p in found if m]

    def by_name(row, _offset):
        path = folder / "s" / f"{row.writer_id.hex()}-{row.seq:08}.cmr"
        require(path.is_file(), "DigestMismatch", f"missing {path.name}")
        return path.read_bytes()

    finals = sorted((int(m[1] or 0), p) for m, p in named(r"final(?:-(\d{4,}))?\.cmr"))
    if finals:
        revision, blob = finals[-1][0], finals[-1][1].read_bytes()
        require(len(blob) >= 32 and blob[-32:-24] == b"CMRTAIL1", "NoTail", "no tail")
        offset, size, n_segments, zero, crc = struct.unpack(">QIIII", blob[-24:])
        require(zlib.crc32(blob[-32:-4]) == crc and zero == 0, "NoTail", "tail checksum or reserved bytes")
        require(offset + size + 32 == len(blob), "NoTail", "tail bounds")
        return (blob[offset:offset + size], revision, offset, n_segments,
                lambda row, at: blob[at:min(at + row.byte_len, offset)], [])
    manifests = sorted((int(m[1]), p) for m, p in named(r"m-(\d{4,})\.cmr"))
    segments = [Row(bytes.fromhex(m[1]), int(m[2])) for m, _ in named(r"([0-9a-f]{32})-(\d{8,})\.cmr", "s")]
    if manifests:
        return manifests[-1][1].read_bytes(), manifests[-1][0], None, None, by_name, segments
    require(segments, "NotARecording", "no final, manifest or segment")
    return None, None, None, None, by_name, segments


def verify_recording(store, dek, expected):
    """Section 13.2: verifies everything and returns what a comparison of two readers needs."""
    folder = Path(store) / "r" / expected.tenant_tag.hex() / expected.recording_id.hex()
    manifest, revision, rows_end, n_segments, fetch, segments = locate(folder)
    report = {"grade": "integrity" if dek is None else "authentic", "state": "running", "root": None}
    metadata = index = None
    if manifest is not None:
        header, rows, metadata, index, trailer = read_manifest(manifest, dek, expected)
        require(revision in (None, header["seq"]), "SequenceMismatch", "revision and object name differ")
        require(n_segments in (None, len(rows)), "NoTail", f"tail counts {n_segments} segments of {len(rows)}")
        report.update(root=sha256(manifest).hex(), revision=header["seq"])
        report["state"], report["reason"] = trailer or (None, None)
        listed = {(r.writer_id, r.seq) for r in rows}
        report["unlisted"] = [[r.writer_id.hex(), r.seq] for r in segments if (r.writer_id, r.seq) not in listed]
    else:  # still running: order writers by created_ms and rows by seq, section 10
        started = {}
        for row in sorted(segments, key=lambda r: r.seq):
            if row.writer_id not in started:
                started[row.writer_id] = parse_header(fetch(row, 0))["created_ms"]
        rows = sorted(segments, key=lambda r: (started[r.writer_id], r.writer_id, r.seq))
    report["metadata"], report["rows"] = metadata, []
    previous, offset, frames, roles, formats = {}, 0, [], {}, set()
    for n, row in enumerate(rows):
        where = f"row {n}"
        blob = fetch(row, offset)
        require(row.byte_len in (None, len(blob)), "DigestMismatch", f"{where}: length {len(blob)}")
        require(row.sha256 is None or sha256(blob) == row.sha256, "DigestMismatch", where)
        opened = whole_object(blob, dek, expected)
        header = opened.header
        tracks, head = check_segment(opened)
        require((header["writer_id"], header["seq"]) == (row.writer_id, row.seq), "SequenceMismatch", where)
        complete = opened.state == "Complete"
        require(row.flags is None or complete == (row.flags == ENDS_WITH_TRAILER), "StateMismatch", where)
        seq, chain, ended = previous.get(row.writer_id, (-1, bytes(16), True))
        require(ended, "StateMismatch", f"{where}: follows a torn segment of its writer")
        require(row.seq == seq + 1, "SequenceMismatch", f"{where}: seq {row.seq} after {seq}")
        require(header["prev"] == chain, "ChainMismatch", where)
        previous[row.writer_id] = row.seq, header["commitment"][:16], complete
        offset += len(blob)
        report["rows"].append({"writer": row.writer_id.hex(), "seq": row.seq, "bytes": len(blob),
                               "state": opened.state})
        if index is not None:
            audio = {t: span[1:3] for t, span in track_totals(opened.frames).items()}
            require({t: s for t, s in index[n].items() if s != (NO_AUDIO, NO_AUDIO)} == audio, "StateMismatch",
                    f"{where}: time index")
        if metadata is None and head is not None:
            report["metadata"] = metadata = head
        roles.update({t: entry["role"] for t, entry in tracks.items()})
        formats.update((entry["codec"], entry["rate"]) for entry in tracks.values())
        frames += [(n, f) for f in opened.frames]
    require(rows_end in (None, offset), "TrailingData", "bytes between the rows and the manifest")
    if dek is not None:
        require(len(formats) < 2, "MalformedFrame", "rows of several formats")
        said = (metadata or {}).get("format", {"codec": "ulaw", "rate": 8000})
        codec, rate = formats.pop() if formats else ("ulaw", 8000)
        require(not frames or said == {"codec": codec, "rate": rate}, "MalformedFrame", "metadata of another format")
        report.update(describe(frames, roles, codec, rate))
    return report


def describe(frames, roles, codec, rate):
    totals = track_totals([f for _, f in frames])
    rendered = render([f for _, f in frames], totals, codec, rate)
    tracks = {}
    for track in sorted(totals):
        n, first, end, size = totals[track]
        arrival = b"".join(f.body for _, f in frames if f.kind in (AUDIO, AUDIO_AT) and f.track == track)
        tracks[str(track)] = {"role": roles[track], "frames": n, "payload_bytes": size, "first_pts": first,
                              "end_pts": end, "sha256": sha256(arrival).hex(),
                              "rendered_sha256": sha256(rendered[track]).hex(), "rendered_bytes": len(rendered[track])}
    return {"tracks": tracks,
            "gaps": [{"row": n, "track": f.track, "pts": f.pts, "samples": f.samples, "reason": f.value}
                     for n, f in frames if f.kind == GAP],
            "events": [{"row": n, "track": f.track, "pts": f.pts, "event": f.value}
                       for n, f in frames if f.kind == EVENT]}


def render(frames, totals, codec, rate):
    """Per track its audio at absolute pts; later frames overwrite; what nothing covers is silence."""
    if not totals:
        return {}
    origin, end = min(t[1] for t in totals.values()), max(t[2] for t in totals.values())
    require(end - origin <= MAX_HOURS * 3600 * rate, "LimitExceeded", "recording of more than 24 h")
    width, silence = CODECS[codec]
    rendered = {track: bytearray(silence * (width * (end - origin))) for track in totals}
    for f in frames:
        if f.kind in (AUDIO, AUDIO_AT):
            at = width * (f.pts - origin)
            rendered[f.track][at:at + len(f.body)] = f.body
    return rendered


# ---------------------------------------------------------------- envelope and keyring, section 11

def read_envelope(store, expected):
    """The envelope of the highest revision, or None."""
    folder = Path(store) / "k" / expected.tenant_tag.hex() / expected.recording_id.hex()
    found = sorted((int(p.stem), p) for p in folder.glob("*.json") if re.fullmatch(r"\d{4,}", p.stem))
    if not found:
        return None
    envelope = json.loads(found[-1][1].read_text())
    require(envelope["v"] == 1, "UnsupportedVersion", "envelope")
    require(envelope["state"] == "active", "KeyErased", f"envelope state {envelope['state']}")
    for name in ("tenant_tag", "recording_id"):
        require(envelope[name] == getattr(expected, name).hex(), "ContextMismatch", f"envelope {name}")
    return envelope


def dek_from_keyring(keyring, tenant, envelope, expected):
    require(envelope is not None, "KeyErased", "no envelope")
    wraps = [w for w in envelope["wraps"] if (w["provider"], w["kek"]) == ("local", f"local/{tenant}")]
    require(len(wraps) == 1, "KeyUnavailable", f"{len(wraps)} wraps for local/{tenant}")
    ring, version = json.loads(Path(keyring).read_text()), wraps[0]["kek_version"]
    require(ring["v"] == 1, "UnsupportedVersion", "keyring")
    keks = [k["key"] for k in ring["keks"] if (k["tenant"], str(k["version"])) == (tenant, version)]
    require(len(keks) == 1, "KeyUnavailable", f"KEK version {version}")
    context = wrap_context(expected.tenant_tag, expected.recording_id, bytes.fromhex(envelope["key_id"]),
                           f"local/{tenant}/v{version}")
    return unwrap_local(base64.b64decode(wraps[0]["blob"], validate=True),
                        base64.b64decode(keks[0], validate=True), context)


def dek_from_open_file(path, envelope, expected):
    import xwing
    require(envelope is not None, "KeyErased", "no envelope")
    raw = json.loads(Path(path).read_text())
    require((raw["v"], raw["suite"]) == (1, "x-wing"), "UnsupportedVersion", "open file")
    require(raw["kind"] == "callseal open key", "KeyUnavailable", f"the file is a {raw['kind']}")
    private, sender = (base64.b64decode(raw[name], validate=True) for name in ("key", "sender"))
    require((len(private), len(sender)) == (xwing.PRIVATE, 32), "MalformedHeader", "open file")
    kek = "xwing/" + recipient_name(private, sender).hex()
    require(raw["kek"] == kek, "MalformedHeader", "the open file is of another key pair than it says")
    wraps = [w for w in envelope["wraps"] if (w["provider"], w["kek"]) == ("recipient", kek)]
    require(len(wraps) == 1, "KeyUnavailable", f"{len(wraps)} wraps for {kek}")
    return unwrap_recipient(base64.b64decode(wraps[0]["blob"], validate=True), private, sender,
                            (expected.tenant_tag, expected.recording_id, bytes.fromhex(envelope["key_id"])))


def find_key(args):
    """Returns (DEK or None, Expected)."""
    try:
        return _find_key(args, args.recording)
    except (KeyError, TypeError, ValueError) as error:
        raise CmrError("MalformedHeader", f"envelope or keyring: {error!r}") from None


def _find_key(args, recording):
    if args.tenant:
        tag = tenant_tag(args.tenant)
    else:
        tags = [p.parent.name for p in (Path(args.store) / "r").glob(f"*/{recording.hex()}")]
        require(len(tags) == 1, "NotARecording", f"{len(tags)} tenants hold this recording; name one with --tenant")
        tag = bytes.fromhex(tags[0])
    expected = Expected(tag, recording)
    envelope = read_envelope(args.store, expected)
    dek = args.dek
    if args.keyring:
        dek = dek_from_keyring(args.keyring, args.tenant, envelope, expected)
    if args.open_file:
        dek = dek_from_open_file(args.open_file, envelope, expected)
    if envelope is not None:
        expected.key_id = bytes.fromhex(envelope["key_id"])
    if dek is not None:
        kid = key_id(dek, tag, recording)
        require(expected.key_id in (None, kid), "ContextMismatch", "the DEK is not the one the envelope names")
        expected.key_id = kid
    return dek, expected


# ---------------------------------------------------------------- tiny writer and self-test, section 15

def seal_header(kind, expected, writer_id, seq, created_ms, salt, prev=bytes(16), extension=b"", **override):
    """`bound` header bytes; `override` plants a fault: version, suite, flags, reserved, header_len."""
    o = {"version": VERSION, "suite": SUITE, "flags": 0, "reserved": 0,
         "header_len": MIN_HEADER + len(extension), **override}
    return MAGIC + struct.pack(">BBBBI", o["version"], o["suite"], kind, o["flags"], o["header_len"]) \
        + expected.tenant_tag + expected.recording_id + expected.key_id + writer_id \
        + struct.pack(">IIQ", seq, o["reserved"], created_ms) + salt + prev + extension


def seal_object(dek, bound, inners, last=True):
    """Seals each inner frame; the last one carries F unless told otherwise."""
    key, base, commitment = derive(dek, bound[96:128], b"cmr1 object", sha256(bound))
    pieces, cipher = [bound + commitment], AESGCM(key)
    for i, inner in enumerate(inners):
        final = last and i == len(inners) - 1
        prefix = struct.pack(">H", len(inner) + 16 | (LAST if final else 0))
        pieces.append(prefix + cipher.encrypt(nonce(base, i, final), inner, commitment[:14] + prefix))
    return b"".join(pieces)


def verdict(blob, dek, expected):
    try:
        opened = whole_object(blob, dek, expected)
        return opened.state, len(opened.frames)
    except CmrError as error:
        return error.name, len(error.frames)


def selftest():
    dek, tag = bytes(range(32)), tenant_tag("acme-dental")
    recording = bytes.fromhex("018f4c2e7b5a7c3d9e1f0a2b3c4d5e6f")
    expected = Expected(tag, recording, key_id(dek, tag, recording))
    bound = seal_header(SEGMENT, expected, bytes(range(0xA0, 0xB0)), 0, 1760000000000, b"\x11" * 32)
    key, base, commitment = derive(dek, b"\x11" * 32, b"cmr1 object", sha256(bound))
    inners = [b"\x10\0\0\0\0" + b"\xff" * 160, b"\0" + b"\x7f" * 160, bytes.fromhex("f0000000030000")]
    tiny = seal_object(dek, bound, inners)
    frame0, kek_name = tiny[176:176 + 183].hex(), "local/acme/v1"
    context = wrap_context(tag, recording, expected.key_id, kek_name)
    wrap = wrap_local(dek, b"\1" * 32, b"\x33" * 32, context)
    published = [  # sections 15.2 and 15.3
        ("tenant_tag", tag.hex(), "8f60e616c2f0f2bc9a6ef3fd41cae7a3"),
        ("key_id", expected.key_id.hex(), "e3d55fc01c012a12d9cebdec390216a1"),
        ("header digest", sha256(bound).hex(), "650996878a4d54f971c26a45c35ccbfe69ab03d2f69f7cb4ea8576932f62c9f6"),
        ("segment key", key.hex(), "b945c80e3c8ed8490ec412789fdd03dd2a9338f93aba67fd360eec7a446e3f1c"),
        ("base nonce", base.hex(), "4f59bb416423f81a045a2329"),
        ("nonce of frame 2", nonce(base, 2, True).hex(), "4f59bb41e423f81a045a232b"),
        ("commitment", commitment.hex(), "e27b5a82f0f23c1b773b07d2c644a0493d012d6c1064c0a6a13ac88e130c6f12"),
        ("frame 0 begins", frame0[:36], "00b56c9fabe324e4bfc023036acee22cfa29"),
        ("frame 0 ends", frame0[-15:], "2a2a1f62f69f757"),
        ("frame 2", tiny[-25:].hex(), "80172dcb69e646592fecd5a8c424ed6344f11fbfaf0e312990"),
        ("length", len(tiny), 563),
        ("object", sha256(tiny).hex(), "443ec6d776a800cbf996fa26dbd2a1e6e008ab2cbce73be622c233df2823ec0d"),
        ("wrap", wrap.hex(), "01" + "33" * 32 + "9c3ef0cbbd738a82a447fe75149e0e2013d71def2874f7115dc8813192768314"
         "e73ec2bfb186662be1e2dc2c812ee159c97f3a725a4e8a5e03320015c488cb7fb43ff0aed64237890d355824b16c5860"),
        ("unwrap", unwrap_local(wrap, b"\1" * 32, context).hex(), dek.hex()),
        ("reading", verdict(tiny, dek, expected), ("Complete", 3)),
    ]
    for name, got, want in published:
        require(got == want, "SelfTest", f"{name}: {got}, published {want}")
    for cut in range(len(tiny)):
        got = verdict(tiny[:cut], dek, expected)
        want = "NotARecording" if cut < 8 else "MalformedHeader" if cut < 176 else \
            "Unfinished" if cut in (176, 176 + 183, 176 + 183 + 179) else "TornTail"
        require(got == (want, (cut >= 359) + (cut >= 538)), "SelfTest", f"prefix {cut}: {got}")
    for bit in range(8 * len(tiny)):
        flipped = bytearray(tiny)
        flipped[bit // 8] ^= 1 << bit % 8
        require(verdict(bytes(flipped), dek, expected)[0] != "Complete", "SelfTest", f"bit {bit}")
    frames = [b"\x90"] * (MAX_FRAMES - 1)  # section 16; sealed without F a 65,537th frame is one too many
    full = seal_object(dek, bound, frames + [b"\xf0" + struct.pack(">IBB", MAX_FRAMES, 1, 0)])
    require(verdict(full, dek, expected) == ("Complete", MAX_FRAMES), "SelfTest", "65,536 frames")
    over = seal_object(dek, bound, frames + [b"\x90", b"\x90"], last=False)
    require(verdict(over, dek, expected) == ("LimitExceeded", MAX_FRAMES), "SelfTest", "65,537 frames")
    return {"published": len(published), "prefixes": len(tiny), "bit_flips": 8 * len(tiny), "limits": 2}


# ---------------------------------------------------------------- command line

def hexadecimal(size):
    def parse(text):
        value = bytes.fromhex(text.replace("-", ""))
        if len(value) != size:
            raise ValueError
        return value
    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("open", "verify"):
        sub = commands.add_parser(name)
        keys = sub.add_mutually_exclusive_group(required=name == "open")
        keys.add_argument("--dek", metavar="HEX", type=hexadecimal(32))
        keys.add_argument("--keyring", metavar="FILE")
        keys.add_argument("--open-file", metavar="FILE", help="of a key pair, section 11.11")
        sub.add_argument("--tenant", metavar="NAME")
        sub.add_argument("--store", metavar="DIR", required=True)
        sub.add_argument("--recording", metavar="HEX", type=hexadecimal(16), required=True)
    sub = commands.add_parser("object")
    for name, size in (("--dek", 32), ("--tenant-tag", 16), ("--recording", 16), ("--key-id", 16)):
        sub.add_argument(name, metavar="HEX", type=hexadecimal(size), required=True)
    sub.add_argument("file", type=Path)
    commands.add_parser("selftest")
    for sub in commands.choices.values():
        sub.add_argument("--json", action="store_true", help="on one line")
    args = parser.parse_args()
    if getattr(args, "keyring", None) and not args.tenant:
        parser.error("--keyring needs --tenant")

    def frame_list(frames):
        return {"frame_count": len(frames), "frames": [
            {"kind": f.kind, "track": f.track, "pts": f.pts, "sha256": sha256(f.body).hex()} for f in frames]}

    code = 0
    try:
        if args.command == "selftest":
            result = selftest()
        elif args.command == "object":
            opened = whole_object(args.file.read_bytes(), args.dek,
                                  Expected(args.tenant_tag, args.recording, args.key_id))
            result = {"state": opened.state, **frame_list(opened.frames)}
        else:
            dek, expected = find_key(args)
            result = verify_recording(args.store, dek, expected)
            if args.command == "verify":
                result = {name: result.get(name) for name in ("grade", "state", "root")}
    except CmrError as error:
        code, result = 1, {"error": error.name, "detail": error.detail}
        if args.command == "object":
            result.update(frame_list(error.frames))
    print(json.dumps(result, indent=None if args.json else 2, default=bytes.hex))
    return code


if __name__ == "__main__":
    sys.exit(main())
