// Axes around a picture that is stretched: their labels are text of the page, so that they keep their size.

import { html } from "./dom.js";

const number = (value) => (Math.abs(value) >= 100 || value === 0 ? value.toFixed(0) : value.toPrecision(2)).replace("-", "\u2212");

/** `picture` with its least and greatest value at the left, and `left`, `middle`, `right` and the title `across` below. */
export function framed(picture, { low, high, title, left, middle, right, across }) {
  const below = [left, middle, right].filter(Boolean).map((text) => html("span", {}, text));
  return html("div", { class: "plot" },
    title && html("p", { class: "y-title" }, `↑ ${title}`),
    html("div", { class: "y-axis", "aria-hidden": "true" }, html("span", {}, number(high)), html("span", {}, number(low))),
    picture,
    below.length ? html("div", { class: "x-axis" }, ...below) : null,
    across && html("p", { class: "x-title" }, `${across} →`));
}
