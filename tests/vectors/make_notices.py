#!/usr/bin/env python3
"""Writes notices.json: signed notices, made without any code of callseal.

Run it from any folder, Python 3.9 or later, standard library only:

    python3 tests/vectors/make_notices.py

It prints nothing and is deterministic; a second run changes nothing.
"""

import hashlib
import hmac
import json
import pathlib

OLD, NEW, FOREIGN = bytes(range(32)), bytes(range(32, 64)), b"\xff" * 48
AT = 1790000000
BODY = json.dumps(
    {
        "id": "5f0c1d2e3b4a59687786958493a2b1c0",
        "type": "audio.lost",
        "created": "2026-09-21T13:33:20Z",
        "tenant": "acme-dental",
        "recording": "018f4c2e7b5a7c3d9e1f0a2b3c4d5e6f",
        "revision": 0,
        "lost_ms": 1020,
    },
    separators=(",", ":"),
)


def headers(secrets, timestamp, body):
    def signed(text):
        return ",".join("sha256=" + hmac.new(key, text.encode(), hashlib.sha256).hexdigest() for key in secrets)

    return {
        "x-callseal-timestamp": str(timestamp),
        "x-signature-256": signed(body),
        "x-callseal-signature": signed(f"{timestamp}.{body}"),
    }


def vector(name, accepted, signs=(OLD,), has=(OLD,), body=BODY, now=AT + 2, change=None, sent=None):
    """One vector: `signs` are callseal's secrets, `has` the receiver's; `sent` is what came of the body on the way."""
    made = headers(signs, AT, body)
    if change:
        change(made)
    return {
        "name": name,
        "accepted": accepted,
        "made_by": "callseal" if change is None and sent is None else "somebody else",
        "secrets_hex": [key.hex() for key in signs],
        "receiver_secrets_hex": [key.hex() for key in has],
        "timestamp": AT,
        "now": now,
        "headers": made,
        "body": body if sent is None else sent,
    }


def set_header(name, value):
    return lambda made: made.__setitem__(name, value(made[name]))


def remove(name):
    return lambda made: made.pop(name)


CASES = [
    vector("one secret", True),
    vector("both secrets, the receiver has the old one", True, signs=(OLD, NEW)),
    vector("both secrets, the receiver has the new one", True, signs=(OLD, NEW), has=(NEW,)),
    vector("one secret, the receiver has both", True, signs=(NEW,), has=(OLD, NEW)),
    vector("a long secret", True, signs=(FOREIGN,), has=(FOREIGN,)),
    vector("an empty body", False, body="", has=(NEW,)),
    vector("not only ASCII in the body", True, body='{"tenant":"Zahn\u00e4rzte","id":"\u2713"}'),
    vector("five minutes late", True, now=AT + 300),
    vector("five minutes early", True, now=AT - 300),
    vector("replayed after five minutes", False, now=AT + 301),
    vector("from the future", False, now=AT - 301),
    vector("another tenant's secret", False, has=(FOREIGN,)),
    vector("a body that was changed", False, sent=BODY.replace("1020", "0")),
    vector("a body with a space more", False, sent=BODY + " "),
    vector("a timestamp that was changed", False, change=set_header("x-callseal-timestamp", lambda _: str(AT + 1))),
    vector("a timestamp with a sign", False, change=set_header("x-callseal-timestamp", lambda old: "+" + old)),
    vector("no timestamp", False, change=remove("x-callseal-timestamp")),
    vector("no signature", False, change=remove("x-callseal-signature")),
    vector("an empty signature", False, change=set_header("x-callseal-signature", lambda _: "")),
    vector("a signature cut short", False, change=set_header("x-callseal-signature", lambda old: old[:-2])),
    vector(
        "the signature of the body where that of time and body belongs",
        False,
        change=lambda made: made.__setitem__("x-callseal-signature", made["x-signature-256"]),
    ),
    vector(
        "spaces between signatures, as proxies may write them",
        True,
        signs=(NEW, OLD),
        change=set_header("x-callseal-signature", lambda old: old.replace(",", " , ")),
    ),
]

text = json.dumps({"cases": CASES}, indent=1) + "\n"
pathlib.Path(__file__).with_name("notices.json").write_text(text, encoding="utf-8")
