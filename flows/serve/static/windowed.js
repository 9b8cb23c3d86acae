// A table of which only the rows in view exist: tens of thousands of rows scroll as quickly as twenty.

import { html } from "./dom.js";

const BLOCK = 100; // rows that are asked for at once
const SPARE = 12; // rows that are kept above and below those in view

/**
 * A table in `place`. `head`: a row of headers. `fetch(from, count)`: promise of the rows. `draw(row, index)`: the cells.
 * `rowHeight`: in pixels, the same for every row. Returns `{show, active, move, refresh}`.
 */
export class Windowed {
  constructor(place, { caption, head, total, columns, fetch, draw, rowHeight, onActive }) {
    Object.assign(this, { place, total, columns, fetch, draw, rowHeight, onActive });
    this.blocks = new Map();
    this.active = -1;
    this.above = html("tr", { class: "spacer", "aria-hidden": "true" }, html("td", { colspan: columns }));
    this.below = html("tr", { class: "spacer", "aria-hidden": "true" }, html("td", { colspan: columns }));
    this.body = html("tbody", {});
    this.head = html("thead", {}, head);
    place.replaceChildren(html("table", { "aria-rowcount": total + 1 }, html("caption", { class: "hidden" }, caption), this.head, this.body));
    this.waiting = 0;
    place.onscroll = () => {
      cancelAnimationFrame(this.waiting);
      this.waiting = requestAnimationFrame(() => this.update());
    };
    this.update();
  }

  /** The first row in view. */
  get first() {
    return Math.max(0, Math.floor(this.place.scrollTop / this.rowHeight));
  }

  /** Draw the rows around the view; those that are not here yet are asked for. */
  async update() {
    const seen = Math.ceil(this.place.clientHeight / this.rowHeight);
    const from = Math.max(0, this.first - SPARE);
    const to = Math.min(this.total, this.first + seen + SPARE);
    const needed = [];
    for (let block = Math.floor(from / BLOCK); block * BLOCK < to; block++) {
      if (!this.blocks.has(block)) {
        this.blocks.set(block, null);
        needed.push(this.fetch(block * BLOCK, BLOCK).then((rows) => this.blocks.set(block, rows), (error) => {
          this.blocks.delete(block);
          throw error;
        }));
      }
    }
    this.paint(from, to);
    if (!needed.length) return;
    try {
      await Promise.all(needed);
    } catch (error) {
      if (error.name !== "AbortError") this.body.replaceChildren(html("tr", {}, html("td", { colspan: this.columns, class: "warn" }, error.message)));
      return;
    }
    this.update();
  }

  paint(from, to) {
    const rows = [];
    for (let index = from; index < to; index++) {
      const row = this.blocks.get(Math.floor(index / BLOCK))?.[index % BLOCK];
      const cells = row ? this.draw(row, index) : [html("td", { colspan: this.columns, class: "soft" }, "…")];
      rows.push(html("tr", { "aria-rowindex": index + 2, "data-index": index, class: index === this.active ? "active" : undefined }, ...cells));
    }
    const focused = this.body.contains(document.activeElement);
    this.above.firstChild.style.height = `${from * this.rowHeight}px`;
    this.below.firstChild.style.height = `${Math.max(0, this.total - to) * this.rowHeight}px`;
    this.body.replaceChildren(...(from ? [this.above] : []), ...rows, ...(to < this.total ? [this.below] : []));
    if (focused) this.focus();
  }

  /** Make a row the active one, bring it into view and give it the focus. */
  move(index, { focus = true } = {}) {
    if (!this.total) return;
    this.active = Math.max(0, Math.min(this.total - 1, index));
    const top = this.active * this.rowHeight;
    const room = this.place.clientHeight - this.head.offsetHeight - this.rowHeight;
    if (top < this.place.scrollTop) this.place.scrollTop = top;
    else if (top > this.place.scrollTop + room) this.place.scrollTop = top - room;
    this.update();
    if (focus) this.focus();
    this.onActive?.(this.active);
  }

  focus() {
    this.body.querySelector(`tr[data-index="${this.active}"] a`)?.focus({ preventScroll: true });
  }

  /** Number of rows that fit into the view. */
  get page() {
    return Math.max(1, Math.floor(this.place.clientHeight / this.rowHeight) - 2);
  }
}
