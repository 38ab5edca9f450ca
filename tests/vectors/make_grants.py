#!/usr/bin/env python3
"""Writes grants.json: signed playback grants, made without any code of callseal.

Run it from any folder, Python 3.9 or later, standard library only:

    python3 tests/vectors/make_grants.py

It prints nothing and is deterministic; a second run changes nothing.
"""

import base64
import hashlib
import hmac
import json
import pathlib
import urllib.parse

RECORDING = "018f4c2e7b5a7c3d9e1f0a2b3c4d5e6f"
KEY = bytes(range(32))
BASE = {"iat": 1760000000, "exp": 1760000300, "kid": "g1", "sub": "user-42"}


def canonical(fields):
    quoted = ((name, urllib.parse.quote(str(value), safe="")) for name, value in fields.items())
    return "&".join(f"{name}={value}" for name, value in sorted(quoted))


def vector(name, more=None, key=KEY, tenant="acme-dental", recording=RECORDING, listener=None, respell=None):
    """One vector; `respell` turns the canonical query into another spelling or order of the same values."""
    fields = {**BASE, **(more or {})}
    query = canonical(fields)
    text = f"callseal-grant-v1\n{tenant}\n{recording}\n{query}"
    digest = hmac.new(key, text.encode(), hashlib.sha256).digest()
    sig = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    shown = respell(query) if respell else query
    made = {
        "name": name,
        "made_by": "callseal" if respell is None and fields.get("track") != "both" else "another minter",
        "key_hex": key.hex(),
        "tenant": tenant,
        "recording": recording,
        "fields": fields,
        "canonical_query": query,
        "string_to_sign": text,
        "sig": sig,
        "url": f"/play/{tenant}/{recording}.wav?{shown}&sig={sig}",
    }
    if listener:
        made["listener"] = listener
    return made


VECTORS = [
    vector("the smallest grant"),
    vector("caller only, with a reason", {"track": "caller", "reason": "complaint 7"}),
    vector("agent only, for download", {"track": "agent", "dl": 1}),
    vector("both tracks, said openly", {"track": "both"}),
    vector("bound to IPv4 addresses", {"ip": "203.0.113.0/24"}, listener="203.0.113.200"),
    vector("bound to one IPv6 address", {"ip": "2001:db8::7/128"}, listener="2001:db8::7"),
    vector("mu-law for a machine", {"format": "ulaw", "kid": "Machine_key-2"}, key=b"\xff" * 64),
    vector("PCM for a page", {"format": "pcm"}, key=b"short"),
    vector("everything that needs an escape", {"sub": "jörg@example.com/+1 (a&b=c)~%", "reason": "größer? 100% «ja»"}),
    vector("another tenant and recording", tenant="a", recording="f" * 32),
    vector("the longest life", {"iat": 1760000000, "exp": 1760000900}),
    vector("lower-case escapes", {"sub": "a/b c"}, respell=lambda q: q.replace("%2F", "%2f")),
    vector("needless escapes and bare characters", {"sub": "a/b"}, respell=lambda q: q.replace("a%2Fb", "%61/%62")),
    vector("another order", {"dl": 1}, respell=lambda q: "&".join(reversed(q.split("&")))),
]

if __name__ == "__main__":
    about = (
        "Playback grants made by make_grants.py with Python's standard library alone. Each URL is accepted at its iat, from its "
        "listener's address. Keys are invented. 'another minter' means: valid, though callseal would spell it otherwise."
    )
    text = json.dumps({"about": about, "vectors": VECTORS}, indent=1, ensure_ascii=False)
    pathlib.Path(__file__).with_name("grants.json").write_text(text + "\n", encoding="utf-8")
