// Tabs above columns that do not fit beside each other: a tap on one, or a swipe, shows the next column.

import { html } from "./dom.js";

/** Fill `place` with a button for each column in `columns`; the one in view is marked. */
export function tabs(place, columns) {
  const sections = [...columns.children];
  const buttons = sections.map((section) =>
    html("button", { type: "button", onclick: () => columns.scrollTo({ left: section.offsetLeft - columns.offsetLeft, behavior: "smooth" }) }, section.dataset.method));
  place.hidden = sections.length < 2;
  place.replaceChildren(...buttons);
  const update = () => {
    const seen = sections.map((section) => Math.abs(section.offsetLeft - columns.offsetLeft - columns.scrollLeft));
    const nearest = seen.indexOf(Math.min(...seen));
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === nearest)));
  };
  columns.onscroll = update;
  update();
}
