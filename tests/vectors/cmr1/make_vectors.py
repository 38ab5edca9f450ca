#!/usr/bin/env python3
"""Writes the CMR1 vectors beside this file: one fault each, every expectation stated by hand and asserted.

Objects are sealed by the tiny writer of tests/reader/cmr1.py. `--check` compares instead of writing.
"""
import hashlib, json, struct, sys, tempfile, zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "reader"))
import cmr1, xwing  # noqa: E402

DEK, TENANT = bytes(range(32)), "acme-dental"
TAG, RECORDING = cmr1.tenant_tag(TENANT), bytes.fromhex("018f4c2e7b5a7c3d9e1f0a2b3c4d5e6f")
EXPECTED = cmr1.Expected(TAG, RECORDING, cmr1.key_id(DEK, TAG, RECORDING))
WRITER, WRITER_2 = bytes(range(0xA0, 0xB0)), bytes(range(0xB0, 0xC0))
CREATED = 1760000000000
H, HEADER = cmr1.MIN_HEADER, range(cmr1.FIXED_HEADER)


def u(size, value):
    return value.to_bytes(size, "big")


def encode(value):
    """CBOR of the few types used here."""
    def head(major, n):
        return u(1, major << 5 | n) if n < 24 else u(1, major << 5 | 24) + u(1, n) if n < 256 \
            else u(1, major << 5 | 25) + u(2, n) if n < 65536 else u(1, major << 5 | 26) + u(4, n)
    if isinstance(value, int):
        return head(0, value) if value >= 0 else head(1, -1 - value)
    if isinstance(value, (str, bytes)):
        raw = value.encode() if isinstance(value, str) else value
        return head(3 if isinstance(value, str) else 2, len(raw)) + raw
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(encode, value))
    return head(5, len(value)) + b"".join(encode(k) + encode(v) for k, v in value.items())


def salt(label):
    return hashlib.sha256(b"salt of " + label.encode()).digest()


# Inner frames
def at(pts, payload, track=0):
    return u(1, 0x10 | track) + u(4, pts) + payload


def audio(payload, track=0):
    return u(1, track) + payload


def gap(pts, samples, reason, track=0):
    return u(1, 0x20 | track) + u(4, pts) + u(4, samples) + u(1, reason)


def event(pts, value, track=0):
    return u(1, 0x30 | track) + u(4, pts) + (value if isinstance(value, bytes) else encode(value))


def track_entry(track, role, **more):
    return {"track": track, "role": role, "codec": "ulaw", "rate": 8000, "channels": 1, **more}


def entry(track, frames, first, end, size, zero=0):
    return u(1, track) + u(1, zero) + u(2, 0) + u(4, frames) + u(4, first) + u(4, end) + u(8, size)


def trailer(count, entries=(), reason=1, n=None):
    return b"\xf0" + u(4, count) + u(1, reason) + u(1, len(entries) if n is None else n) + b"".join(entries)


ONE_TABLE = b"\x40" + encode([track_entry(0, "caller")])
TABLE = b"\x40" + encode([track_entry(0, "caller"), track_entry(1, "agent")])
META = {"from": "+15550100", "to": "+15550199", "call": "CA00"}
METADATA = b"\x50" + encode(META)
A, B = b"\x11" * 160, b"\x22" * 160
BODY = [ONE_TABLE, at(0, A), audio(B), at(480, A)]            # the base case of most faults
BASE = BODY + [trailer(5, [entry(0, 3, 0, 640, 480)])]


def sealed(label, inners, kind=cmr1.SEGMENT, writer=WRITER, seq=0, prev=bytes(16), extension=b"", created=CREATED,
           last=True, dek=DEK, **override):
    bound = cmr1.seal_header(kind, EXPECTED, writer, seq, created, salt(label), prev, extension, **override)
    return cmr1.seal_object(dek, bound, inners, last)


def frames_of(blob):
    """Header and the sealed frames of an object."""
    start, pieces = int.from_bytes(blob[12:16], "big"), []
    head, i = blob[:start], start
    while i < len(blob):
        end = i + 2 + (int.from_bytes(blob[i:i + 2], "big") & 0x7FFF)
        pieces.append(blob[i:end])
        i = end
    return head, pieces


def flip(blob, byte, mask=1):
    return blob[:byte] + u(1, blob[byte] ^ mask) + blob[byte + 1:]


def patch(blob, byte, value):
    return blob[:byte] + value + blob[byte + len(value):]


# ---------------------------------------------------------------- vectors.json

OBJECTS = []


def case(name, blob, expect, frames, note=None, in_recording=None, dek=DEK, expected=EXPECTED):
    got = cmr1.verdict(blob, dek, expected)
    assert got == (expect, frames), (name, got, expect, frames)
    if in_recording:
        try:
            opened = cmr1.whole_object(blob, dek, expected)
            if opened.header["type"] == cmr1.MANIFEST:
                cmr1.read_manifest(blob, dek, expected)
            else:
                cmr1.check_segment(opened)
            found = expect
        except cmr1.CmrError as error:
            found = error.name
        assert found == in_recording, (name, found)
    assert name not in [c["name"] for c in OBJECTS], name
    OBJECTS.append({"name": name, "dek": dek.hex(), "tenant_tag": expected.tenant_tag.hex(),
                    "recording_id": expected.recording_id.hex(), "key_id": expected.key_id.hex(),
                    "object": blob.hex(), "expect": expect, "frames": frames,
                    **({"in_recording": in_recording} if in_recording else {}), **({"note": note} if note else {})})


def good_objects():
    def good(name, inners, note=None, **header):
        blob = sealed(name, inners, **header)
        case(name, blob, "Complete", len(inners), note, in_recording="Complete")
    good("good: audio on one track", BASE)
    good("good: empty segment, track table and trailer only", [ONE_TABLE, trailer(2)])
    good("good: two tracks interleaved", [TABLE, at(0, A), at(40, B, 1), audio(B), audio(A, 1),
         trailer(6, [entry(0, 2, 0, 320, 320), entry(1, 2, 40, 360, 320)], 2)])
    good("good: metadata, audio, gap, events", [TABLE, METADATA, at(0, A), gap(160, 320, 1), event(170, {"t": "dtmf"}),
         at(480, B), event(500, {"t": "mark", "name": "greet-1"}, 1), trailer(8, [entry(0, 2, 0, 640, 320)], 3)])
    good("good: metadata over two frames", [ONE_TABLE, METADATA[:20], b"\x50" + METADATA[20:], trailer(4)])
    good("good: every gap reason", [ONE_TABLE] + [gap(160 * r, 160, r) for r in range(1, 6)] + [trailer(7)])
    good("good: every end reason, 5", [ONE_TABLE, trailer(2, reason=5)])
    good("good: unknown kind 9 is skipped and counted", [ONE_TABLE, b"\x90later", at(0, A), b"\x97", audio(B),
         trailer(6, [entry(0, 2, 0, 320, 320)])])
    good("good: unknown CBOR keys are ignored", [b"\x40" + encode([track_entry(0, "mixed", later=[1, -5, b"x"])]),
         trailer(2)])
    good("good: L = 17, the shortest frame", [ONE_TABLE, b"\x90", trailer(3)])
    good("good: L = 32767, the longest frame", [ONE_TABLE, at(0, b"\x33" * 32746),
         trailer(3, [entry(0, 1, 0, 32746, 32746)])])
    good("good: seq 7 with prev", [ONE_TABLE, trailer(2)], seq=7, prev=b"\x77" * 16)
    good("good: audio goes back in time", [ONE_TABLE, at(800, A), at(0, B), trailer(4, [entry(0, 2, 0, 960, 320)])],
         "first_pts is the smallest pts, end_pts the largest end")
    good("good: kind 0 after a gap continues the audio, not the gap", [ONE_TABLE, at(0, A), gap(160, 320, 2), audio(B),
         trailer(5, [entry(0, 2, 0, 320, 320)])],
         "section 5 says 'end of the track's previous frame'; read as its previous audio")
    good("good: audio without payload", [ONE_TABLE, at(80, b""), audio(b""), trailer(4, [entry(0, 2, 80, 80, 0)])])
    wide = b"\x40" + encode([track_entry(0, "channel", codec="s16le", rate=16000)])
    good("good: samples of two bytes", [wide, at(0, A), audio(B), gap(160, 80, 1), at(240, A),
         trailer(6, [entry(0, 3, 0, 320, 480)])])
    good("good: audio ends at the last pts", [ONE_TABLE, at(0xFFFFFF5F, A),
         trailer(3, [entry(0, 1, 0xFFFFFF5F, 0xFFFFFFFF, 160)])])


def header_faults():
    base = sealed("header", BASE)

    def resealed(name, expect, kind=cmr1.SEGMENT, **override):
        case(f"header: {name}", sealed("header", BASE, kind, **override), expect, 0)
    case("header: empty object", b"", "NotARecording", 0)
    case("header: magic", flip(base, 0), "NotARecording", 0)
    case("header: magic after a line-end conversion", base.replace(b"\r\n", b"\n", 1), "NotARecording", 0)
    case("header: magic cut", base[:7], "NotARecording", 0)
    case("header: cut after the magic", base[:8], "MalformedHeader", 0)
    case("header: cut inside the commitment", base[:175], "MalformedHeader", 0)
    for version in (0, 2):
        resealed(f"version {version}, sealed so", "UnsupportedVersion", version=version)
    for suite in (0, 2, 3):
        resealed(f"suite {suite}, sealed so", "UnsupportedSuite", suite=suite)
    for kind in (0, 3):
        resealed(f"type {kind}, sealed so", "MalformedHeader", kind)
    resealed("flags 1, sealed so", "MalformedHeader", flags=1)
    resealed("reserved bytes 1, sealed so", "MalformedHeader", reserved=1)
    resealed("segment with an extension, header_len 177, sealed so", "MalformedHeader", extension=b"\0")
    case("header: header_len 175", patch(base, 12, u(4, 175)), "MalformedHeader", 0)
    case("header: header_len 177", patch(base, 12, u(4, 177)), "MalformedHeader", 0)
    case("header: header_len 0", patch(base, 12, u(4, 0)), "MalformedHeader", 0)
    case("header: manifest with header_len past the object", patch(MANIFEST_OBJECT, 12, u(4, len(MANIFEST_OBJECT) + 1)),
         "MalformedHeader", 0)
    case("header: manifest with header_len past 4 MiB", patch(MANIFEST_OBJECT, 12, u(4, (4 << 20) + 1)),
         "MalformedHeader", 0)
    case("header: type changed to manifest", patch(base, 10, b"\2"), "WrongKeyOrTamperedHeader", 0)
    other = {"tenant_tag": (cmr1.tenant_tag("another"), RECORDING, EXPECTED.key_id),
             "recording_id": (TAG, flip(RECORDING, 15), EXPECTED.key_id),
             "key_id": (TAG, RECORDING, flip(EXPECTED.key_id, 0))}
    for n, (name, want) in enumerate(other.items()):
        case(f"header: {name} flipped", flip(base, 16 + 16 * n), "ContextMismatch", 0)
        case(f"header: another {name} authorised", base, "ContextMismatch", 0, expected=cmr1.Expected(*want))
    for name, byte in (("writer_id", 64), ("seq", 83), ("created_ms", 95), ("salt", 96), ("prev", 128),
                       ("commitment, first byte", 144), ("commitment, last byte", 175)):
        case(f"header: {name} flipped", flip(base, byte), "WrongKeyOrTamperedHeader", 0)
    case("header: reserved bytes flipped", flip(base, 87), "MalformedHeader", 0)
    case("header: wrong DEK", base, "WrongKeyOrTamperedHeader", 0, dek=flip(DEK, 31))


def frame_faults():
    base = sealed("frames", BASE)
    head, f = frames_of(base)
    torn = sealed("torn", BODY, last=False)
    other = frames_of(sealed("frames of another object", BASE))[1]

    def glue(*pieces):
        return head + b"".join(pieces)
    for length in (0, 16):
        short = u(2, length) + bytes(length)
        case(f"frames: L = {length}", glue(f[0], short, *f[1:]), "MalformedFrame", 1)
    case("frames: L = 16 with F", glue(f[0], u(2, 0x8010) + bytes(16)), "MalformedFrame", 1)
    case("frames: L one too small", patch(base, H, u(2, len(f[0]) - 3)), "FrameAuth", 0)
    case("frames: L past the end", patch(base, H, u(2, 0x7FFF)), "TornTail", 0,
         "the manifest's row flag catches this one")
    case("frames: two swapped", glue(f[0], f[2], f[1], *f[3:]), "FrameAuth", 1)
    case("frames: one repeated", glue(f[0], f[1], f[1], *f[2:]), "FrameAuth", 2)
    case("frames: one dropped", glue(f[0], f[1], *f[3:]), "FrameAuth", 2)
    case("frames: first dropped", glue(*f[1:]), "FrameAuth", 0)
    case("frames: one of another object", glue(f[0], other[1], *f[2:]), "FrameAuth", 1)
    case("frames: F set on a middle frame", flip(base, H + len(f[0]), 0x80), "FrameAuth", 1)
    case("frames: F cleared on the trailer", flip(base, len(base) - len(f[4]), 0x80), "FrameAuth", 4)
    case("frames: ciphertext flipped", flip(base, H + len(f[0]) + 2), "FrameAuth", 1)
    case("frames: tag flipped", flip(base, H + len(f[0] + f[1]) - 1), "FrameAuth", 1)
    case("frames: frame 0 flipped", flip(base, H + 2), "FrameAuth", 0)
    case("frames: trailer flipped", flip(base, len(base) - 1), "FrameAuth", 4)
    case("frames: F on audio", sealed("F on audio", BODY), "MalformedFrame", 3)
    case("frames: F on an unknown kind", sealed("F on kind 9", [ONE_TABLE, b"\x90"]), "MalformedFrame", 1)
    case("frames: kind 15 without F", sealed("no F", BASE, last=False), "MalformedFrame", 4)
    case("frames: kind 15 without F, then the true trailer", sealed("two", [ONE_TABLE, trailer(2), trailer(3)]),
         "MalformedFrame", 1)
    for name, extra in (("one byte", b"\0"), ("a second trailer", f[4]), ("a whole object", base)):
        case(f"trailing: {name} after the trailer", base + extra, "TrailingData", 5,
             "the open itself is Complete; the consumed length is shorter than the object")
    case("torn: header only", head, "Unfinished", 0)
    case("torn: one byte of a prefix", head + f[0][:1], "TornTail", 0)
    case("torn: prefix only", head + f[0][:2], "TornTail", 0)
    case("torn: prefix of L = 16 only", head + u(2, 16), "TornTail", 0, "section 13.1 looks for whole frames first")
    case("torn: last byte of frame 0 missing", head + f[0][:-1], "TornTail", 0)
    for n in (1, 2, 4):
        case(f"torn: after {n} whole frames", glue(*f[:n]), "Unfinished", n)
    case("torn: inside frame 2", glue(*f[:2], f[2][:50]), "TornTail", 2)
    case("torn: first byte of the trailer", glue(*f[:4], f[4][:1]), "TornTail", 4)
    case("torn: last byte of the trailer missing", base[:-1], "TornTail", 4)
    case("torn: writer stopped without a trailer", torn, "Unfinished", 4, in_recording="Unfinished")
    case("torn: cut, then a flipped frame before it", flip(torn, H + len(f[0]) + 2)[:-1], "FrameAuth", 1)


def content_faults():
    def bad(name, inners, frames, note=None):
        case(name, sealed(name, inners), "MalformedFrame", frames, note)

    def placed(name, inners, in_recording="MalformedFrame", note=None, **header):
        case(name, sealed(name, inners, **header), "Complete", len(inners), note, in_recording)
    good = [entry(0, 3, 0, 640, 480)]
    bad("trailer: counts one frame too many", BODY + [trailer(6, good)], 4)
    bad("trailer: counts one frame too few", BODY + [trailer(4, good)], 4)
    for name, wrong in (("frames", entry(0, 4, 0, 640, 480)), ("first_pts", entry(0, 3, 1, 640, 480)),
                        ("end_pts", entry(0, 3, 0, 480, 480)), ("payload bytes", entry(0, 3, 0, 640, 481))):
        bad(f"trailer: {name} of a track wrong", BODY + [trailer(5, [wrong])], 4)
    bad("trailer: lists a track without audio", BODY + [trailer(5, good + [entry(1, 0, 0, 0, 0)])], 4)
    bad("trailer: lists a track twice", BODY + [trailer(5, good * 2)], 4)
    bad("trailer: reserved byte of an entry", BODY + [trailer(5, [entry(0, 3, 0, 640, 480, 1)])], 4)
    bad("trailer: n larger than its entries", BODY + [trailer(5, good, n=2)], 4)
    bad("trailer: bytes after its entries", BODY + [trailer(5, good) + b"\0"], 4)
    bad("trailer: body too short", BODY + [trailer(5)[:6]], 4)
    placed("trailer: omits a track with audio", BODY + [trailer(5)],
           note="the object opens, as in the tiny vector; a row of a recording must list its tracks")
    placed("trailer: end reason 0", [ONE_TABLE, trailer(2, reason=0)], note="the object opens, as in the tiny vector")
    placed("trailer: end reason 6", [ONE_TABLE, trailer(2, reason=6)])
    bad("pts: first audio of a track without pts", [ONE_TABLE, audio(A), trailer(3)], 1)
    bad("pts: first audio of the second track without pts", [TABLE, at(0, A), audio(B, 1), trailer(4)], 2)
    bad("pts: a gap is no start for audio without pts", [ONE_TABLE, gap(0, 160, 1), audio(A), trailer(4)], 2)
    bad("pts: explicit pts cut to 3 bytes", [ONE_TABLE, b"\x10\0\0\0", trailer(3)], 1)
    bad("pts: audio runs past u32", [ONE_TABLE, at(0xFFFFFF60, A), trailer(3)], 1)
    bad("pts: continued audio runs past u32", [ONE_TABLE, at(0xFFFFFF5F, A), audio(b"\1"), trailer(4)], 2)
    bad("pts: gap runs past u32", [ONE_TABLE, gap(0xFFFFFFFF, 1, 1), trailer(3)], 1)
    bad("gap: reason 0", [ONE_TABLE, gap(0, 160, 0), trailer(3)], 1)
    bad("gap: reason 6", [ONE_TABLE, gap(0, 160, 6), trailer(3)], 1,
        "section 12 lets kinds and CBOR keys grow, not reasons")
    bad("gap: body one byte short", [ONE_TABLE, gap(0, 160, 1)[:-1], trailer(3)], 1)
    bad("gap: body one byte long", [ONE_TABLE, gap(0, 160, 1) + b"\0", trailer(3)], 1)
    bad("event: pts cut", [ONE_TABLE, b"\x30\0\0", trailer(3)], 1)
    wide = b"\x40" + encode([track_entry(0, "channel", codec="s16le", rate=16000)])
    bad("codec: audio ends inside a sample of two bytes", [wide, at(0, b"\1\2\3"), trailer(3)], 1)
    bad("codec: trailer counts bytes for samples", [wide, at(0, A), trailer(3, [entry(0, 1, 0, 160, 160)])], 2)
    placed("place: tracks of several formats", [b"\x40" + encode([track_entry(0, "caller"),
           track_entry(1, "agent", codec="s16le")]), trailer(2)])
    placed("place: track table with a rate of no provider", [b"\x40" + encode([track_entry(0, "caller", rate=7999)]),
           trailer(2)])
    for name, body in (("no CBOR at all", b""), ("cut", encode({"t": "dtmf"})[:-1]), ("no map", encode(["dtmf"])),
                       ("bytes after it", encode({"t": "dtmf"}) + b"\0"), ("indefinite length", b"\xbf\xff"),
                       ("a key twice", b"\xa2\x61t\1\x61t\2"), ("text is not UTF-8", b"\xa1\x61t\x61\xff"),
                       ("a tag", b"\xa1\x61t\xc1\0"), ("length past the end", b"\xa1\x61t\x7b" + b"\xff" * 8)):
        bad(f"event: CBOR, {name}", [ONE_TABLE, event(0, body), trailer(3)], 1)
    placed("place: frame 0 is no track table", BASE[1:4] + [trailer(4, good)])
    placed("place: a second track table", [ONE_TABLE, ONE_TABLE, trailer(3)])
    placed("place: track table is no array", [b"\x40" + encode(track_entry(0, "caller")), trailer(2)])
    placed("place: track table with an unknown role", [b"\x40" + encode([track_entry(0, "listener")]), trailer(2)])
    placed("place: track table with an unknown codec", [b"\x40" + encode([track_entry(0, "caller", codec="opus")]),
           trailer(2)])
    placed("place: track table lists a track twice", [b"\x40" + encode([track_entry(0, "caller")] * 2), trailer(2)])
    placed("place: audio of a track outside the table", [ONE_TABLE, at(0, A, 3),
           trailer(3, [entry(3, 1, 0, 160, 160)])])
    placed("place: metadata after audio", [ONE_TABLE, at(0, A), METADATA, trailer(4, [entry(0, 1, 0, 160, 160)])])
    placed("place: metadata in seq 1", [ONE_TABLE, METADATA, trailer(3)], seq=1, prev=b"\x77" * 16)
    placed("place: metadata cut", [ONE_TABLE, METADATA[:-1], trailer(3)])
    placed("place: time index in a segment", [ONE_TABLE, b"\x60\0", trailer(3)])


# ---------------------------------------------------------------- recordings, also the manifest objects

class Call:
    """A small recording: two writers, the second row of each chained; the last row has no trailer if `torn`."""

    def __init__(self, torn=False, prev=None, second_created=CREATED + 9000):
        first = sealed("row 0", [TABLE, METADATA, at(100, A), at(100, B, 1), gap(260, 160, 2),
                       trailer(6, [entry(0, 1, 100, 260, 160), entry(1, 1, 100, 260, 160)])])
        second = sealed("row 1", [TABLE, at(420, B), event(430, {"t": "dtmf", "digit": "5"}), at(500, A), audio(B),
                        trailer(6, [entry(0, 3, 420, 820, 480)], 4)], seq=1,
                        prev=first[144:160] if prev is None else prev, created=CREATED + 5000)
        inners = [TABLE, METADATA, at(900, A, 1), audio(B, 1)] + \
            ([] if torn else [trailer(5, [entry(1, 2, 900, 1220, 320)], 2)])
        third = sealed("row 2", inners, writer=WRITER_2, created=second_created, last=not torn)
        self.rows = [(0, 0, 1, first), (0, 1, 1, second), (1, 0, 2 if torn else 1, third)]
        self.writers, self.none = [WRITER, WRITER_2], (cmr1.NO_AUDIO,) * 2
        self.spans = [((100, 260), (100, 260)), ((420, 820), self.none), (self.none, (900, 1220))]
        self.state = 1 if torn else 0

    def extension(self, rows=None):
        rows = self.rows if rows is None else rows
        return u(2, len(self.writers)) + b"".join(self.writers) + u(4, len(rows)) + b"".join(
            u(2, w) + u(1, flags) + b"\0" + u(4, seq) + u(4, len(blob)) + hashlib.sha256(blob).digest()
            for w, seq, flags, blob in rows)

    def index(self):
        return b"\x60\2\0\1" + b"".join(u(4, v) for row in self.spans for span in row for v in span)

    def frames(self):
        return [METADATA, self.index(), b"\xf0" + u(1, self.state) + encode({"by": "stop"})]

    def manifest(self, revision=0, extension=None, frames=None, **header):
        return sealed("manifest", self.frames() if frames is None else frames, cmr1.MANIFEST, bytes(16), revision,
                      extension=self.extension() if extension is None else extension, created=CREATED + 20000, **header)

    def segments(self):
        return {f"s/{self.writers[w].hex()}-{seq:08}.cmr": blob for w, seq, _, blob in self.rows}

    def folder(self, manifest=None, revision=0):
        return {**self.segments(), f"m-{revision:04}.cmr": self.manifest(revision) if manifest is None else manifest}

    def final(self, manifest=None, between=b"", rows=None, **tail):
        body = b"".join(blob for *_, blob in (self.rows if rows is None else rows)) + between
        manifest = self.manifest() if manifest is None else manifest
        t = {"offset": len(body), "size": len(manifest), "n": len(self.rows), "zero": 0, "crc": 0, **tail}
        end = b"CMRTAIL1" + u(8, t["offset"]) + u(4, t["size"]) + u(4, t["n"]) + u(4, t["zero"])
        return {"final.cmr": body + manifest + end + u(4, zlib.crc32(end) ^ t["crc"])}


MANIFEST_OBJECT = Call().manifest()


def manifest_objects():
    call = Call()

    def placed(name, in_recording, note=None, **change):
        blob = call.manifest(**change)
        case(f"manifest: {name}", blob, "Complete", len(change.get("frames", call.frames())), note, in_recording)
    extension, frames = call.extension(), call.frames()
    first_row = 2 + 32 + 4
    placed("good", "Complete")
    placed("good, time index over two frames", "Complete",
           frames=[frames[0], frames[1][:9], b"\x60" + frames[1][9:], frames[2]])
    placed("good, unknown kind 9 is skipped", "Complete", frames=[frames[0], b"\x90", *frames[1:]])
    for name, change in (("row table one byte long", extension + b"\0"), ("row table one byte short", extension[:-1]),
                         ("no row table", b""), ("n_rows one more", patch(extension, 34, u(4, 4))),
                         ("n_rows of 2^32 - 1", patch(extension, 34, u(4, 0xFFFFFFFF))),
                         ("writer index out of range", patch(extension, first_row, u(2, 2))),
                         ("row flags 0", patch(extension, first_row + 2, b"\0")),
                         ("row flags 3", patch(extension, first_row + 2, b"\3")),
                         ("row flags 4", patch(extension, first_row + 2, b"\4")),
                         ("row reserved byte", patch(extension, first_row + 3, b"\1")),
                         ("a writer listed twice", patch(extension, 18, WRITER))):
        placed(name, "MalformedHeader", extension=change)
    for name, change in (("no metadata", frames[1:]), ("no time index", [frames[0], frames[2]]),
                         ("time index before metadata", [frames[1], frames[0], frames[2]]),
                         ("track table", [TABLE, *frames]), ("audio", [frames[0], at(0, A), *frames[1:]]),
                         ("time index one byte short", [frames[0], frames[1][:-1], frames[2]]),
                         ("time index tracks not ascending", [frames[0], b"\x60\2\1\0" + frames[1][4:], frames[2]]),
                         ("metadata is no map", [b"\x50" + encode([1]), *frames[1:]])):
        placed(name, "MalformedFrame", frames=change)
    placed("prev is not zero", "ChainMismatch", prev=b"\1" * 16)
    for name, body in (("state 3", b"\3" + encode({})), ("no reason map", b"\0"), ("empty trailer", b"")):
        case(f"manifest: {name}", call.manifest(frames=frames[:2] + [b"\xf0" + body]), "MalformedFrame", 2)
    case("manifest: no trailer", call.manifest(frames=frames[:2], last=False), "Unfinished", 2,
         in_recording="StateMismatch")
    case("manifest: a row's digest flipped", flip(call.manifest(), 144 + first_row + 12), "WrongKeyOrTamperedHeader", 0)


RECORDINGS, INTEGRITY = [], "integrity"


def recording(name, files, expect, without_key=None, note=None):
    """`expect`: the state or the error class with the DEK. `without_key`: the same store at grade integrity;
    "integrity" if that holds, which is so for every good store and for faults that only the key shows."""
    def run(dek, expected):
        with tempfile.TemporaryDirectory() as store:
            for path, blob in files.items():
                target = Path(store, "r", TAG.hex(), RECORDING.hex(), path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(blob)
            try:
                report = cmr1.verify_recording(store, dek, expected)
                return report["grade" if dek is None else "state"], report
            except cmr1.CmrError as error:
                return error.name, error.detail
    good = expect[0].islower()
    without_key = without_key or (INTEGRITY if good else expect)
    (got, report), (bare, detail) = run(DEK, EXPECTED), run(None, cmr1.Expected(TAG, RECORDING))
    assert (got, bare) == (expect, without_key), (name, got, expect, report, bare, without_key, detail)
    assert name not in [c["name"] for c in RECORDINGS], name
    RECORDINGS.append({"name": name, "dek": DEK.hex(), "tenant": TENANT, "recording_id": RECORDING.hex(),
                       "files": {path: blob.hex() for path, blob in files.items()}, "expect": expect,
                       "without_key": without_key, **({"note": note} if note else {}),
                       **({"report": json.loads(json.dumps(report, default=bytes.hex))} if good else {})})


def recordings():
    ok, torn = Call(), Call(torn=True)

    def tampered(name, rows, expect, spans=None, without=None, base=ok):
        call = Call(base is torn)
        call.rows, call.spans = rows, call.spans if spans is None else spans
        recording(name, call.final(), expect, without)
    r, s, none = ok.rows, ok.spans, ok.none
    recording("good: final", ok.final(), "complete")
    recording("good: manifest and segments", ok.folder(), "complete")
    recording("good: the final wins over what is left of its parts", {**ok.folder(), **ok.final()}, "complete")
    recording("good: the highest revision counts", {**torn.folder(ok.manifest()), "m-0001.cmr": torn.manifest(1)},
              "recovered")
    recording("good: recovered, last row cut in a frame", cut_call().folder(), "recovered")
    recording("good: recovered, last row without trailer", torn.final(), "recovered")
    recording("good: a stored segment that no row lists", {**ok.folder(),
              f"s/{'c' * 32}-00000000.cmr": b""}, "complete", note="reported as unlisted, not read")
    recording("good: still running", ok.segments(), "running")
    recording("good: still running, torn at the end", torn.segments(), "running")
    recording("good: writers in order of created_ms", Call(second_created=CREATED - 1).segments(), "running")
    empty = Call()
    empty.rows, empty.spans = [], []
    recording("good: no rows at all", empty.final(), "complete")

    recording("tail: missing", {"final.cmr": ok.final()["final.cmr"][:-32]}, "NoTail")
    recording("tail: cut by one byte", {"final.cmr": ok.final()["final.cmr"][:-1]}, "NoTail")
    recording("tail: a byte after it", {"final.cmr": ok.final()["final.cmr"] + b"\0"}, "NoTail")
    recording("tail: empty object", {"final.cmr": b""}, "NoTail")
    recording("tail: checksum", ok.final(crc=1), "NoTail")
    recording("tail: reserved bytes", ok.final(zero=1), "NoTail")
    recording("tail: counts one segment more", ok.final(n=4), "NoTail")
    size, offset = len(ok.manifest()), sum(len(row[3]) for row in r)
    recording("tail: manifest one byte shorter", ok.final(size=size - 1), "NoTail")
    recording("tail: manifest one byte later", ok.final(offset=offset + 1, size=size - 1), "NotARecording")
    recording("final: a byte between rows and manifest", ok.final(between=b"\0"), "TrailingData")
    recording("final: manifest with a byte after it", ok.final(ok.manifest() + b"\0"), "TrailingData")
    recording("final: a segment in the manifest's place", ok.final(r[0][3]), "StateMismatch")
    recording("final: manifest cut inside its trailer", ok.final(ok.manifest()[:-1]), "StateMismatch")
    recording("final: manifest frame flipped", ok.final(flip(ok.manifest(), size - 1)), "FrameAuth", INTEGRITY)
    recording("final: manifest row flipped", ok.final(flip(ok.manifest(), 144 + 38 + 12)), "WrongKeyOrTamperedHeader",
              "DigestMismatch")
    recording("final: two rows' bytes swapped", ok.final(rows=[r[1], r[0], r[2]]), "DigestMismatch")
    recording("final: last row's bytes missing", ok.final(rows=r[:2]), "DigestMismatch")
    recording("final: a bit of a row flipped", {"final.cmr": flip(ok.final()["final.cmr"], 400)}, "DigestMismatch")

    recording("folder: a segment is missing", {k: v for k, v in ok.folder().items() if "-00000001" not in k},
              "DigestMismatch")
    name = f"s/{WRITER.hex()}-00000001.cmr"
    recording("folder: a segment cut", {**ok.folder(), name: r[1][3][:-1]}, "DigestMismatch")
    recording("folder: a segment with a bit flipped", {**ok.folder(), name: flip(r[1][3], 300)}, "DigestMismatch")
    recording("folder: revision and object name differ", {**ok.segments(), "m-0001.cmr": ok.manifest(0)},
              "SequenceMismatch")
    recording("folder: nothing stored", {}, "NotARecording")

    tampered("rows: two of a writer swapped", [r[1], r[0], r[2]], "SequenceMismatch", [s[1], s[0], s[2]])
    tampered("rows: first dropped", [r[1], r[2]], "SequenceMismatch", [s[1], s[2]])
    tampered("rows: one twice", [r[0], r[0], r[1], r[2]], "SequenceMismatch", [s[0], s[0], s[1], s[2]])
    tampered("rows: seq differs from the segment's", [r[0], (0, 2, 1, r[1][3]), r[2]], "SequenceMismatch")
    tampered("rows: writer differs from the segment's", [r[0], r[1], (0, 2, 1, r[2][3])], "SequenceMismatch")
    tampered("rows: complete segment flagged as torn", [r[0], r[1], (1, 0, 2, r[2][3])], "StateMismatch")
    t = torn.rows
    tampered("rows: torn segment flagged as complete", [t[0], t[1], (1, 0, 1, t[2][3])], "StateMismatch", base=torn)
    cut = r[0][3][:-1]
    tampered("rows: torn segment before its writer's last", [(0, 0, 2, cut), r[1], r[2]], "StateMismatch")
    tampered("rows: a byte after a segment", [r[0], (0, 1, 1, r[1][3] + b"\0"), r[2]], "TrailingData")
    tampered("rows: time index differs", r, "StateMismatch", [s[0], ((420, 821), none), s[2]], INTEGRITY)
    tampered("rows: time index says audio where there is none", r, "StateMismatch", [s[0], s[1], ((0, 0), s[2][1])],
             INTEGRITY)
    tampered("rows: a manifest as a row", [r[0], r[1], (1, 0, 1, ok.manifest())], "StateMismatch")
    recording("chain: prev of seq 1 is another", Call(prev=b"\7" * 16).final(), "ChainMismatch")
    recording("chain: prev of seq 1 is zero", Call(prev=bytes(16)).final(), "ChainMismatch")
    call = Call()
    call.rows[0] = (0, 0, 1, sealed("prev", [TABLE, trailer(2)], prev=b"\7" * 16))
    recording("chain: prev of seq 0 is not zero", call.final(), "ChainMismatch")
    call = Call()
    call.rows[2] = (1, 0, 1, flip(call.rows[2][3], 300))
    recording("rows: frame flipped, digest over the flipped bytes", call.final(), "FrameAuth", INTEGRITY)
    call.rows[2] = (1, 0, 1, sealed("row of another key", [TABLE, trailer(2)], writer=WRITER_2, dek=b"\7" * 32))
    recording("rows: sealed with another DEK under this key_id", call.final(), "WrongKeyOrTamperedHeader", INTEGRITY)
    segments = ok.segments()
    recording("running: a segment is missing", {k: v for k, v in segments.items()
              if k != f"s/{WRITER.hex()}-00000000.cmr"}, "SequenceMismatch")
    recording("running: a segment under another name", {f"s/{WRITER.hex()}-00000002.cmr" if k == name else k: v
              for k, v in segments.items()}, "SequenceMismatch")
    recording("running: a torn segment before the writer's last", {**segments, f"s/{WRITER.hex()}-00000000.cmr": cut},
              "StateMismatch")


def cut_call():
    call = Call(torn=True)
    call.rows[2] = (1, 0, 2, call.rows[2][3][:-7])
    call.spans[2] = (call.none, (900, 1060))
    return call


# ---------------------------------------------------------------- wraps.json

def wraps():
    cases, kek, kid = [], b"\1" * 32, EXPECTED.key_id
    context = cmr1.wrap_context(TAG, RECORDING, kid, "local/acme/v1")
    good = cmr1.wrap_local(DEK, kek, b"\x33" * 32, context)

    def wrap(name, blob, expect, kek=kek, tag=TAG, recording=RECORDING, kid=kid, kek_name="local/acme/v1", note=None):
        try:
            got = cmr1.unwrap_local(blob, kek, cmr1.wrap_context(tag, recording, kid, kek_name)).hex()
        except cmr1.CmrError as error:
            got = error.name
        assert got == expect, (name, got)
        cases.append({"name": name, "kek": kek.hex(), "kek_name": kek_name, "tenant_tag": tag.hex(),
                      "recording_id": recording.hex(), "key_id": kid.hex(), "blob": blob.hex(),
                      **({"dek": expect} if expect == DEK.hex() else {"expect": expect}),
                      **({"note": note} if note else {})})
    wrong = "WrongKeyOrTamperedHeader"
    wrap("good: the published wrap", good, DEK.hex())
    named = f"local/{TENANT}/v12"
    wrap("good: another salt and KEK name", cmr1.wrap_local(DEK, kek, salt("wrap"), cmr1.wrap_context(
        TAG, RECORDING, kid, named)), DEK.hex(), kek_name=named)
    wrap("wrong KEK", good, wrong, kek=b"\2" * 32)
    wrap("wrong tenant", good, wrong, tag=cmr1.tenant_tag("another"))
    wrap("wrong recording", good, wrong, recording=flip(RECORDING, 0))
    wrap("wrong key_id", good, wrong, kid=flip(kid, 0))
    wrap("wrong KEK version", good, wrong, kek_name="local/acme/v2")
    wrap("wrong KEK name", good, wrong, kek_name="local/acne/v1")
    open_class = "section 14 names no class for a wrap's form"
    for name, blob in (("one byte short", good[:-1]), ("one byte long", good + b"\0"), ("empty", b"")):
        wrap(f"length: {name}", blob, "MalformedHeader", note=open_class)
    for version in (0, 2):
        wrap(f"version {version}", patch(good, 0, u(1, version)), "UnsupportedVersion", note=open_class)
    wrap("salt flipped", flip(good, 1), wrong)
    wrap("commitment flipped, first byte", flip(good, 33), wrong)
    wrap("commitment flipped, last byte", flip(good, 64), wrong)
    for name, byte in (("ciphertext flipped, first byte", 65), ("ciphertext flipped, last byte", 96),
                       ("tag flipped, last byte", 112)):
        wrap(name, flip(good, byte), "FrameAuth", note="tag failed, though a wrap has no frame")
    return cases


# ---------------------------------------------------------------- xwing.json and recipients.json

def xwings():
    """The published vectors of X-Wing, with private keys expanded and one changed ciphertext each."""
    cases = []
    for published in json.loads((HERE / "xwing-draft.json").read_text()):
        seed, eseed, pk, ct, ss = (bytes.fromhex(published[name]) for name in ("seed", "eseed", "pk", "ct", "ss"))
        private = xwing.expand(seed)
        assert (xwing.public_of(private), xwing.encapsulate(pk, eseed)) == (pk, (ss, ct)), published["seed"]
        assert xwing.decapsulate(private, ct) == ss, published["seed"]
        changed = flip(ct, 7)
        cases.append({"private": private.hex(), "pk": pk.hex(), "ct": ct.hex(), "ss": ss.hex(),
                      "changed_ct": changed.hex(), "changed_ss": xwing.decapsulate(private, changed).hex()})
    return cases


PAIRS = [(xwing.expand(salt(f"seed {n}")), salt(f"sender {n}")) for n in (1, 2)]
PAIRS.append((PAIRS[0][0], PAIRS[1][1]))


def pairs():
    return [{"kek": "xwing/" + cmr1.recipient_name(*pair).hex(), "private": pair[0].hex(), "sender": pair[1].hex()}
            for pair in PAIRS]


def recipients():
    """Wraps for a recipient; `pair` is the place of the key pair that they are opened with."""
    kid, cases = EXPECTED.key_id, []
    eseed, ids = salt("eseed m") + salt("eseed x"), (TAG, RECORDING, kid)
    good = cmr1.wrap_recipient(DEK, *PAIRS[0], eseed, salt("recipient"), ids)
    box = 1 + xwing.CIPHERTEXT

    def wrap(name, blob, expect, pair=0, tag=TAG, recording=RECORDING, kid=kid):
        try:
            got = cmr1.unwrap_recipient(blob, *PAIRS[pair], (tag, recording, kid)).hex()
        except cmr1.CmrError as error:
            got = error.name
        assert got == expect, (name, got)
        cases.append({"name": name, "pair": pair, "tenant_tag": tag.hex(), "recording_id": recording.hex(),
                      "key_id": kid.hex(), "blob": blob.hex(),
                      **({"dek": expect} if expect == DEK.hex() else {"expect": expect})})
    wrong = "WrongKeyOrTamperedHeader"
    wrap("good", good, DEK.hex())
    wrap("good: of the other key pair", cmr1.wrap_recipient(DEK, *PAIRS[1], eseed, salt("recipient"), ids), DEK.hex(),
         pair=1)
    wrap("wrong key pair", good, wrong, pair=1)
    wrap("wrong sender key", good, wrong, pair=2)
    wrap("made without the sender key", cmr1.wrap_recipient(DEK, PAIRS[0][0], bytes(32), eseed, salt("recipient"), ids),
         wrong)
    wrap("wrong tenant", good, wrong, tag=cmr1.tenant_tag("another"))
    wrap("wrong recording", good, wrong, recording=flip(RECORDING, 0))
    wrap("wrong key_id", good, wrong, kid=flip(kid, 0))
    for name, blob in (("one byte short", good[:-1]), ("one byte long", good + b"\0"), ("empty", b""),
                       ("a local wrap", good[box:]), ("nothing but what was encapsulated", good[:box])):
        wrap(f"length: {name}", blob, "MalformedHeader")
    for version in (0, 2):
        wrap(f"version {version}", patch(good, 0, u(1, version)), "UnsupportedVersion")
    wrap("version 2 of the box", patch(good, box, u(1, 2)), "UnsupportedVersion")
    wrap("ML-KEM flipped, first byte", flip(good, 1), wrong)
    wrap("ML-KEM flipped, last byte", flip(good, 1088), wrong)
    wrap("X25519 flipped", flip(good, 1089), wrong)
    wrap("X25519 that comes to nothing", patch(good, 1089, bytes(32)), wrong)
    wrap("salt flipped", flip(good, box + 1), wrong)
    wrap("commitment flipped", flip(good, box + 33), wrong)
    wrap("ciphertext flipped", flip(good, box + 65), "FrameAuth")
    wrap("tag flipped", flip(good, box + 112), "FrameAuth")
    return cases


def main():
    for group in (good_objects, header_faults, frame_faults, content_faults, manifest_objects, recordings):
        group()
    stale = []
    for name, cases in (("vectors.json", OBJECTS), ("recordings.json", RECORDINGS), ("wraps.json", wraps()),
                        ("xwing.json", xwings()), ("recipients.json", recipients())):
        more = {"pairs": pairs()} if name == "recipients.json" else {}
        text = json.dumps({"format": "CMR1", **more, "cases": cases}, indent=1, ensure_ascii=False) + "\n"
        if "--check" not in sys.argv[1:]:
            (HERE / name).write_text(text)
        elif (HERE / name).read_text() != text:
            stale.append(name)
        print(f"{name}: {len(cases)} cases, {len(text)} bytes")
    return f"stale: {', '.join(stale)}" if stale else 0


if __name__ == "__main__":
    sys.exit(main())
