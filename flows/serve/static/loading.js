// A bar with seconds for each method whose networks are being loaded, and how many are kept in memory.

import { loading } from "./asking.js";
import { counted, html } from "./dom.js";

const EVERY_MS = 700;

/** Show the loading of `methods` in the elements that `placeOf(method)` gives, until `signal` is aborted. */
export async function follow(methods, split, placeOf, signal) {
  while (!signal.aborted) {
    let all;
    try {
      all = await loading();
    } catch {
      return; // the search itself says that the server does not answer
    }
    if (signal.aborted) return;
    for (const method of methods) {
      const found = all.searchers[`${method} ${split}`];
      const place = placeOf(method);
      if (place && found) place.replaceChildren(...bar(method, found));
    }
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

function bar(method, { state, seconds, usual, says }) {
  if (state === "ready") return [html("p", { class: "soft" }, "Searching …")];
  if (state === "closed") return [html("p", { class: "soft" }, `${method} is not in memory yet; it waits for its turn.`)];
  const known = usual > 0;
  const label = `${method} loads its networks: ${seconds.toFixed(0)} s${known ? ` of about ${usual.toFixed(0)} s` : ""}`;
  const progress = html("progress", known ? { max: usual, value: Math.min(seconds, usual * 0.97), "aria-label": label } : { "aria-label": label });
  return [html("p", {}, label, says && ` (${says})`), progress];
}

/** A sentence that says how many methods are kept. */
export async function kept() {
  const { kept: now, room } = await loading();
  return `${counted(now, "search process")} in memory; about ${room} fit.`;
}
