// What a score is worth: its gap to the next one, its place among all scores of the query, and what chance gets.

import { html, score, svg } from "./dom.js";

const NOTHING = 0.5; // share of captions of other items that reach the best score: then nothing fits well
const WEAK = 0.1;

/** A picture of all scores of a query, with a mark at `value`. */
export function strip(scale, value, best) {
  const most = Math.max(...scale.counts, 1);
  const width = 100 / scale.counts.length;
  const span = scale.high - scale.low || 1;
  const at = (100 * (value - scale.low)) / span;
  const bars = scale.counts.map((count, place) => {
    const height = count ? Math.max(1.5, (14 * Math.sqrt(count)) / Math.sqrt(most)) : 0;
    return svg("rect", { class: "many", x: place * width + 0.3, width: width - 0.6, y: 16 - height, height });
  });
  return svg("svg", { class: "scale", viewBox: "0 0 100 16", preserveAspectRatio: "none", "aria-hidden": "true" },
    ...bars, svg("line", { class: best ? "at best" : "at", x1: at, x2: at, y1: 0, y2: 16 }));
}

/** The words under a hit: its gap to the next score, and the share of the gallery below it. */
export function words(hit, next, found) {
  const gap = next === null || next === undefined ? null : hit.score - next;
  const parts = [];
  if (gap !== null) parts.push(gap === 0 ? "the same score as the next" : `${score(gap)} above the next`);
  const all = found.gallery.toLocaleString("en");
  parts.push(hit.place === 1 ? `the best of ${all}` : `above ${percent(hit.percentile)} of ${all}`);
  return parts.join(", ");
}

const percent = (value) => `${value >= 99.95 || value === 0 ? value.toFixed(0) : value.toFixed(1)} %`;

/** What the best score of a query is worth, given the best scores of captions of other items; `several`: kinds of items are shown. */
export function verdict(best, { best: chance, captions_of: split }, several = false) {
  if (!chance.length) return null;
  const reached = chance.filter((value) => value >= best).length;
  const share = (1 + reached) / (1 + chance.length);
  const mean = chance.reduce((sum, value) => sum + value, 0) / chance.length;
  const spread = Math.sqrt(chance.reduce((sum, value) => sum + (value - mean) ** 2, 0) / chance.length);
  const standard = several && spread ? ` Its standard score is ${((best - mean) / spread).toFixed(2)}, which can be compared with those of other columns.` : "";
  const told = `${reached} of ${chance.length} captions of ${split === "train" ? "training items, which are not here," : "other items"} get ${score(best)} or more as their best score`;
  const title = "A caption that describes nothing in this gallery still has a best match. Its score says what can be reached by chance.";
  if (share > NOTHING) return html("p", { class: "nothing fits", title }, html("b", {}, "Nothing fits well: "), `${told}.${standard}`);
  if (share > WEAK) return html("p", { class: "weak fits", title }, html("b", {}, "A weak match: "), `${told}.${standard}`);
  return html("p", { class: "fits soft", title }, `A match: ${told}.${standard}`);
}
