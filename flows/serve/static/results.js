// The rankings: one column for each method or run, one card for each result.

import { search as address } from "./address.js";
import { html, score } from "./dom.js";
import { strip as scaleStrip, words } from "./scale.js";
import { strip } from "./strip.js";

const SKELETONS = 6;

/** A column of placeholders, shown while a search runs; its loading is shown in `.loading`. */
export function waiting(method) {
  const cards = Array.from({ length: SKELETONS }, () => html("li", { class: "card waiting", "aria-hidden": "true" }));
  return html("section", { class: "column", "aria-busy": "true", "data-method": method, "aria-label": method }, html("h2", {}, method),
    html("div", { class: "loading" }), html("ol", { class: "results" }, ...cards));
}

/** A column with the reason of a failed search, and a button that calls `again`. */
export function failed(method, sentence, again) {
  return html("section", { class: "column", "data-method": method, "aria-label": method }, html("h2", {}, method),
    html("div", { class: "warn", role: "alert" }, html("p", {}, sentence), html("button", { type: "button", onclick: again }, "Try again")));
}

/** A column of hits. `ranking` has the method and its hits; `other` is the ranking that it is compared with, or null. */
export function column(ranking, other, state, open, differs) {
  const places = other && new Map([...other.hits, ...other.right].map((hit) => [hit.key, hit.place]));
  const cards = ranking.hits.map((hit, row) => {
    const next = row + 1 < ranking.hits.length ? ranking.hits[row + 1].score : ranking.following;
    return card(hit, next, ranking, state, open, places && mark(hit, places, other));
  });
  const first = ranking.hits[0]?.place ?? 1;
  return html("section", { class: "column", "data-method": ranking.method, "aria-label": ranking.method },
    html("h2", {}, ranking.method, differs && html("small", {}, differs)),
    html("div", { class: "verdict" }), ...rightItems(ranking, state, open),
    html("ol", { class: "results", start: first }, ...cards));
}

/** For each right item its place, with a link that jumps to it, also beyond the places that are shown. */
function rightItems(ranking, state, open) {
  return ranking.right.map((hit) => {
    const here = ranking.hits.some((one) => one.key === hit.key);
    const top = Number(state.top);
    const from = String(Math.max(1, hit.place - Math.floor(top / 2)));
    const target = { ...state, from: here ? state.from : from, item: "", in: "" };
    const link = html("a", {
      href: address.of(target), class: "jump",
      onclick: (event) => {
        event.preventDefault();
        if (here) document.querySelector(`.column[data-method="${CSS.escape(ranking.method)}"] a.card[data-key="${CSS.escape(hit.key)}"]`)?.focus();
        else open(target, hit.key, ranking.method);
      },
    }, here ? "show it" : `show places ${from} to ${Math.min(ranking.gallery, Number(from) + top - 1)}`);
    return html("p", { class: hit.place === 1 ? "right-item found" : "right-item" }, "Right item ", html("b", {}, hit.item),
      ` at place `, html("b", {}, hit.place.toLocaleString("en")), ` of ${ranking.gallery.toLocaleString("en")} `, link);
  });
}

function card(hit, next, ranking, state, open, difference) {
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
    hit.right && html("span", { class: "mark" }, "right item"),
    difference,
    html("span", { class: "score" }, html("span", { class: "hidden" }, "score "), score(hit.score))),
  scaleStrip(ranking.scale, hit.score, hit.place === 1),
  html("small", { class: "worth" }, words(hit, next, ranking)),
  strip(hit),
  html("span", { class: "caption" }, hit.at && html("span", { class: "at" }, `${hit.at[0].toFixed(1)}–${hit.at[1].toFixed(1)} s `), hit.caption));
  for (const [event, on] of [["pointerenter", true], ["pointerleave", false], ["focus", true], ["blur", false]]) {
    link.addEventListener(event, () => markTwins(hit.key, on));
  }
  return html("li", {}, link);
}

/** Highlight the cards of an item in all columns. */
function markTwins(key, on) {
  for (const node of document.querySelectorAll(`.card[data-key="${CSS.escape(key)}"]`)) node.classList.toggle("twin", on);
}

/** A mark with the difference between a hit's places in the two rankings. */
function mark(hit, places, other) {
  const there = places.get(hit.key);
  if (there === undefined) {
    return difference("new", "only here", `not among the shown places of ${other.method}`);
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
