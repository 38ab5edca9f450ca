// Verifies callseal's notices with Web Crypto alone: Node 20 or later, Deno, Bun, edge functions. No packages.
//
//   import { verify } from "./verify";
//   const body = new Uint8Array(await request.arrayBuffer());
//   const notice = await verify(secrets, request.headers, body);      // throws
//
// The body is taken as it came, before any JSON parser.

const WINDOW_SECS = 300;

/** A notice; which other fields there are depends on its type, see docs/WEBHOOKS.md. */
export interface Notice {
  id: string;
  type: string;
  created: string;
  tenant: string;
  recording?: string;
  revision?: number;
  lost_ms?: number;
  [field: string]: unknown;
}

/** Those of `fetch`, or of `node:http`. */
export type RequestHeaders = Headers | Record<string, string | string[] | undefined>;

/** Returns the notice, or throws; `secrets` are yours, one or two while they change, `now` is in Unix seconds. */
export async function verify(
  secrets: BufferSource[],
  headers: RequestHeaders,
  rawBody: Uint8Array,
  now: number = Math.floor(Date.now() / 1000),
): Promise<Notice> {
  const timestamp = header(headers, "x-callseal-timestamp");
  if (!/^[0-9]{1,15}$/.test(timestamp)) throw new Error("no timestamp");
  if (Math.abs(now - Number(timestamp)) > WINDOW_SECS) throw new Error("too old, or from the future");
  const given = header(headers, "x-callseal-signature").split(",").map((part) => unhex(part.trim()));
  const begin = new TextEncoder().encode(`${timestamp}.`);
  const signed = new Uint8Array(begin.length + rawBody.length);
  signed.set(begin);
  signed.set(rawBody, begin.length);
  let isRight = false;
  for (const secret of secrets) {
    const hmac = { name: "HMAC", hash: "SHA-256" };
    const key = await crypto.subtle.importKey("raw", secret, hmac, false, ["verify"]);
    for (const signature of given) {
      // Every pair is compared, each in constant time.
      if (signature && (await crypto.subtle.verify("HMAC", key, signature, signed))) isRight = true;
    }
  }
  if (!isRight) throw new Error("wrong signature");
  return JSON.parse(new TextDecoder().decode(rawBody)) as Notice;
}

function header(headers: RequestHeaders, name: string): string {
  return String((headers instanceof Headers ? headers.get(name) : headers[name]) ?? "");
}

/** Reads `sha256=` and 64 hexadecimal digits. */
function unhex(text: string): Uint8Array<ArrayBuffer> | undefined {
  const digits = /^sha256=([0-9a-f]{64})$/.exec(text)?.[1];
  return digits === undefined ? undefined : Uint8Array.from(digits.match(/../g) ?? [], (two) => parseInt(two, 16));
}
