// Search by a file: a video, a picture or a point cloud is sent, and the captions that fit it best come back.

import { items } from "./address.js";
import { upload } from "./asking.js";
import { html, score } from "./dom.js";

/** A column with the captions that fit `file`. Raises the sentence of an error. */
export async function column(file, state, most, signal) {
  if (file.size > most) throw new Error(`${file.name} has ${(file.size / 2 ** 20).toFixed(0)} MB; at most ${(most / 2 ** 20).toFixed(0)} MB can be sent.`);
  const found = await upload(file, state.method, state.split, state.top, signal);
  const rows = found.hits.map((hit) => html("li", {}, html("a", { class: "card", href: items.of({ split: found.split, method: found.method, item: hit.item_key, view: "items" }), "data-key": hit.item_key },
    html("span", { class: "place" }, html("span", { class: "rank" }, html("span", { class: "hidden" }, "Place "), String(hit.place)), html("span", { class: "item" }, hit.item), html("span", { class: "score" }, score(hit.score))),
    html("span", { class: "caption whole" }, hit.text))));
  return html("section", { class: "column", "data-method": found.method, "aria-label": found.method }, html("h2", {}, `${found.method}: captions for ${file.name}`), html("ol", { class: "results" }, ...rows));
}
