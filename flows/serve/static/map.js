// A map of the items under a method; what is chosen on it is listed beside it, and the other way round.

import { items as itemsAddress, map as address, queries } from "./address.js";
import * as asking from "./asking.js";
import { byId, counted, html, svg } from "./dom.js";
import { choices } from "./form.js";
import { begun } from "./heading.js";
import { COLOURINGS, Scatter } from "./scatter.js";
import { problems, unknown } from "./sentences.js";
import { strip } from "./strip.js";

const MOST_LISTED = 40;
let catalogue;
let ready;
let state;
let found; // the answer with the points
let scatter;
let running = new AbortController();

async function render() {
  state = address.read();
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const method = state.method ? ready.find((one) => one.name === state.method) : ready[0];
  const wrong = method ? [] : [unknown("method", state.method, ready.map((one) => one.name))];
  if (method && state.split && !method.splits.includes(state.split)) wrong.push(unknown("split", state.split, method.splits));
  if (!(state.colour in COLOURINGS)) wrong.push(unknown("colouring", state.colour, Object.keys(COLOURINGS)));
  problems(byId("problems"), wrong);
  if (wrong.length) return;
  state = { ...state, method: method.name, split: state.split || method.splits[0] };
  choices("method", ready.map((one) => [one.name, one.differs ? `${one.name} (${one.differs})` : one.name]), state.method);
  choices("split", method.splits.map((name) => [name, name]), state.split);
  byId("colour").value = state.colour;
  byId("status").textContent = `Asking ${state.method} for its scores …`;
  try {
    found = await asking.mapOf(state.method, state.split, state.by, state.colour === "split" ? "1" : "", signal);
  } catch (error) {
    if (error.name !== "AbortError") {
      problems(byId("problems"), [error.message]);
      byId("status").textContent = "";
    }
    return;
  }
  byId("by-label").hidden = !found.umap;
  byId("by").value = found.by;
  draw();
}

function draw() {
  const splits = [...new Set(found.points.map((point) => point.split))];
  byId("status").textContent = `${counted(found.points.length, "item")} of ${splits.join(" and ")} under ${found.method}. Near each other: items for which the same captions score high.`;
  const [first, second] = found.explained ?? [];
  byId("axes").textContent = found.explained ? `PCA: → explains ${(100 * first).toFixed(0)} % of the variance, ↑ ${(100 * second).toFixed(0)} %.` : "UMAP: only neighbourhoods mean something, distances between groups do not.";
  const colouring = COLOURINGS[state.colour](found);
  byId("legend").replaceChildren(...colouring.legend.map(([text, shape, name]) => html("li", {}, svg("svg", { viewBox: "-6 -6 12 12", "aria-hidden": "true" }, shapeOf(shape, name)), text)));
  scatter?.close();
  scatter = new Scatter(byId("map").querySelector("canvas"), found.points, colouring, choose, (key) => location.assign(itemsAddress.of({ view: "items", split: splitOf(key), item: key, method: state.method })));
  scatter.select(new Set(state.item ? [state.item] : []));
  if (state.item && !found.points.some((point) => point.key === state.item)) problems(byId("problems"), [`This address chooses the item “${state.item}”, which is not on this map.`]);
  list(state.item ? [state.item] : []);
}

const splitOf = (key) => found.points.find((point) => point.key === key)?.split ?? state.split;

function shapeOf(shape, name) {
  const more = { class: `dot-${name}` };
  if (shape === "square") return svg("rect", { x: -4, y: -4, width: 8, height: 8, ...more });
  if (shape === "triangle") return svg("path", { d: "M0,-5 L5,4 L-5,4 Z", ...more });
  return svg("circle", { r: 4, ...more });
}

/** What was chosen on the map. One item is in the address. */
function choose(keys) {
  state.item = keys.length === 1 ? keys[0] : "";
  address.go(state, { replace: true });
  list(keys);
}

function list(keys) {
  const place = byId("chosen");
  if (!keys.length) {
    place.replaceChildren(html("p", { class: "soft" }, "Nothing is chosen. Click a point, or drag a rectangle around several."));
    return;
  }
  const points = new Map(found.points.map((point) => [point.key, point]));
  const cards = keys.filter((key) => points.has(key)).slice(0, MOST_LISTED).map((key) => {
    const point = points.get(key);
    const facts = [point.split, point.hub && "a hub", point.of ? `${point.missed} of ${counted(point.of, "query")} missed` : null].filter(Boolean);
    const link = html("a", { class: "card small", href: itemsAddress.of({ view: "items", split: point.split, item: key, method: state.method }) },
      html("span", { class: "place" }, html("span", { class: "item" }, point.item)), strip(point), html("small", {}, facts.join(" · ")));
    for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) link.addEventListener(event, () => scatter.point(on ? key : ""));
    return html("li", {}, link);
  });
  const more = keys.length > cards.length ? html("p", { class: "soft" }, `and ${keys.length - cards.length} more`) : null;
  const one = keys.length === 1 && html("p", {}, html("a", { href: queries.of({ split: splitOf(keys[0]), item: keys[0], a: state.method }) }, "Its queries under every run"));
  place.replaceChildren(html("p", {}, counted(keys.length, "item")), ...[one, html("ul", { class: "cards" }, ...cards), more].filter(Boolean));
}

byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("change", (event) => {
  const { name, value } = event.target;
  address.go({ ...state, [name]: value, ...(name === "method" || name === "split" ? { item: "" } : {}) });
  render();
});
addEventListener("popstate", render);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => found && draw());

async function main() {
  catalogue = await begun();
  if (!catalogue) return;
  ready = catalogue.methods.filter((one) => one.splits.length);
  render();
}

main();
