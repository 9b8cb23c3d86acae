// What stands at the head of every page.

import * as asking from "./asking.js";
import { byId } from "./dom.js";
import { problems } from "./sentences.js";

/** Shows the experiment's name, and the way to its report where there is one. */
export function heading(catalogue) {
  byId("experiment").textContent = catalogue.experiment;
  byId("report").hidden = !catalogue.report;
}

/** The catalogue, under its heading; null where the server gives none, which the page then says. */
export async function begun() {
  try {
    const catalogue = await asking.about();
    heading(catalogue);
    return catalogue;
  } catch (error) {
    problems(byId("problems"), [error.message]);
    return null;
  }
}
