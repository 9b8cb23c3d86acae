// The form of the search page: methods and runs, split, number of results.

import { byId, html } from "./dom.js";

/** Make the choices of methods and runs; `ready`: what can be searched. */
export function fillRuns(ready) {
  const pill = (one) => html("label", { title: one.differs || undefined }, html("input", { type: "checkbox", name: "run", value: one.name }), html("span", {}, one.name, one.differs && html("small", {}, one.differs)));
  const usual = ready.filter((one) => !one.name.includes("@"));
  const further = ready.filter((one) => one.name.includes("@"));
  byId("methods").append(...usual.map(pill));
  byId("runs").hidden = !further.length;
  byId("runs").querySelector("fieldset").append(...further.map(pill));
}

/** The chosen methods and runs, in the order in which they are offered. */
export const chosenRuns = () => [...document.querySelectorAll("input[name=run]:checked")].map((box) => box.value);

/** Show a state in the form. */
export function show(state, chosen, catalogue, ready) {
  for (const box of document.querySelectorAll("input[name=run]")) box.checked = chosen.includes(box.value);
  if (chosen.some((name) => name.includes("@"))) byId("runs").open = true;
  const method = ready.find((one) => one.name === state.method) ?? ready[0];
  choices("split", method.splits.map((name) => [name, name]), state.split);
  byId("split").parentElement.hidden = catalogue.splits.length < 2;
  byId("top").value = state.top;
}

/** Fill a select. */
export function choices(id, entries, chosen) {
  byId(id).replaceChildren(...entries.map(([value, text]) => html("option", { value, selected: value === chosen }, text)));
}
