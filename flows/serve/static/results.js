// The rankings: one column for each method, one card for each result.

import * as address from "./address.js";
import { html, score } from "./dom.js";
import { strip } from "./strip.js";

const SKELETONS = 6;

/** A column of placeholders, shown while a search runs. */
export function waiting(method) {
  const cards = Array.from({ length: SKELETONS }, () => html("li", { class: "card waiting", "aria-hidden": "true" }));
  return html("section", { class: "column", "aria-busy": "true" }, html("h2", {}, method), html("ol", { class: "results" }, ...cards));
}

/** A column with the reason of a failed search, and a button that calls `again`. */
export function failed(method, sentence, again) {
  return html("section", { class: "column" }, html("h2", {}, method),
    html("div", { class: "warn", role: "alert" }, html("p", {}, sentence), html("button", { type: "button", onclick: again }, "Try again")));
}

/** A column of hits. `ranking` has the method and its hits; `other` is the ranking beside it, or null. */
export function column(ranking, other, state, open) {
  const places = other && new Map(other.hits.map((hit) => [hit.key, hit.place]));
  const cards = ranking.hits.map((hit) => card(hit, ranking, state, open, places && mark(hit, places, other)));
  return html("section", { class: "column", "data-method": ranking.method },
    html("h2", {}, ranking.method), html("ol", { class: "results" }, ...cards));
}

function card(hit, ranking, state, open, difference) {
  const target = { ...state, item: hit.key, in: ranking.method };
  const link = html("a", {
    class: `card${hit.right ? " right" : ""}`, href: address.of(target), "data-key": hit.key,
    onclick: (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
      event.preventDefault();
      open(target);
    },
  },
  html("span", { class: "place" },
    html("span", { class: "rank" }, html("span", { class: "hidden" }, "Place "), String(hit.place)),
    html("span", { class: "item" }, hit.item),
    hit.right && html("span", { class: "mark" }, "its caption"),
    difference,
    html("span", { class: "score" }, html("span", { class: "hidden" }, "score "), score(hit.score))),
  strip(hit),
  html("span", { class: "caption" }, hit.captions[0] ?? ""));
  link.addEventListener("pointerenter", () => markTwins(hit.key, true));
  link.addEventListener("pointerleave", () => markTwins(hit.key, false));
  link.addEventListener("focus", () => markTwins(hit.key, true));
  link.addEventListener("blur", () => markTwins(hit.key, false));
  return html("li", {}, link);
}

/** Highlight the cards of an item in both columns. */
function markTwins(key, on) {
  for (const node of document.querySelectorAll(`.card[data-key="${CSS.escape(key)}"]`)) node.classList.toggle("twin", on);
}

/** A mark with the difference between a hit's places in the two rankings. */
function mark(hit, places, other) {
  const there = places.get(hit.key);
  if (there === undefined) {
    return difference("new", "only here", `not among the first ${other.hits.length} of ${other.method}`);
  }
  const by = there - hit.place;
  if (by === 0) return difference("same", "=", `the same place as with ${other.method}`);
  const arrow = by > 0 ? "▲" : "▼";
  return difference(by > 0 ? "up" : "down", `${arrow} ${Math.abs(by)}`, `place ${there} with ${other.method}`);
}

const difference = (kind, short, long) =>
  html("span", { class: `difference ${kind}`, title: long }, html("span", { "aria-hidden": "true" }, short), html("span", { class: "hidden" }, long));

/** Move the focus among the cards by arrow keys, Home and End; returns whether the key was one of these. */
export function moveFocus(event, columns) {
  const current = document.activeElement?.closest?.("a.card");
  const lists = [...columns.querySelectorAll(".column")].map((one) => [...one.querySelectorAll("a.card")]).filter((list) => list.length);
  if (!lists.length) return false;
  const at = current ? lists.findIndex((list) => list.includes(current)) : -1;
  if (at < 0) {
    if (event.key !== "ArrowDown") return false;
    lists[0][0].focus();
    return true;
  }
  const list = lists[at];
  const row = list.indexOf(current);
  const beside = (step) => (lists.length > 1 ? lists[at + step]?.[Math.min(row, lists[at + step].length - 1)] : list[row + step]);
  const across = lists.length > 1 ? 1 : perRow(list);
  const target = {
    ArrowDown: list[Math.min(row + across, list.length - 1)], ArrowUp: list[row - across],
    ArrowRight: beside(1), ArrowLeft: beside(-1), Home: list[0], End: list.at(-1),
  }[event.key];
  if (!(event.key in { ArrowDown: 1, ArrowUp: 1, ArrowRight: 1, ArrowLeft: 1, Home: 1, End: 1 })) return false;
  target?.focus();
  return true;
}

/** Number of cards in the first row. */
function perRow(list) {
  const top = list[0].getBoundingClientRect().top;
  const second = list.findIndex((card) => card.getBoundingClientRect().top > top + 1);
  return second < 0 ? 1 : second;
}
