// A video that begins at its best moment.

import { clock, html } from "./dom.js";

const LEAD_SECONDS = 0.3; // before the moment, so that it is not cut

/** Put a player into `stage`; returns `{seek, toggle, onTime, close}`. It starts to play if the browser allows that, as it does after a click. */
export function player(stage, found, moment) {
  const video = html("video", { controls: true, playsinline: true, preload: "metadata", loop: !moment, src: `/media/${found.key}`, tabindex: 0 });
  video.muted = true; // what the store keeps has no sound, and a muted player may start by itself
  const listeners = [];
  const begin = () => {
    video.currentTime = moment ? Math.max(0, moment[0] - LEAD_SECONDS) : 0;
    video.play().catch(() => {}); // a browser that forbids it leaves the controls
  };
  const parts = [video];
  if (moment) {
    parts.push(html("button", { type: "button", class: "again", onclick: begin }, `▶ Best moment, ${clock(moment[0])}–${clock(moment[1])}`));
  }
  video.addEventListener("error", () => {
    if (video.isConnected) video.replaceWith(html("p", { class: "nothing" }, "The browser cannot play this video."));
  });
  video.addEventListener("loadedmetadata", begin, { once: true });
  video.addEventListener("timeupdate", () => {
    for (const listener of listeners) listener(video.currentTime);
    if (moment && !video.paused && video.currentTime > moment[1] + LEAD_SECONDS && !video.dataset.on) {
      video.pause(); // once; who plays on wants to see the rest
      video.dataset.on = "1";
    }
  });
  stage.replaceChildren(...parts);
  return {
    seek(seconds) {
      video.currentTime = seconds;
      video.dataset.on = "1";
    },
    toggle: () => (video.paused ? video.play().catch(() => {}) : video.pause()),
    onTime: (listener) => listeners.push(listener),
    close() {
      video.pause();
      video.removeAttribute("src");
      video.load(); // ends the transfer
    },
  };
}
