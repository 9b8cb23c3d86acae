// Draws a method's explanation of a match: known arrays by their meaning, any other as bars or a number.

import { framed } from "./axes.js";
import { clock, html, svg } from "./dom.js";

const WIDE = 600;
const TALL = 120;
const WORDS = /[\p{L}\p{N}]+|[^\s\p{L}\p{N}]/gu;

/** `arrays`: nested lists by name. Returns `{parts, at}`: elements, and a function to call with the player's time in seconds. */
export function draw(arrays, about) {
  if (!Object.keys(arrays).length) {
    return { parts: [html("p", {}, `${about.method} gives a score alone: it cannot say what carried it.`)] };
  }
  const recipe = RECIPES.find(([needs]) => needs.every((name) => name in arrays));
  const drawn = recipe ? recipe[1](arrays, about) : { parts: [], used: [] };
  const rest = Object.entries(arrays).filter(([name]) => !drawn.used.includes(name));
  const others = rest.map(([name, values]) => plain(name, values));
  return { parts: [...drawn.parts, ...(recipe && others.length ? [html("details", {}, html("summary", {}, "All numbers"), ...others)] : others)], at: drawn.at };
}

const RECIPES = [
  [["clip_scores", "frame_scores"], timeline],
  [["frame_increments", "pool_weights"], increments],
  [["edge_weights", "node_weights"], hyperedges],
  [["text_weights", "cloud_weights"], cone],
  [["centrality"], hub],
];

const number = (value) => (value === null ? "–" : Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(3));
const paragraph = (...parts) => html("p", {}, ...parts);
const highest = (values) => values.reduce((best, value, place) => (value > values[best] ? place : best), 0);

/** HLFormer: cosines over time; the score is the weighted sum of the best clip's and the best frame's. */
function timeline(arrays, about) {
  const clips = arrays.clip_scores;
  const frames = arrays.frame_scores.slice(0, arrays.frame_count ?? undefined);
  const [clipShare, frameShare] = arrays.shares ?? [null, null];
  const [clip, frame] = [highest(clips), highest(arrays.frame_scores)];
  const low = Math.min(0, ...clips, ...frames);
  const high = Math.max(...clips, ...frames, low + 1e-6);
  const y = (value) => TALL - 8 - ((value - low) / (high - low)) * (TALL - 16);
  const bars = clips.map((value, place) => svg("rect", {
    class: place === clip ? "bar best" : "bar", x: (place * WIDE) / clips.length + 1, width: WIDE / clips.length - 2,
    y: y(value), height: Math.max(1, TALL - y(value)),
  }));
  const line = frames.map((value, place) => `${(((place + 0.5) * WIDE) / frames.length).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const cursor = svg("line", { class: "cursor", x1: -9, x2: -9, y1: 0, y2: TALL });
  const padded = frame >= frames.length;
  const picture = svg("svg", {
    viewBox: `0 0 ${WIDE} ${TALL}`, preserveAspectRatio: "none", role: "img", class: about.seek ? "chart seekable" : "chart",
    "aria-label": `Scores over the video; the best of ${clips.length} stretches is number ${clip + 1}`,
    onclick: (event) => {
      const box = picture.getBoundingClientRect();
      if (about.seek && about.seconds) about.seek(((event.clientX - box.left) / box.width) * about.seconds);
    },
  }, ...bars, svg("polyline", { points: line }), cursor);
  const plot = framed(picture, { low, high, title: "cosine with the caption", ...inTime(about, frames.length) });
  const key = html("p", { class: "key" }, html("span", { class: "swatch bar" }), "stretches ", html("span", { class: "swatch best" }), "the best one ", html("span", { class: "swatch line" }), "single frames");
  const sum = clipShare === null ? null : paragraph(
    "Score = ", html("b", {}, number(clipShare)), ` × best stretch (${number(clips[clip])}) + `, html("b", {}, number(frameShare)),
    ` × best frame (${number(arrays.frame_scores[frame])})`, padded ? ", which is padding behind the last frame." : ".");
  const at = about.seconds ? (seconds) => {
    const x = (Math.min(seconds, about.seconds) / about.seconds) * WIDE;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  } : null;
  const hint = about.seek ? paragraph("A click on the chart shows that second.") : null;
  return { parts: [sum, plot, key, hint].filter(Boolean), used: ["clip_scores", "frame_scores", "frame_count", "shares"], at };
}

/** The labels of an axis over time, or over frames where the length of the video is not known. */
const inTime = (about, count) => (about.seconds ? { left: clock(0), middle: clock(about.seconds / 2), right: clock(about.seconds), across: "time in the video" } : { left: "1", right: String(count), across: "frame" });

/** GARE: how far each frame moved the caption, and its share in the pooled video. */
function increments(arrays, about) {
  const real = arrays.real ?? arrays.pool_weights.map(() => 1);
  const kept = (values) => values.filter((_, place) => real[place]);
  const parts = [];
  if ("increment" in arrays) {
    parts.push(paragraph("For this video the caption's vector, of length ", html("b", {}, number(arrays.text)), ", was moved by ", html("b", {}, number(arrays.increment)), "."));
  }
  parts.push(titled("How far each frame moved it", columns(kept(arrays.frame_increments), about, { title: "length of its part", ...inTime(about, kept(real).length) })));
  parts.push(titled("Share of each frame in the video's vector", columns(kept(arrays.pool_weights), about, { title: "share", ...inTime(about, kept(real).length) })));
  return { parts, used: ["increment", "text", "frame_increments", "pool_weights", "real"] };
}

/** LEAN: attention to hyperedges, and the nodes' shares in the classified sum. */
function hyperedges(arrays, about) {
  const triples = (arrays.words ?? []).map((spans) => spans.filter(([start, end]) => end > start).map(([start, end]) => [...about.query].slice(start, end).join("")));
  const named = triples.map((words) => words.join(" · ")).filter(Boolean);
  const edges = arrays.edge_weights.slice(0, 3 + named.length);
  const nodes = arrays.node_weights;
  const most = nodes.length - (arrays.words?.length ?? 0);
  const frames = nodes.slice(1, most);
  const said3 = ["everything", "the frames", "the caption", ...named.map((words) => `“${words}”`)];
  const parts = [titled("Attention to the hyperedge of …", rows(said3.map((name, place) => [name, edges[place]])))];
  const shares = [["the video as a whole", nodes[0]], ["its frames together", sum(frames)], ...named.map((words, place) => [`“${words}”`, nodes[most + place]])];
  parts.push(titled("Share in what is classified", rows(shares)));
  parts.push(titled("Share of each frame", columns(frames, about, { title: "share", ...inTime(about, frames.length) }, new Set(arrays.top ?? []))));
  if ((arrays.top ?? []).length) parts.push(paragraph("Green: the frames closest to the caption, which represent the video in the hyperedges."));
  return { parts, used: ["edge_weights", "node_weights", "words", "top"] };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** H2ARN: the cloud's angle to the caption's cone, and the weight of each token. */
function cone(arrays, about) {
  const parts = [];
  if ("angle" in arrays) {
    const inside = arrays.angle < arrays.aperture;
    const degrees = (radians) => `${((180 * radians) / Math.PI).toFixed(1)}°`;
    parts.push(paragraph("The cloud lies at ", html("b", {}, degrees(arrays.angle)), " from the axis of the caption's cone, whose half opening is ", html("b", {}, degrees(arrays.aperture)), inside ? ": inside." : ": outside."));
    parts.push(coned(arrays.angle, arrays.aperture, inside));
  }
  parts.push(words(arrays.text_weights, about.query));
  const sorted = [...arrays.cloud_weights].sort((a, b) => b - a);
  parts.push(titled(`What the ${sorted.length} tokens of the cloud weigh, heaviest first`, columns(thinned(sorted, 120), {}, { title: "weight", left: "heaviest", right: "lightest", across: "tokens" })));
  return { parts, used: ["angle", "aperture", "text_weights", "cloud_weights"] };
}

/** A cone with its axis to the right, and the direction of the cloud. */
function coned(angle, aperture, inside) {
  const [x, y, far] = [90, 75, 190];
  const end = (radians, length) => `${(x + length * Math.cos(radians)).toFixed(1)},${(y - length * Math.sin(radians)).toFixed(1)}`;
  const half = Math.min(aperture, Math.PI / 2);
  const arc = `M${x},${y} L${end(half, far)} A${far},${far} 0 0 1 ${end(-half, far)} Z`;
  const fits = Math.min(far - 20, (y - 10) / Math.max(Math.abs(Math.sin(angle)), 1e-9), Math.cos(angle) < 0 ? (x - 15) / -Math.cos(angle) : far);
  const place = end(angle, fits).split(",");
  return svg("svg", { viewBox: "0 0 300 150", class: "cone", role: "img", "aria-label": inside ? "The cloud is inside the cone" : "The cloud is outside the cone" },
    svg("path", { class: "opening", d: arc }),
    svg("line", { class: "axis", x1: x, y1: y, x2: x + far, y2: y }),
    svg("line", { class: inside ? "ray inside" : "ray", x1: x, y1: y, x2: place[0], y2: place[1] }),
    svg("circle", { class: inside ? "ray inside" : "ray", cx: place[0], cy: place[1], r: 6 }),
    svg("circle", { class: "apex", cx: x, cy: y, r: 4 }),
    svg("text", { x: x - 8, y: y + 4, "text-anchor": "end" }, "caption"));
}

/** NeighborRetr: the hubness of the video. */
function hub(arrays) {
  return {
    parts: [paragraph("The video's mean score with the captions in the memory bank of training is ", html("b", {}, number(arrays.centrality)), ". During training, this method gives less weight to videos that are close to many captions; the score itself does not use this value.")],
    used: ["centrality"],
  };
}

/** A caption whose words are shaded by weight if every word is one token; bars otherwise. */
function words(weights, query) {
  const found = query.match(WORDS) ?? [];
  const used = weights.findLastIndex((value) => value > 0) + 1;
  if (used !== found.length + 2) { // a word has several tokens, or padding has weights
    return titled(`What the ${used} tokens of the caption weigh: its begin, words, end and padding`, columns(weights.slice(0, used), {}, { title: "weight", left: "begin", right: `token ${used}`, across: "tokens in order" }));
  }
  const inner = weights.slice(1, -1).slice(0, found.length);
  const most = Math.max(...inner, 1e-9);
  return titled("Weight of each word of the caption", html("p", { class: "words" }, ...found.flatMap((word, place) => {
    const mark = html("mark", { title: `weight ${number(inner[place])}` }, word);
    mark.style.setProperty("--weight", (inner[place] / most).toFixed(3));
    return [mark, " "];
  }), html("small", {}, `begin ${number(weights[0])}, end ${number(weights[used - 1])}`)));
}

/** Any array: a number, bars, or the first row of several. */
function plain(name, values) {
  const title = name.replaceAll("_", " ");
  if (!Array.isArray(values)) return paragraph(`${title}: `, html("b", {}, typeof values === "number" ? number(values) : String(values)));
  const flat = values.flat(Infinity);
  return titled(`${title} (${flat.length})`, columns(thinned(flat, 240), {}, { title: "value", left: "1", right: String(flat.length), across: "position" }));
}

const titled = (title, picture) => html("figure", { class: "panel" }, html("figcaption", {}, title), picture);

const thinned = (values, most) => (values.length <= most ? values : Array.from({ length: most }, (_, place) => values[Math.floor((place * values.length) / most)]));

/** Vertical bars; those at `marked` positions are highlighted. With the length of a video, a click seeks to that time. */
function columns(values, about = {}, labels = {}, marked = new Set()) {
  const tall = 64;
  const high = Math.max(...values.map((value) => value ?? 0), 1e-9);
  const low = Math.min(0, ...values.map((value) => value ?? 0));
  const each = WIDE / Math.max(values.length, 1);
  const gap = Math.min(2, each / 4);
  const bars = values.map((value, place) => {
    const height = Math.max(1, (((value ?? 0) - low) / (high - low)) * tall);
    const where = about.seconds ? ` at ${clock(((place + 0.5) * about.seconds) / values.length)}` : "";
    return svg("rect", {
      class: marked.has(place) ? "bar best" : "bar", x: place * each + gap / 2, width: each - gap, y: tall - height, height,
      onclick: about.seek && about.seconds ? () => about.seek(((place + 0.5) * about.seconds) / values.length) : undefined,
    }, svg("title", {}, `${place + 1}${where}: ${number(value)}`));
  });
  const best = highest(values);
  const picture = svg("svg", {
    viewBox: `0 0 ${WIDE} ${tall}`, preserveAspectRatio: "none", role: "img", class: `chart low${about.seek ? " seekable" : ""}`,
    "aria-label": `${values.length} values, the greatest is number ${best + 1}: ${number(values[best])}`,
  }, ...bars);
  return framed(picture, { low, high, ...labels });
}

/** Horizontal bars with names. */
function rows(entries) {
  const high = Math.max(...entries.map(([, value]) => value), 1e-9);
  return html("dl", { class: "rows" }, ...entries.map(([name, value]) =>
    html("div", {}, html("dt", {}, name), html("dd", {}, svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "track", width: 100, height: 6 }), svg("rect", { class: "reach", width: (100 * Math.max(value, 0)) / high, height: 6 })), html("span", {}, number(value))))));
}
