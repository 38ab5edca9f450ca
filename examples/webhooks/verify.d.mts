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

/** Returns the notice, or throws; `secrets` are yours, one or two while they change, `now` is in Unix seconds. */
export function verify(
  secrets: Uint8Array[],
  headers: Record<string, string | string[] | undefined>,
  rawBody: Uint8Array,
  now?: number,
): Notice;
