// The pictures of an item and its best moment on a timeline, fetched when they become visible.

import { item } from "./asking.js";
import { html, svg } from "./dom.js";

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    entry.target.dispatchEvent(new Event("seen"));
  }
}, { rootMargin: "300px" });

/** The strip of a hit, empty until it becomes visible. */
export function strip(hit) {
  const place = html("div", { class: "strip waiting" }, ...Array.from({ length: 4 }, () => html("span")));
  const around = html("div", { class: "pictures" }, place);
  place.addEventListener("seen", async () => {
    try {
      around.replaceChildren(...pictures(await item(hit.key), hit.moment));
    } catch (error) {
      around.replaceChildren(html("p", { class: "nothing" }, error.message));
    }
  }, { once: true });
  seen.observe(place);
  return around;
}

function pictures(found, moment) {
  if (!found.pictures.length) return [html("p", { class: "nothing" }, `No pictures: ${found.reason}.`)];
  const frames = found.pictures.map((p) => {
    const inside = moment && found.kind === "video" && p.at >= moment[0] && p.at <= moment[1];
    return html("img", { src: p.source, width: p.width, height: p.height, alt: "", class: inside ? "inside" : undefined });
  });
  const description = found.kind === "video" ? `${frames.length} frames of ${found.item}` : `${found.item} from ${frames.length} sides`;
  const out = [html("div", { class: "strip", role: "img", "aria-label": description }, ...frames)];
  if (moment && found.seconds) out.push(line(found, moment));
  return out;
}

function line(found, [start, end]) {
  const share = (seconds) => (100 * Math.min(seconds, found.seconds)) / found.seconds;
  const ticks = found.pictures.map((p) => svg("line", { x1: share(p.at), x2: share(p.at), y1: 0, y2: 8 }));
  return html("div", { class: "moment" },
    svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "track", width: 100, height: 8, rx: 1 }),
      svg("rect", { class: "reach", x: share(start), width: Math.max(1, share(end) - share(start)), height: 8, rx: 1 }),
      ticks),
    html("small", {}, `best from ${start.toFixed(1)} to ${end.toFixed(1)} s of ${found.seconds.toFixed(1)} s`));
}
