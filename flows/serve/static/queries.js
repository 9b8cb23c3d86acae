// The page of all queries of a split with their rank under every evaluated run.

import { items as itemsAddress, listed, queries as address, search as searchAddress } from "./address.js";
import * as asking from "./asking.js";
import { byId, counted, html } from "./dom.js";
import { choices } from "./form.js";
import { heading } from "./heading.js";
import { problems } from "./sentences.js";
import { Windowed } from "./windowed.js";

const ROW_PIXELS = 58; // height of a row, as in pages.css
const FIELDS = ["split", "a", "b", "k", "sort", "text", "words", "seconds"];
const TICKS = ["reverse", "hub", "failed"];
const form = byId("filters");
const status = byId("status");
let state;
let about; // the answer about the window: runs, totals
let columns = []; // the places of the shown runs in the rows: A and B first, then the others
let searchable = () => true; // whether a run can be searched: one that was finished since the server started cannot
let table;
let asked = new AbortController();

/** Show the state in the address. */
async function render({ keep = false } = {}) {
  state = address.read();
  asked.abort();
  asked = new AbortController();
  const filters = filtersOf(state);
  const began = performance.now();
  try {
    about = await asking.queries(filters, 0, 100, asked.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    problems(byId("problems"), [error.message]);
    status.textContent = "No queries are shown.";
    byId("table").replaceChildren();
    return;
  }
  problems(byId("problems"), []);
  fill();
  const spent = ((performance.now() - began) / 1000).toFixed(1);
  status.textContent = `${about.total.toLocaleString("en")} of ${counted(about.of, "query")} in ${about.split}, under ${counted(about.shown.length, "run")} (${spent} s)${about.failed ? `; ${about.failed.toLocaleString("en")} could not be ranked by any run` : ""}.`;
  if (!about.runs.length) status.textContent += " No run is evaluated on this split yet; crossreel run evaluates one.";
  draw(keep);
}

const filtersOf = (from) => Object.fromEntries(Object.entries(from).filter(([name]) => name !== "at"));

function draw(keep) {
  const at = Number(state.at) || 0;
  const signal = asked.signal;
  const first = about.rows;
  const front = [about.a, about.b].map((name) => about.shown.indexOf(name)).filter((place) => place >= 0);
  columns = [...front, ...about.shown.keys()].filter((place, at, all) => all.indexOf(place) === at);
  table = new Windowed(byId("table"), {
    caption: `Queries of ${about.split} with their ranks`, total: about.total, columns: 3 + about.shown.length, rowHeight: ROW_PIXELS,
    head: html("tr", { "aria-rowindex": 1 }, html("th", { scope: "col", class: "query" }, "Query and its item"), ...columns.map((place) => header(about.shown[place])), html("th", { scope: "col" }, `First with ${about.a || "A"}`), html("th", { scope: "col", class: "number" }, "Words", about.timed && html("small", {}, "seconds"))),
    fetch: (from, count) => (from === 0 ? Promise.resolve(first) : asking.queries(filtersOf(state), from, count, signal).then((found) => found.rows)),
    draw: cells, onActive: remember,
  });
  if (state.at !== "") table.move(at, { focus: keep });
}

/** The header of a run's column: a click sorts by its rank. */
function header(name) {
  const run = about.runs.find((one) => one.name === name);
  const role = name === about.a ? "A " : name === about.b ? "B " : "";
  const sorted = state.sort === "rank" && name === about.a;
  return html("th", { scope: "col", class: "number", "aria-sort": sorted ? (state.reverse ? "ascending" : "descending") : undefined },
    html("button", { type: "button", title: `${run.differs || `run of ${run.day}`}; sort by its rank`, onclick: () => change({ a: name, b: name === about.b ? about.a : state.b, sort: "rank", reverse: sorted && !state.reverse ? "1" : "" }) }, role && html("b", {}, role), name.split("@")[0]),
    html("small", {}, ...(name.includes("@") ? [`@${name.split("@")[1]}`, html("br")] : []), `R@1 ${run.recall[1]}`));
}

function cells(row, index) {
  const [method = "", ...others] = columns.map((column) => about.shown[column]).filter(searchable);
  const target = { split: about.split, q: row.text, method, with: others.join(",") };
  const k = Number(state.k) || 1;
  const place = about.shown.indexOf(about.a);
  const first = row.first[place];
  const query = row.failed
    ? html("a", { href: row.key ? itemsAddress.of({ view: "items", split: about.split, item: row.key }) : "#table" }, row.text)
    : html("a", { href: searchAddress.of(target), title: row.text, onclick: () => remember(index) }, row.text);
  return [
    html("th", { scope: "row", class: "query" }, query, html("small", {}, row.item, row.failed && html("span", { class: "bad" }, ` ${row.failed}`))),
    ...columns.map((column) => row.ranks[column]).map((rank) => html("td", { class: rank === null ? "number none" : rank <= k ? "number found" : "number" }, rank === null ? "–" : rank.toLocaleString("en"))),
    html("td", { class: "taken" }, first && html("a", { href: itemsAddress.of({ view: "items", split: about.split, item: first.key, method }), tabindex: -1 }, first.item), first?.hub && html("span", { class: "mark hub", title: "It is among the first places of far more queries than other items" }, "hub"), first && first.key === row.key && html("small", {}, "the right one")),
    html("td", { class: "number" }, String(row.words), row.seconds !== null && html("small", {}, `${row.seconds.toFixed(1)} s`)),
  ];
}

/** Keep the active row in the address, so that the back button and a copied link return to it. */
function remember(index) {
  state.at = String(index);
  address.go(state, { replace: true });
}

function change(next) {
  address.go({ ...state, at: "", ...next });
  return render();
}

// the form -------------------------------------------------------------------------------------------

function fill() {
  choices("split", about.splits.map((name) => [name, name]), about.split);
  const names = about.runs.map((run) => [run.name, run.differs ? `${run.name} (${run.differs})` : run.name]);
  choices("a", names, about.a);
  choices("b", names, about.b);
  for (const name of ["k", "sort", "text", "words", "seconds"]) if (document.activeElement !== byId(name)) byId(name).value = state[name];
  for (const name of TICKS) byId(name).checked = state[name] === "1";
  byId("seconds-label").hidden = !about.timed;
  if ([state.text, state.words, state.seconds, state.hub, state.failed, state.runs].some(Boolean)) byId("more").open = true;
  const chosen = new Set(about.shown);
  byId("runs").replaceChildren(html("legend", {}, "Runs"), ...about.runs.map((run) =>
    html("label", { title: run.differs || run.day }, html("input", { type: "checkbox", name: "shown", value: run.name, checked: chosen.has(run.name) }), html("span", {}, run.name, run.differs && html("small", {}, run.differs)))));
  crossed();
  const all = new URLSearchParams(Object.entries(filtersOf(state)).filter(([, value]) => value)).toString();
  const items = [["item", "its item"], ["taken", "the first result"]].filter(([name]) => state[name]);
  byId("links").replaceChildren(
    html("a", { href: `/api/queries.csv?${all}`, download: "" }, "These queries as CSV"), html("a", { href: `/api/queries.json?${all}`, download: "" }, "as JSON"),
    ...items.map(([name, words]) => html("a", { href: address.of({ ...state, [name]: "", at: "" }) }, `Only where one item is ${words}: show all`)));
  byId("notes").replaceChildren(...about.notes.map((note) => html("p", {}, note)));
}

/** The four numbers of A against B, each a filter. */
function crossed() {
  const { a, b } = about;
  const found = about.crossed;
  byId("crossed").hidden = !("both" in found);
  const k = state.k === "1" ? "first" : `within ${state.k}`;
  const entries = [
    ["all", "all", { found: "", missed: "" }, about.of],
    ["only_a", `only ${a} finds ${k}`, { found: a, missed: b }, found.only_a],
    ["only_b", `only ${b} finds ${k}`, { found: b, missed: a }, found.only_b],
    ["both", "both find", { found: `${a},${b}`, missed: "" }, found.both],
    ["none", "neither finds", { found: "", missed: `${a},${b}` }, found.none],
  ];
  byId("crossed").replaceChildren(...entries.map(([name, words, filter, count]) => {
    const pressed = state.found === filter.found && state.missed === filter.missed;
    const sort = name === "only_a" ? "gain" : name === "none" ? "worst" : state.sort;
    return html("button", { type: "button", "aria-pressed": String(pressed), onclick: () => change({ ...filter, sort, a, b }) }, html("b", {}, (count ?? 0).toLocaleString("en")), ` ${words}`);
  }));
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", (event) => {
  const { name } = event.target;
  if (!form.reportValidity()) return;
  if (name === "shown") {
    const runs = [...form.querySelectorAll("input[name=shown]:checked")].map((box) => box.value);
    const every = !runs.length || runs.length === about.runs.length;
    return change({ runs: every ? "" : runs.join(","), a: runs.length && !runs.includes(about.a) ? "" : state.a, b: runs.length && !runs.includes(about.b) ? "" : state.b });
  }
  if (name === "split") return change({ split: event.target.value, item: "", taken: "", found: "", missed: "", a: "", b: "", runs: "" });
  const other = (name === "a" || name === "b") && { found: "", missed: "", ...(name === "a" && event.target.value === about.b ? { b: about.a } : {}), ...(name === "b" && event.target.value === about.a ? { a: about.b } : {}) };
  if (FIELDS.includes(name)) return change({ [name]: event.target.value.trim(), ...other });
  if (TICKS.includes(name)) change({ [name]: event.target.checked ? "1" : "" });
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches?.("input, select, textarea")) return;
  if (event.key === "/") {
    event.preventDefault();
    byId("more").open = true;
    byId("text").focus();
    return;
  }
  if (!table) return;
  const to = {
    ArrowDown: table.active + 1, ArrowUp: table.active - 1, PageDown: table.active + table.page, PageUp: table.active - table.page,
    Home: 0, End: table.total - 1,
  }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    table.move(to);
  } else if (event.key === "c" && table.active >= 0) {
    navigator.clipboard?.writeText(location.href).then(() => (status.textContent = "The address of this query is copied."), () => {});
  }
});
addEventListener("popstate", () => render({ keep: true }));
addEventListener("resize", () => table?.update());

async function main() {
  const known = await asking.about().catch(() => null);
  if (known) {
    searchable = (name) => known.methods.some((one) => one.name === name && one.splits.includes(about.split));
    heading(known);
  }
  await render({ keep: true });
}

main();
