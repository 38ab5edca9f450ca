"""Verifies callseal's notices. Python 3.9 or later, standard library only.

    from verify import verify
    notice = verify(secrets, headers, raw_body)      # raises ValueError

`raw_body` is the body as it came, before any JSON parser. As a program it checks the vectors of the repository:

    python3 examples/webhooks/verify.py tests/vectors/notices.json
"""

import hashlib
import hmac
import json
import sys
import time

WINDOW_SECS = 300


def verify(secrets, headers, raw_body, now=None):
    """Returns the notice; `secrets` are yours, bytes, one or two while they change; `headers` have lower-case names."""
    timestamp = headers.get("x-callseal-timestamp", "")
    if not (timestamp.isascii() and timestamp.isdigit()):
        raise ValueError("no timestamp")
    now = int(time.time()) if now is None else now
    if abs(now - int(timestamp)) > WINDOW_SECS:
        raise ValueError("too old, or from the future")
    given = [part.strip() for part in headers.get("x-callseal-signature", "").split(",")]
    text = timestamp.encode() + b"." + raw_body
    expected = ["sha256=" + hmac.new(secret, text, hashlib.sha256).hexdigest() for secret in secrets]
    # Every pair is compared, each in constant time.
    if not any([hmac.compare_digest(a.encode(), b.encode()) for a in given for b in expected]):
        raise ValueError("wrong signature")
    return json.loads(raw_body)


def check_vectors(path):
    with open(path, encoding="utf-8") as file:
        cases = json.load(file)["cases"]
    for case in cases:
        secrets = [bytes.fromhex(secret) for secret in case["receiver_secrets_hex"]]
        try:
            verify(secrets, case["headers"], case["body"].encode(), case["now"])
            outcome = "accepted"
        except ValueError as error:
            outcome = str(error)
        if (outcome == "accepted") != case["accepted"]:
            sys.exit(f"{case['name']}: {outcome}")
    print(f"{len(cases)} vectors")


if __name__ == "__main__":
    check_vectors(sys.argv[1])
