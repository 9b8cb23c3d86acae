// Requests to the server. Every error is one sentence.

const items = new Map();

async function json(address, signal) {
  let reply;
  try {
    reply = await fetch(address, { signal, headers: { accept: "application/json" } });
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

export const search = (q, method, split, top, signal) =>
  json(`/api/search?${new URLSearchParams({ q, method, split, top })}`, signal);

export const explain = (q, method, split, key, signal) =>
  json(`/api/explain?${new URLSearchParams({ q, method, split, key })}`, signal);

/** An item with its pictures, fetched once and cached. */
export function item(key) {
  if (!items.has(key)) {
    const answer = json(`/api/item/${key}`);
    items.set(key, answer);
    answer.catch(() => items.delete(key));
  }
  return items.get(key);
}

/** A cloud: positions (3 N) and colours (3 N) from 0 to 255. */
export async function points(key, signal) {
  const reply = await fetch(`/points/${key}`, { signal });
  if (!reply.ok) throw new Error("The point cloud cannot be read.");
  const body = await reply.arrayBuffer();
  const count = body.byteLength / 15; // three floats and three bytes
  return { count, positions: new Float32Array(body, 0, 3 * count), colours: new Uint8Array(body, 12 * count) };
}
