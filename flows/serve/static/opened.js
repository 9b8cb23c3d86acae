// One item: its video or cloud, its captions by rank under a method, and the items that the method takes for alike.

import { items as address, map as mapAddress, queries, search } from "./address.js";
import * as asking from "./asking.js";
import { byId, clock, html, score } from "./dom.js";
import { orbit } from "./orbit.js";
import { player } from "./player.js";
import { strip } from "./strip.js";

/** Show the item of a state in `place`; returns `{close}`. Raises the sentence of an error where it is not there. */
export async function opened(place, state, ready, signal) {
  const about = await asking.item(state.item).catch((error) => {
    throw new Error(`This address opens the item “${state.item}”. ${error.message}`);
  });
  if (signal.aborted) return null;
  const usable = ready.filter((one) => one.splits.includes(state.split));
  const method = usable.find((one) => one.name === state.method) ?? usable[0];
  byId("status").textContent = `${about.item}${about.seconds ? `, ${about.seconds.toFixed(1)} s` : ""}, in ${state.split}.`;
  const stage = html("div", { class: "stage" });
  const ranked = html("section", {}, html("h2", {}, "Its captions by rank"), html("p", { class: "soft waiting" }, "Asking …"));
  const near = html("section", {}, html("h2", {}, "Similar items"), html("p", { class: "soft waiting" }, "Asking …"));
  const links = html("p", { class: "links" },
    html("a", { href: address.of({ ...state, item: "" }) }, "← all items"),
    html("a", { href: queries.of({ split: state.split, item: about.key }) }, "Its queries under every run"),
    method && html("a", { href: queries.of({ split: state.split, taken: about.key, a: method.name }) }, "Queries that find it first"),
    method && html("a", { href: mapAddress.of({ split: state.split, method: method.name, item: about.key }) }, "On the map"));
  place.replaceChildren(links, html("div", { class: "opened" }, stage, ranked), near);
  let shown = null;
  if (about.kind === "video") shown = player(stage, about, null);
  else if (about.kind === "cloud") shown = orbit(stage, about);
  else stage.replaceChildren(html("p", { class: "nothing" }, `Nothing to show: ${about.reason}.`));
  if (method) {
    captions(ranked, about, method.name, state, shown, signal);
    similar(near, about, method.name, state, signal);
  } else {
    ranked.replaceChildren(html("h2", {}, "Its captions"), html("ul", {}, ...about.captions.map(({ text }) => html("li", {}, text))),
      html("p", { class: "soft" }, `No method searches the split ${state.split}; crossreel serve --split ${state.split} has it encoded.`));
    near.remove();
  }
  return { close: () => shown?.close() };
}

async function captions(place, about, method, state, shown, signal) {
  try {
    const found = await asking.captionsOf(about.key, method, state.split, signal);
    const rows = found.captions.map((one) => html("li", {},
      html("span", {}, html("b", {}, one.place.toLocaleString("en")), html("small", {}, `of ${found.of.toLocaleString("en")} · ${score(one.score)}`)),
      html("span", {}, html("a", { href: search.of({ q: one.text, method, split: state.split, item: about.key, in: method }) }, one.text), " ",
        one.moment && shown?.seek && html("button", { type: "button", class: "time", onclick: () => shown.seek(one.moment[0]) }, `${clock(one.moment[0])}–${clock(one.moment[1])}`))));
    place.replaceChildren(html("h2", {}, `Its captions by rank, with ${method}`),
      html("p", { class: "soft" }, "The place of each among all captions of the split, when the item ranks them."), html("ol", { class: "ranked" }, ...rows));
  } catch (error) {
    failed(place, error);
  }
}

async function similar(place, about, method, state, signal) {
  try {
    const found = await asking.similar(about.key, method, state.split, signal);
    const cards = found.items.map((one) => html("li", {}, html("a", { class: "card small", href: address.of({ ...state, method, view: "items", item: one.key }) },
      html("span", { class: "place" }, html("span", { class: "item" }, one.item), html("span", { class: "score" }, score(one.likeness))), strip(one), html("span", { class: "caption" }, one.captions[0] ?? ""))));
    place.replaceChildren(html("h2", {}, `Similar items, with ${method}`),
      html("p", { class: "soft" }, "Items for which the same captions score high; the number is the correlation of their scores."), html("ol", { class: "cards" }, ...cards));
  } catch (error) {
    failed(place, error);
  }
}

function failed(place, error) {
  if (error.name !== "AbortError") place.replaceChildren(html("p", { class: "warn" }, error.message));
}
