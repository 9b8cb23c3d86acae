// The page: shows the state in the address, and changes the address.

import * as address from "./address.js";
import * as asking from "./asking.js";
import * as detail from "./detail.js";
import { byId, counted, html } from "./dom.js";
import * as results from "./results.js";

const SLOW_MS = 1500; // time after which the page says why a search takes long
const form = byId("search");
const field = byId("q");
const columns = byId("columns");
const status = byId("status");
let catalogue; // the answer of /api/about: methods, splits, bounds
let ready; // the methods that can be searched
let state;
let rankings = []; // the rankings that are shown
let shownQuery = ""; // the search that the rankings belong to
let running; // the AbortController of the running search
let opener = ""; // the key of the card to go back to

function normal(target) {
  const method = ready.find((one) => one.name === target.method) ?? ready[0];
  const split = method.splits.includes(target.split) ? target.split : method.splits[0];
  const other = ready.find((one) => one.name === target.with && one.name !== method.name && one.splits.includes(split));
  const top = ["10", "20", "50"].includes(target.top) ? target.top : "10";
  return { ...target, method: method.name, split, with: other?.name ?? "", top };
}

/** Show the state in the address. */
async function render() {
  state = normal(address.read());
  fill();
  document.title = state.q ? `${state.q} – crossreel` : "crossreel";
  const query = address.of({ ...state, item: "", in: "" });
  byId("start").hidden = Boolean(state.q);
  if (!state.q) {
    shownQuery = "";
    rankings = [];
    columns.replaceChildren();
    status.textContent = `${counted(splitOf().items, noun())} and ${counted(splitOf().captions, "caption")} in ${state.split}.`;
    start();
  } else if (query !== shownQuery) {
    if (!await search(query)) return;
  }
  opened();
}

/** Fetch and show the rankings; returns false if another search replaced this one. */
async function search(query) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const methods = [state.method, state.with].filter(Boolean);
  columns.className = methods.length > 1 ? "two" : "";
  columns.replaceChildren(...methods.map(results.waiting));
  status.textContent = "Searching …";
  const slow = setTimeout(() => {
    status.textContent = `Searching … the first search with ${methods.join(" and ")} loads networks, which takes a while.`;
  }, SLOW_MS);
  const found = await Promise.all(methods.map((method) =>
    asking.search(state.q, method, state.split, state.top, signal).catch((error) => ({ method, error }))));
  clearTimeout(slow);
  if (signal.aborted) return false;
  shownQuery = found.some((one) => one.error) ? "" : query;
  rankings = found.filter((one) => !one.error);
  columns.replaceChildren(...found.map((one, place) => {
    if (one.error) return results.failed(one.method, one.error.message, render);
    const other = found.length > 1 && !found[1 - place].error ? found[1 - place] : null;
    return results.column(one, other, state, open);
  }));
  status.textContent = summary(found);
  return true;
}

function summary(found) {
  const done = found.filter((one) => !one.error);
  if (!done.length) return "The search failed.";
  const [first, second] = done;
  const text = `The best ${first.hits.length} of ${counted(splitOf().items, noun())} in ${state.split} for “${state.q}”`;
  if (!second) return `${text}, by ${first.method}.`;
  const keys = new Set(first.hits.map((hit) => hit.key));
  const both = second.hits.filter((hit) => keys.has(hit.key)).length;
  return `${text}, by ${first.method} and ${second.method}; ${both} of them in both.`;
}

/** Show the result in the address, or none. */
function opened() {
  const found = rankings.find((one) => one.method === (state.in || state.method)) ?? rankings[0];
  const hit = state.item && found?.hits.find((one) => one.key === state.item);
  if (!hit) {
    detail.hide();
    if (opener) columns.querySelector(`a.card[data-key="${CSS.escape(opener)}"]`)?.focus();
    opener = "";
    return;
  }
  opener = hit.key;
  byId("previous").disabled = hit.place === 1;
  byId("next").disabled = hit.place === found.hits.length;
  detail.show(hit, found);
}

function open(target) {
  address.go(target, { opened: true });
  render();
}

/** Close the opened result; go back if this page opened it. */
function leave() {
  if (!state.item) return;
  if (history.state?.opened) history.back();
  else {
    address.go({ ...state, item: "", in: "" }, { replace: true });
    render();
  }
}

function step(by) {
  const found = rankings.find((one) => one.method === (state.in || state.method));
  const hit = found?.hits.find((one) => one.key === state.item);
  const next = hit && found.hits[hit.place - 1 + by];
  if (!next) return;
  address.go({ ...state, item: next.key }, { replace: true, opened: history.state?.opened });
  render();
}

// the form -------------------------------------------------------------------------------------------

function fill() {
  if (document.activeElement !== field || field.value.trim() === "" || state.q) field.value = state.q;
  for (const radio of form.elements.method.length ? form.elements.method : [form.elements.method]) radio.checked = radio.value === state.method;
  const method = ready.find((one) => one.name === state.method);
  choices("split", method.splits.map((name) => [name, name]), state.split);
  const others = ready.filter((one) => one.name !== state.method && one.splits.includes(state.split));
  choices("with", [["", "nothing"], ...others.map((one) => [one.name, one.name])], state.with);
  byId("with").parentElement.hidden = ready.length < 2;
  byId("split").parentElement.hidden = catalogue.splits.length < 2;
  byId("top").value = state.top;
}

function choices(id, entries, chosen) {
  byId(id).replaceChildren(...entries.map(([value, text]) => html("option", { value, selected: value === chosen }, text)));
}

function start() {
  byId("examples").replaceChildren(...splitOf().examples.map((text) =>
    html("li", {}, html("button", { type: "button", onclick: () => changeState({ q: text }) }, text))));
}

function changeState(change) {
  const target = { ...state, item: "", in: "", ...change };
  address.go(normal(target));
  render();
}

const splitOf = () => catalogue.splits.find((one) => one.name === state.split);
const noun = () => (catalogue.kind === "pointcloud" ? "cloud" : "video");

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (field.value.trim()) changeState({ q: field.value.trim() });
});
form.addEventListener("change", (event) => {
  if (event.target !== field) changeState({ q: state.q && field.value.trim() ? field.value.trim() : state.q, [event.target.name]: event.target.value });
});

// keys -----------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input, select, textarea");
  if (byId("detail").open) {
    const ours = !typing && !event.target.matches?.("video, canvas");
    if (event.key === " " && event.target === byId("detail-title") && detail.toggle()) event.preventDefault();
    if (ours && event.key === "ArrowLeft") step(-1);
    if (ours && event.key === "ArrowRight") step(1);
  } else if (event.key === "/" && !typing) {
    event.preventDefault();
    field.focus();
    field.select();
  } else if ((!typing || (event.target === field && event.key === "ArrowDown")) && results.moveFocus(event, columns)) {
    event.preventDefault();
  }
});
byId("detail").addEventListener("cancel", (event) => {
  event.preventDefault();
  leave();
});
byId("detail").addEventListener("click", (event) => {
  if (event.target === byId("detail")) leave(); // the backdrop
});
byId("close").addEventListener("click", leave);
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
addEventListener("popstate", render);

// beginning ------------------------------------------------------------------------------------------

function missing(methods) {
  if (!methods.length) return;
  const place = byId("missing");
  place.hidden = false;
  const ways = methods.map((one) => html("p", {}, `${one.name}: `, ...coded(one.missing)));
  place.append(html("summary", {}, `${counted(methods.length, "method")} cannot be searched yet`), ...ways);
}

/** A sentence in which text between backquotes becomes code. */
const coded = (text) => text.split("`").map((part, place) => (place % 2 ? html("code", {}, part) : part));

async function begin() {
  try {
    catalogue = await asking.about();
  } catch (error) {
    status.replaceChildren(html("span", { class: "warn" }, error.message));
    return;
  }
  ready = catalogue.methods.filter((one) => one.splits.length);
  field.maxLength = catalogue.most_characters;
  byId("experiment").textContent = catalogue.experiment;
  byId("methods").append(...ready.map((one) =>
    html("label", {}, html("input", { type: "radio", name: "method", value: one.name }), html("span", {}, one.name))));
  missing(catalogue.methods.filter((one) => one.missing));
  await render();
  if (!state.q) field.focus();
}

begin();
