// The dialog of one result: its video or cloud, the explanation of its match, and its captions.

import { items, queries } from "./address.js";
import { explain, item } from "./asking.js";
import { byId, clock, html, score } from "./dom.js";
import { draw } from "./explanation.js";
import { words } from "./scale.js";
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
  const row = found.hits.findIndex((one) => one.key === hit.key);
  const next = row < 0 ? null : row + 1 < found.hits.length ? found.hits[row + 1].score : found.following;
  byId("detail-place").textContent = `Place ${hit.place.toLocaleString("en")} with ${found.method}, score ${score(hit.score)}, ${words(hit, next, found)}`;
  byId("detail-links").replaceChildren(
    html("a", { href: items.of({ view: "items", split: found.split, method: found.method, item: hit.key }) }, "Similar items, and all its captions by rank"),
    html("a", { href: queries.of({ split: found.split, item: hit.key, a: found.method }) }, "Its queries under every run"));
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
    captions.replaceChildren(...captioned(about, found.query, hit.at));
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

function captioned(about, query, at) {
  const entries = about.captions.map(({ text, start, end }) => {
    const timed = start !== null && end !== null;
    const seek = timed && shown?.seek && html("button", { type: "button", class: "time", onclick: () => shown.seek(start) }, `${clock(start)}–${clock(end)}`);
    const best = at && start === at[0] && end === at[1];
    return html("li", { class: text.trim() === query ? "asked" : best ? "best" : undefined }, text, " ", seek, best && html("span", { class: "mark" }, "at the best moment"));
  });
  if (about.more_captions) entries.push(html("li", { class: "soft" }, `and ${about.more_captions} more`));
  return [html("h3", {}, "Its captions"), html("ul", {}, ...entries)];
}
