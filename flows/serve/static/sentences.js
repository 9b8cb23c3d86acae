// Problems of an address as sentences: what it names and is not there is said, and nothing else is shown instead.

import { html } from "./dom.js";

/** "hlformer, gare and lean". */
export const listed = (names) => (names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : (names[0] ?? "none"));

/** Show sentences in `place`, or hide it where there are none. */
export function problems(place, sentences) {
  place.hidden = !sentences.length;
  place.replaceChildren(...sentences.map((sentence) => html("p", {}, sentence)));
}

/** The sentence about a name in an address that is not among the known ones. */
export const unknown = (what, name, known) => `This address names the ${what} “${name}”, which is not here; there ${known.length === 1 ? "is" : "are"} ${listed(known)}.`;
