// The search page: shows the state in the address, and changes the address.

import { listed, queries as queriesAddress, search as address } from "./address.js";
import * as asking from "./asking.js";
import { counter } from "./counter.js";
import * as detail from "./detail.js";
import { byId, counted, html } from "./dom.js";
import { chosenRuns, fillRuns, show as showForm } from "./form.js";
import { heading } from "./heading.js";
import { follow, kept } from "./loading.js";
import * as results from "./results.js";
import { verdict } from "./scale.js";
import { listed as inWords, problems, unknown } from "./sentences.js";
import { tabs } from "./tabs.js";
import { column as uploaded } from "./upload.js";

const NOUNS = { video: "video", pointcloud: "cloud" };
const TOPS = ["10", "20", "50"];
const form = byId("search");
const field = byId("q");
const columns = byId("columns");
const status = byId("status");
let catalogue; // the answer of /api/about: methods, splits, bounds
let ready; // the methods and runs that can be searched
let state;
let rankings = []; // the rankings that are shown
let shownQuery = ""; // the search that the rankings belong to
let running; // the AbortController of the running search
let opener = ""; // the key of the card to go back to
let fits = () => true; // whether the query is short enough to be sent

/** The state of an address with its missing parts filled in, and a sentence for each name that is not there. */
function checked(target) {
  const wrong = [];
  const names = ready.map((one) => one.name);
  const exact = (name) => ready.find((one) => one.name === name || (name.includes("@") && one.name.split("@")[0] === name.split("@")[0] && name.split("@")[1].length >= 8 && one.run.startsWith(name.split("@")[1])));
  const method = target.method ? exact(target.method) : ready[0];
  if (!method) wrong.push(unknown("method", target.method, names));
  const others = target.method || target.with ? listed(target.with) : ofOtherKinds(ready[0]);
  for (const name of others) if (!exact(name)) wrong.push(unknown("method", name, names));
  const split = target.split || (method ?? ready[0]).splits[0];
  if (method && !method.splits.includes(split)) wrong.push(unknown("split", split, method.splits));
  const top = target.top || "10";
  if (!TOPS.includes(top)) wrong.push(unknown("number of results", top, TOPS));
  const from = target.from || "1";
  if (!/^[1-9]\d{0,6}$/.test(from)) wrong.push(`This address begins at place “${from}”, which is no place.`);
  if (target.in && !exact(target.in)) wrong.push(unknown("method", target.in, names));
  const beside = others.map(exact).filter((one) => one && one !== method && one.splits.includes(split)).map((one) => one.name);
  return { wrong, state: { ...target, method: method?.name ?? "", split, with: [...new Set(beside)].join(","), top, from } };
}

/** Show the state in the address. */
async function render() {
  const found = checked(address.read());
  state = found.state;
  problems(byId("problems"), found.wrong);
  showForm(state, [state.method, ...listed(state.with)], catalogue, ready);
  if (document.activeElement !== field || field.value.trim() === "" || state.q) field.value = state.q;
  fits();
  document.title = state.q ? `${state.q} – crossreel` : "crossreel";
  const query = address.of({ ...state, item: "", in: "" });
  byId("start").hidden = Boolean(state.q) || Boolean(found.wrong.length);
  if (found.wrong.length) return clear("");
  if (!state.q) {
    clear(`${counted(splitOf().items, new Set(ready.map((one) => one.kind)).size === 1 ? NOUNS[ready[0].kind] : "item")} and ${counted(splitOf().captions, "caption")} in ${state.split}.`);
    start();
  } else if (!fits()) {
    return clear("");
  } else if (query !== shownQuery) {
    if (!await search(query)) return;
  }
  await opened();
}

function clear(sentence) {
  running?.abort();
  shownQuery = "";
  rankings = [];
  columns.replaceChildren();
  for (const id of ["tabs", "pager", "links"]) byId(id).hidden = true;
  status.textContent = sentence;
  detail.hide();
}

/** Fetch and show the rankings, each as soon as it is there; returns false if another search replaced this one. */
async function search(query) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const methods = [state.method, ...listed(state.with)];
  const following = new AbortController();
  signal.addEventListener("abort", () => following.abort());
  begin(methods);
  status.textContent = "Searching …";
  follow(methods, state.split, (method) => columns.querySelector(`.column[data-method="${CSS.escape(method)}"] .loading`), following.signal);
  const found = await Promise.all(methods.map((method) =>
    asking.search({ ...state, method, key: state.item && !state.in ? state.item : "" }, signal).catch((error) => ({ method, error }))));
  following.abort();
  if (signal.aborted) return false;
  shownQuery = found.some((one) => one.error) ? "" : query;
  rankings = found.filter((one) => !one.error);
  columns.replaceChildren(...found.map((one, place) => {
    if (one.error) return results.failed(one.method, one.error.message, render);
    const other = found.length === 2 ? found[1 - place] : place ? found[0] : null;
    const comparable = other && !other.error && kindOf(other) === kindOf(one);
    return results.column(one, comparable ? other : null, state, open, nameOf(one.method).differs);
  }));
  tabs(byId("tabs"), columns);
  status.textContent = summary();
  around();
  const several = new Set(rankings.map(kindOf)).size > 1;
  for (const one of rankings) judge(one, signal, several);
  showMemory();
  return true;
}

function begin(methods) {
  columns.className = methods.length > 1 ? "many" : "";
  columns.replaceChildren(...methods.map(results.waiting));
  tabs(byId("tabs"), columns);
  for (const id of ["pager", "links"]) byId(id).hidden = true;
}

/** Say above a column whether anything fits: what captions of other items get is asked for after the search. */
async function judge(ranking, signal, several) {
  const best = ranking.scale.high;
  const said = await asking.scale(ranking.method, ranking.split).then((chance) => verdict(best, chance, several)).catch(() => null);
  if (signal.aborted || !said) return;
  columns.querySelector(`.column[data-method="${CSS.escape(ranking.method)}"] .verdict`)?.replaceChildren(said);
}

function summary() {
  if (!rankings.length) return "The search failed.";
  const [first] = rankings;
  const last = Math.max(...rankings.map((one) => one.hits.at(-1)?.place ?? 0));
  const places = Number(state.from) > 1 ? `Places ${state.from} to ${last}` : `The best ${Math.max(...rankings.map((one) => one.hits.length))}`;
  const galleries = new Map(rankings.map((one) => [kindOf(one), counted(one.gallery, NOUNS[kindOf(one)])]));
  const text = `${places} of ${inWords([...galleries.values()])} in ${state.split} for “${state.q}”, by ${inWords(rankings.map((one) => one.method))}`;
  if (galleries.size > 1) return `${text}. Scores of different methods cannot be compared; the line above each column says what its best score is worth, which can.`;
  if (rankings.length === 1) return `${text}.`;
  const common = first.hits.filter((hit) => rankings.every((one) => one.hits.some((other) => other.key === hit.key)));
  return `${text}; ${common.length} of them in ${rankings.length === 2 ? "both" : "all"}.`;
}

/** Links to the query's row among all queries, and to the places before and after. */
function around() {
  const right = rankings[0]?.right[0];
  const links = byId("links");
  links.hidden = !right;
  if (right) {
    const shared = { split: state.split, item: right.key, a: state.method, b: listed(state.with)[0] ?? "" };
    links.replaceChildren(html("a", { href: queriesAddress.of(shared) }, `All queries of ${right.item} with their ranks under every run`));
  }
  const [top, from] = [Number(state.top), Number(state.from)];
  const last = Math.max(0, ...rankings.map((one) => one.gallery));
  const link = (text, place) => html("a", { href: address.of({ ...state, from: String(place) }), onclick: (event) => follows(event, { from: String(place) }) }, text);
  byId("pager").hidden = from === 1 && from + top > last;
  byId("pager").replaceChildren(
    ...(from > 1 ? [link("← better places", Math.max(1, from - top))] : []),
    ...(from > 1 + top ? [link("first places", 1)] : []),
    ...(from + top <= last ? [link("further places →", from + top)] : []));
}

function follows(event, change) {
  event.preventDefault();
  changeState(change);
}

/** Show the result in the address, or none; one that is beyond the places shown is asked for by its key. */
async function opened() {
  const found = rankings.find((one) => one.method === (state.in || state.method)) ?? rankings[0];
  if (!state.item || !found) {
    detail.hide();
    if (opener) columns.querySelector(`a.card[data-key="${CSS.escape(opener)}"]`)?.focus();
    opener = "";
    return;
  }
  let hit = [...found.hits, ...found.right].find((one) => one.key === state.item);
  if (!hit) {
    try {
      hit = (await asking.search({ ...state, method: found.method, key: state.item })).asked;
    } catch (error) {
      problems(byId("problems"), [`This address opens the item “${state.item}”. ${error.message}`]);
      return;
    }
  }
  opener = hit.key;
  const row = found.hits.findIndex((one) => one.key === hit.key);
  byId("previous").disabled = row < 1;
  byId("next").disabled = row < 0 || row === found.hits.length - 1;
  detail.show(hit, found);
}

/** Go to a state; `focus`: the key of a card of `method` that has the focus afterwards. */
async function open(target, focus = "", method = "") {
  address.go(target, { opened: Boolean(target.item) });
  await render();
  if (focus) columns.querySelector(`.column[data-method="${CSS.escape(method)}"] a.card[data-key="${CSS.escape(focus)}"]`)?.focus();
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
  const row = found?.hits.findIndex((one) => one.key === state.item) ?? -1;
  const next = row >= 0 && found.hits[row + by];
  if (!next) return;
  address.go({ ...state, item: next.key }, { replace: true, opened: history.state?.opened });
  render();
}

// the form -------------------------------------------------------------------------------------------

function start() {
  byId("examples").replaceChildren(...splitOf().examples.map((text) =>
    html("li", {}, html("button", { type: "button", onclick: () => changeState({ q: text }) }, text))));
}

function changeState(change) {
  const target = { ...state, item: "", in: "", from: "1", ...change };
  address.go(checked(target).state);
  render();
}

const splitOf = () => catalogue.splits.find((one) => one.name === state.split) ?? catalogue.splits[0];
const nameOf = (name) => ready.find((one) => one.name === name);
const kindOf = (ranking) => nameOf(ranking.method).kind;

/** The first method of each kind of items that `method` does not rank: all kinds are searched unless the address names a method. */
function ofOtherKinds(method) {
  const first = new Map(ready.map((one) => [one.kind, one.name]).reverse());
  return [...first].filter(([kind]) => kind !== method.kind).map(([, name]) => name);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (field.value.trim() && fits()) changeState({ q: field.value.trim() });
});
form.addEventListener("change", (event) => {
  if (event.target === field) return;
  if (event.target.id === "file") return byFile(event.target);
  const q = state.q && field.value.trim() && fits() ? field.value.trim() : state.q;
  if (event.target.name !== "run") return changeState({ q, [event.target.name]: event.target.value });
  const runs = chosenRuns();
  if (!runs.length) event.target.checked = true; // one stays
  const [method, ...others] = runs.length ? runs : [event.target.value];
  changeState({ q, method, with: others.join(",") });
});

async function byFile(input) {
  const [file] = input.files;
  if (!file) return;
  clear(`Searching by ${file.name} …`);
  byId("start").hidden = true;
  running = new AbortController();
  const { signal } = running;
  begin([state.method]);
  const following = new AbortController();
  signal.addEventListener("abort", () => following.abort());
  follow([state.method], state.split, () => columns.querySelector(".loading"), following.signal);
  try {
    const found = await uploaded(file, state, catalogue.most_bytes, signal);
    columns.replaceChildren(found);
    status.textContent = `The captions in ${state.split} that fit ${file.name} best, by ${state.method}. The file is not kept.`;
  } catch (error) {
    if (error.name === "AbortError") return;
    columns.replaceChildren(results.failed(state.method, error.message, () => byFile(input)));
    status.textContent = "The search failed.";
  } finally {
    following.abort();
    input.value = "";
  }
}

// keys -----------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input:not([type=checkbox]), select, textarea");
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

/** Methods with a sentence each, folded under a summary. */
function told(id, methods, summaryText, sentence) {
  if (!methods.length) return;
  const place = byId(id);
  place.hidden = false;
  place.append(html("summary", {}, summaryText), ...methods.map((one) => html("p", {}, ...coded(sentence(one)))));
}

/** A sentence in which text between backquotes becomes code. */
const coded = (text) => text.split("`").map((part, place) => (place % 2 ? html("code", {}, part) : part));

async function showMemory() {
  byId("memory").textContent = await kept().catch(() => "");
}

async function main() {
  try {
    catalogue = await asking.about();
  } catch (error) {
    status.replaceChildren(html("span", { class: "warn" }, error.message));
    return;
  }
  ready = catalogue.methods.filter((one) => one.splits.length);
  fits = counter(field, byId("length"), catalogue.most_characters);
  heading(catalogue);
  fillRuns(ready);
  const missing = catalogue.methods.filter((one) => one.missing);
  told("missing", missing, `${counted(missing.length, "method")} cannot be searched yet`, (one) => `${one.name}: ${one.missing}`);
  const stale = ready.filter((one) => one.note);
  told("notes", stale, `${counted(stale.length, "method")} of an earlier run`, (one) => one.note);
  await render();
  showMemory();
  if (!state.q) field.focus();
}

main();
