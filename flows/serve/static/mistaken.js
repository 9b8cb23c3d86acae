// Items that a run takes for others, and hubs with what they attract.

import { items, queries } from "./address.js";
import { counted, html } from "./dom.js";
import { strip } from "./strip.js";

/** `{sentence, content}` of the most frequent confusions. */
export function confused(found) {
  const rows = found.pairs.map(({ right, taken, count, of, back }) => html("li", { class: "pair" },
    ...[right, taken].map((one, place) => html("div", {}, html("a", { href: items.of({ view: "items", split: found.split, item: one.key, method: found.run }) }, one.item), html("small", {}, place ? "is found instead" : "is right"), strip(one))),
    html("p", {}, html("a", { href: queries.of({ split: found.split, item: right.key, taken: taken.key, a: found.run }) }, `${count} of its ${counted(of, "caption")}`),
      back ? `; the other way round ${back}` : "; never the other way round")));
  return {
    sentence: found.pairs.length ? `What ${found.run} takes for another in ${found.split}: the ${found.pairs.length} most frequent pairs, a click on the number shows the queries.` : nothing(found),
    content: html("ul", { class: "pairs" }, ...rows),
  };
}

/** `{sentence, content}` of the hubs. */
export function attracting(found) {
  const rows = found.hubs.map((hub) => html("li", { class: "pair" },
    html("div", {}, html("a", { href: items.of({ view: "items", split: found.split, item: hub.key, method: found.run }) }, hub.item), strip(hub)),
    html("div", {}, html("b", {}, hub.times.toLocaleString("en")), ` queries have it among their first ten, ${(hub.times / found.mean).toFixed(1)} times the mean.`,
      html("p", {}, html("a", { href: queries.of({ split: found.split, taken: hub.key, a: found.run }) }, `${counted(hub.first, "query")} find it first`), `; it is right for ${hub.own}.`))));
  return {
    sentence: found.hubs.length ? `${counted(found.hubs.length, "hub")} of ${found.run} in ${found.split}: items among the first places of far more queries than others (two standard deviations above the mean of ${found.mean.toFixed(1)}).` : nothing(found, "is a hub"),
    content: html("ul", { class: "pairs" }, ...rows),
  };
}

const nothing = (found, what = "is taken for another") => (found.run ? `With ${found.run}, no item of ${found.split} ${what}.` : `No run is evaluated on ${found.split} yet.`);
