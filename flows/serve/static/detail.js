// The dialog of one result: its video or cloud, the explanation of its match, and its captions.

import { explain, item } from "./asking.js";
import { byId, clock, html, score } from "./dom.js";
import { draw } from "./explanation.js";
import { orbit } from "./orbit.js";
import { player } from "./player.js";

const dialog = byId("detail");
const stage = byId("stage");
let shown = null; // what plays or turns
let asking = null;

/** Show a hit of a ranking. */
export async function show(hit, found) {
  end();
  asking = new AbortController();
  const { signal } = asking;
  byId("detail-title").textContent = hit.item;
  byId("detail-place").textContent = `Place ${hit.place} with ${found.method}, score ${score(hit.score)}`;
  const captions = byId("captions");
  captions.replaceChildren();
  byId("explanation").replaceChildren(html("p", { class: "soft" }, "Loading the explanation of this match …"));
  stage.replaceChildren(html("p", { class: "soft" }, "Loading …"));
  if (!dialog.open) dialog.showModal();
  byId("detail-title").focus();
  try {
    const about = await item(hit.key);
    if (signal.aborted) return;
    if (about.kind === "video") shown = player(stage, about, hit.moment);
    else if (about.kind === "cloud") shown = orbit(stage, about);
    else stage.replaceChildren(html("p", { class: "nothing" }, `Nothing to show: ${about.reason}.`));
    captions.replaceChildren(...captioned(about, found.query));
    await explained(hit, found, about, signal);
  } catch (error) {
    if (error.name !== "AbortError") stage.replaceChildren(html("p", { class: "nothing" }, error.message));
  }
}

/** Play or pause the video; returns whether there is one. */
export function toggle() {
  shown?.toggle?.();
  return Boolean(shown?.toggle);
}

/** Close the dialog and its player. */
export function hide() {
  end();
  if (dialog.open) dialog.close();
}

function end() {
  asking?.abort();
  shown?.close();
  shown = null;
}

async function explained(hit, found, about, signal) {
  const place = byId("explanation");
  try {
    const explanation = await explain(found.query, found.method, found.split, hit.key, signal);
    const seek = shown?.seek;
    const drawn = draw(explanation.arrays, { query: found.query, method: found.method, seconds: about.seconds, moment: hit.moment, seek });
    place.replaceChildren(html("h3", {}, "What carried this match"), ...drawn.parts);
    if (drawn.at && shown?.onTime) shown.onTime(drawn.at);
  } catch (error) {
    if (error.name !== "AbortError") place.replaceChildren(html("p", { class: "nothing" }, error.message));
  }
}

function captioned(about, query) {
  const entries = about.captions.map(({ text, start, end }) => {
    const timed = start !== null && end !== null;
    const seek = timed && shown?.seek && html("button", { type: "button", class: "time", onclick: () => shown.seek(start) }, `${clock(start)}–${clock(end)}`);
    return html("li", { class: text.trim() === query ? "asked" : undefined }, text, " ", seek);
  });
  if (about.more_captions) entries.push(html("li", { class: "soft" }, `and ${about.more_captions} more`));
  return [html("h3", {}, "Its captions"), html("ul", {}, ...entries)];
}
