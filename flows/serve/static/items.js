// Looking around without a query: the items of a split, one item with what a method says of it, confusions, hubs.

import { items as address } from "./address.js";
import * as asking from "./asking.js";
import { byId, counted, html } from "./dom.js";
import { choices } from "./form.js";
import { begun } from "./heading.js";
import { attracting, confused } from "./mistaken.js";
import { opened } from "./opened.js";
import { problems, unknown } from "./sentences.js";
import { strip } from "./strip.js";

const PAGE = 24;
const VIEWS = [["items", "Items"], ["confusions", "Taken for another"], ["hubs", "Hubs"]];
let catalogue;
let state;
let shown = null; // the item that is open
let running = new AbortController();

/** Show the state in the address. */
async function render() {
  state = address.read();
  running.abort();
  running = new AbortController();
  shown?.close();
  shown = null;
  const { signal } = running;
  const ready = catalogue.methods.filter((one) => one.splits.length);
  const wrong = [];
  if (!VIEWS.some(([name]) => name === state.view)) wrong.push(unknown("view", state.view, VIEWS.map(([name]) => name)));
  if (state.split && !catalogue.corpus_splits.includes(state.split)) wrong.push(unknown("split", state.split, catalogue.corpus_splits));
  if (state.view === "items" && state.method && !ready.some((one) => one.name === state.method)) wrong.push(unknown("method", state.method, ready.map((one) => one.name)));
  problems(byId("problems"), wrong);
  byId("content").replaceChildren();
  byId("pager").hidden = true;
  byId("status").textContent = "";
  if (wrong.length) return;
  state.split ||= catalogue.splits[0].name;
  fill(ready);
  try {
    if (state.view === "confusions") await mistaken(confused, asking.confusions, signal);
    else if (state.view === "hubs") await mistaken(attracting, asking.hubs, signal);
    else if (state.item) shown = await opened(byId("content"), state, ready, signal);
    else await browse(signal);
  } catch (error) {
    if (error.name !== "AbortError") problems(byId("problems"), [error.message]);
  }
}

async function browse(signal) {
  const from = /^\d{1,6}$/.test(state.from) ? Number(state.from) : 0;
  const found = await asking.itemsOf(state.split, state.text, from, PAGE, signal);
  if (signal.aborted) return;
  byId("status").textContent = found.total
    ? `Items ${from + 1} to ${from + found.items.length} of ${counted(found.total, "item")} in ${found.split}${state.text ? ` with “${state.text}”` : ""}.`
    : `No item of ${found.split} has “${state.text}” in its id or captions.`;
  byId("content").replaceChildren(html("ul", { class: "cards" }, ...found.items.map((one) => card(one, state))));
  const link = (text, place) => html("a", { href: address.of({ ...state, from: String(place) }) }, text);
  byId("pager").hidden = found.total <= PAGE;
  byId("pager").replaceChildren(...(from ? [link("← before", Math.max(0, from - PAGE))] : []), ...(from + PAGE < found.total ? [link("further →", from + PAGE)] : []));
}

/** A card of an item that opens it. */
export function card(one, from, ...more) {
  return html("li", {}, html("a", { class: "card small", href: address.of({ ...from, view: "items", item: one.key, from: "0", text: "" }) },
    html("span", { class: "place" }, html("span", { class: "item" }, one.item), ...more), strip(one), html("span", { class: "caption" }, one.captions[0] ?? "")));
}

async function mistaken(draw, ask, signal) {
  const found = await ask(state.method, state.split, signal);
  if (signal.aborted) return;
  choices("method", found.runs.map((name) => [name, name]), found.run);
  const { sentence, content } = draw(found);
  byId("status").textContent = sentence;
  byId("content").replaceChildren(content);
}

function fill(ready) {
  byId("views").replaceChildren(...VIEWS.map(([name, text]) =>
    html("a", { href: address.of({ ...state, view: name, item: "", from: "0", text: "" }), "aria-current": name === state.view && !state.item ? "page" : undefined }, text)));
  choices("split", catalogue.corpus_splits.map((name) => [name, name]), state.split);
  const usable = ready.filter((one) => one.splits.includes(state.split));
  if (state.view === "items") choices("method", usable.map((one) => [one.name, one.differs ? `${one.name} (${one.differs})` : one.name]), state.method || usable[0]?.name);
  byId("method-label").hidden = state.view === "items" && !state.item;
  byId("text-label").hidden = state.view !== "items" || Boolean(state.item);
  if (document.activeElement !== byId("text")) byId("text").value = state.text;
}

function change(next) {
  address.go({ ...state, from: "0", ...next });
  render();
}

byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("change", (event) => {
  const { name, value } = event.target;
  change({ [name]: value.trim(), ...(name === "split" ? { item: "" } : {}) });
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input, select, video, canvas")) return;
  if (event.key === "/" && !byId("text-label").hidden) {
    event.preventDefault();
    byId("text").focus();
  } else if (event.key === "Escape" && state?.item) change({ item: "" });
});
addEventListener("popstate", render);

async function main() {
  catalogue = await begun();
  if (catalogue) render();
}

main();
