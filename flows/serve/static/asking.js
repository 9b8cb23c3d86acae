// Requests to the server. Every error is one sentence.

const items = new Map();

async function json(address, signal, more = {}) {
  let reply;
  try {
    reply = await fetch(address, { signal, ...more, headers: { accept: "application/json", ...more.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; is crossreel serve still running?");
  }
  const body = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(sentence(body.error ?? `The server answered ${reply.status}`));
  return body;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");

export const about = () => json("/api/about");

const parameters = (entries) => new URLSearchParams(Object.entries(entries).filter(([, value]) => value !== "" && value !== undefined && value !== null));

/** The ranking of a sentence: `from` is its first place; `key` an item whose place is asked for too. */
export const search = ({ q, method, split, top, from, key }, signal) =>
  json(`/api/search?${parameters({ q, method, split, top, from, key })}`, signal);

export const explain = (q, method, split, key, signal) =>
  json(`/api/explain?${parameters({ q, method, split, key })}`, signal);

/** Which searchers are loaded or loading, and how many fit into memory. */
export const loading = () => json("/api/loading");

const scales = new Map();

/** The best scores of captions that describe other items, in ascending order; asked for once per gallery. */
export function scale(method, split) {
  return once(scales, `${method} ${split}`, () => json(`/api/scale?${parameters({ method, split })}`));
}

export const queries = (state, from, count, signal) => json(`/api/queries?${parameters({ ...state, from, count })}`, signal);

export const itemsOf = (split, text, from, count, signal) => json(`/api/items?${parameters({ split, text, from, count })}`, signal);

export const similar = (key, method, split, signal) => json(`/api/similar?${parameters({ key, method, split })}`, signal);

export const captionsOf = (key, method, split, signal) => json(`/api/captions?${parameters({ key, method, split })}`, signal);

export const confusions = (run, split, signal) => json(`/api/confusions?${parameters({ run, split })}`, signal);

export const hubs = (run, split, signal) => json(`/api/hubs?${parameters({ run, split })}`, signal);

export const mapOf = (method, split, by, every, signal) => json(`/api/map?${parameters({ method, split, by, every })}`, signal);

/** The captions that fit a file best. */
export const upload = (file, method, split, top, signal) =>
  json(`/api/upload?${parameters({ name: file.name, method, split, top })}`, signal, { method: "POST", body: file, headers: { "content-type": "application/octet-stream" } });

/** An item with its pictures, fetched once and cached. */
export function item(key) {
  return once(items, key, () => json(`/api/item/${encodeURIComponent(key)}`));
}

function once(known, key, ask) {
  if (!known.has(key)) {
    const answer = ask();
    known.set(key, answer);
    answer.catch(() => known.delete(key));
  }
  return known.get(key);
}

/** A cloud: positions (3 N) and colours (3 N) from 0 to 255. */
export async function points(key, signal) {
  const reply = await fetch(`/points/${key}`, { signal });
  if (!reply.ok) throw new Error("The point cloud cannot be read.");
  const body = await reply.arrayBuffer();
  const count = body.byteLength / 15; // three floats and three bytes
  return { count, positions: new Float32Array(body, 0, 3 * count), colours: new Uint8Array(body, 12 * count) };
}
