// Elements made in one call. Text is always set as text, so that text of a corpus cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An HTML element with attributes, listeners (`onclick`) and children, texts or elements. */
export function html(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** An SVG element with attributes, listeners and children. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

export const byId = (id) => document.getElementById(id);

const PLURALS = { query: "queries", process: "processes" };

/** "1 result", "12 results", "2 queries". */
export function counted(number, noun) {
  const last = noun.split(" ").at(-1);
  const plural = last in PLURALS ? noun.slice(0, noun.length - last.length) + PLURALS[last] : `${noun}s`;
  return `${number.toLocaleString("en")} ${number === 1 ? noun : plural}`;
}

/** Seconds in the form of a player: "0:07.5". */
export function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  const rest = (seconds - 60 * minutes).toFixed(1);
  return `${minutes}:${rest.padStart(4, "0")}`;
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A score with a typographic minus sign. */
export const score = (value) => value.toFixed(3).replace("-", "\u2212");
