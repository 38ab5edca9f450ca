// Verifies callseal's notices. Node 18 or later, no packages; verify.ts is the same for TypeScript.
//
//   import { verify } from "./verify.mjs";
//   const notice = verify(secrets, request.headers, rawBody);      // throws
//
// `rawBody` is the body as it came, before any JSON parser. As a program it checks the vectors of the repository:
//
//   node examples/webhooks/verify.mjs tests/vectors/notices.json

import { createHmac, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const WINDOW_SECS = 300;

/** Returns the notice; `secrets` are yours, one or two while they change. */
export function verify(secrets, headers, rawBody, now = Math.floor(Date.now() / 1000)) {
  const timestamp = String(headers["x-callseal-timestamp"] ?? "");
  if (!/^[0-9]{1,15}$/.test(timestamp)) throw new Error("no timestamp");
  if (Math.abs(now - Number(timestamp)) > WINDOW_SECS) throw new Error("too old, or from the future");
  const given = String(headers["x-callseal-signature"] ?? "").split(",").map((part) => part.trim());
  let isRight = false;
  for (const secret of secrets) {
    const hmac = createHmac("sha256", secret).update(`${timestamp}.`).update(rawBody);
    const expected = Buffer.from("sha256=" + hmac.digest("hex"));
    for (const part of given) {
      const bytes = Buffer.from(part);
      // Every pair is compared, each in constant time.
      if (bytes.length === expected.length && timingSafeEqual(bytes, expected)) isRight = true;
    }
  }
  if (!isRight) throw new Error("wrong signature");
  return JSON.parse(Buffer.from(rawBody).toString("utf8"));
}

function checkVectors(path) {
  const cases = JSON.parse(readFileSync(path, "utf8")).cases;
  for (const one of cases) {
    const secrets = one.receiver_secrets_hex.map((hex) => Buffer.from(hex, "hex"));
    let outcome = "accepted";
    try {
      verify(secrets, one.headers, Buffer.from(one.body), one.now);
    } catch (error) {
      outcome = String(error);
    }
    if ((outcome === "accepted") !== one.accepted) {
      console.error(`${one.name}: ${outcome}`);
      process.exit(1);
    }
  }
  console.log(`${cases.length} vectors`);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) checkVectors(process.argv[2]);
