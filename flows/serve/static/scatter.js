// Points on a canvas: chosen by a click, a rectangle, or the arrow keys. Groups differ by colour and by shape.

const RADIUS = 4.5;
const MARGIN = 18;
const CLICK = 12; // pixels around a point in which a click chooses it
const COLOURS = { a: "--dot-a", b: "--dot-b", c: "--dot-c" };

/** For each colouring: the group of a point as `[shape, colour]`, and a legend. */
export const COLOURINGS = {
  split(found) {
    const names = [...new Set(found.points.map((point) => point.split))];
    const looks = [["circle", "a"], ["square", "b"], ["triangle", "c"]];
    const look = (name) => looks[names.indexOf(name) % looks.length];
    return { group: (point) => look(point.split), legend: names.map((name) => [name, ...look(name)]) };
  },
  hub() {
    return { group: (point) => (point.hub ? ["square", "b"] : ["circle", "a"]), legend: [["a hub", "square", "b"], ["no hub", "circle", "a"]] };
  },
  failure(found) {
    const group = (point) => (point.of === null || point.of === 0 ? ["circle", "c"] : point.missed === 0 ? ["circle", "a"] : point.missed < point.of ? ["triangle", "c"] : ["square", "b"]);
    const within = `rank ${found.missed_within}`;
    return { group, legend: [[`every query finds it within ${within}`, "circle", "a"], ["some do not", "triangle", "c"], ["none does", "square", "b"], ["not evaluated", "circle", "c"]] };
  },
};

export class Scatter {
  /** `choose(keys)` hears a selection, `open(key)` a point that is opened. */
  constructor(canvas, points, colouring, choose, open) {
    Object.assign(this, { canvas, points, colouring, choose, open });
    this.chosen = new Set();
    this.pointed = "";
    this.drag = null;
    this.ended = new AbortController();
    const on = (name, handler) => canvas.addEventListener(name, handler, { signal: this.ended.signal });
    on("pointerdown", (event) => this.begin(event));
    on("pointermove", (event) => this.moved(event));
    on("pointerup", (event) => this.end(event));
    on("pointercancel", () => { this.drag = null; this.draw(); });
    on("dblclick", (event) => { const near = this.nearest(this.at(event)); if (near) this.open(near.key); });
    on("keydown", (event) => this.pressed(event));
    canvas.setAttribute("aria-label", `Map of ${points.length} items. Arrow keys choose the nearest item in a direction, Enter opens it.`);
    this.sizes = new ResizeObserver(() => this.resized());
    this.sizes.observe(canvas);
    this.resized();
  }

  resized() {
    const ratio = Math.min(devicePixelRatio, 2);
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    this.ratio = ratio;
    const xs = this.points.map((point) => point.x);
    const ys = this.points.map((point) => point.y);
    const span = (values, room) => {
      const low = values.reduce((a, b) => Math.min(a, b), Infinity);
      const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
      return (value) => MARGIN + ((value - low) / (high - low || 1)) * (room - 2 * MARGIN);
    };
    const [x, y] = [span(xs, width), span(ys, height)];
    this.places = this.points.map((point) => [x(point.x), height - y(point.y)]);
    this.draw();
  }

  draw() {
    if (!this.places) return;
    const context = this.canvas.getContext("2d");
    const style = getComputedStyle(this.canvas);
    const colour = Object.fromEntries(Object.entries(COLOURS).map(([name, variable]) => [name, style.getPropertyValue(variable).trim()]));
    const ink = style.getPropertyValue("--ink").trim();
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.canvas.clientWidth, this.canvas.clientHeight);
    const size = this.points.length > 2000 ? 2.5 : RADIUS;
    this.points.forEach((point, at) => {
      const [shape, name] = this.colouring.group(point);
      const faded = this.chosen.size && !this.chosen.has(point.key);
      context.globalAlpha = faded ? 0.3 : 0.85;
      context.fillStyle = colour[name];
      shaped(context, shape, ...this.places[at], size);
      context.fill();
      if (this.chosen.has(point.key) || point.key === this.pointed) {
        context.globalAlpha = 1;
        context.strokeStyle = ink;
        context.lineWidth = point.key === this.pointed ? 3 : 1.75;
        shaped(context, shape, ...this.places[at], size + 2);
        context.stroke();
      }
    });
    context.globalAlpha = 1;
    if (this.drag) {
      const [x, y, toX, toY] = this.drag;
      context.strokeStyle = ink;
      context.lineWidth = 1;
      context.setLineDash([4, 3]);
      context.strokeRect(Math.min(x, toX), Math.min(y, toY), Math.abs(toX - x), Math.abs(toY - y));
      context.setLineDash([]);
    }
  }

  /** Show a selection without telling of it. */
  select(keys) {
    this.chosen = keys;
    this.draw();
  }

  /** Mark one point, "" for none. */
  point(key) {
    this.pointed = key;
    this.draw();
  }

  set(keys) {
    this.select(new Set(keys));
    this.choose(keys);
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  nearest([x, y]) {
    let best = null;
    let least = CLICK;
    this.places.forEach(([px, py], at) => {
      const far = Math.hypot(px - x, py - y);
      if (far < least) [least, best] = [far, this.points[at]];
    });
    return best;
  }

  begin(event) {
    if (event.button) return;
    this.drag = [...this.at(event), ...this.at(event)];
    this.canvas.setPointerCapture(event.pointerId);
  }

  moved(event) {
    if (this.drag) {
      this.drag.splice(2, 2, ...this.at(event));
      this.draw();
    } else {
      const near = this.nearest(this.at(event));
      this.canvas.title = near ? near.item : "";
    }
  }

  end() {
    if (!this.drag) return;
    const [x, y, toX, toY] = this.drag;
    this.drag = null;
    if (Math.hypot(toX - x, toY - y) < 5) {
      const near = this.nearest([x, y]);
      this.set(near ? [near.key] : []);
      return;
    }
    const inside = (value, a, b) => value >= Math.min(a, b) && value <= Math.max(a, b);
    this.set(this.points.filter((_, at) => inside(this.places[at][0], x, toX) && inside(this.places[at][1], y, toY)).map((point) => point.key));
  }

  pressed(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") this.set([]);
    else if (event.key === "Enter" && this.chosen.size === 1) this.open([...this.chosen][0]);
    else if (step && this.points.length) this.step(step);
    else return;
    event.preventDefault();
  }

  /** Choose the nearest point in a direction; of points at an angle the nearer ones by their distance along it. */
  step([dx, dy]) {
    const current = this.points.findIndex((point) => this.chosen.has(point.key));
    if (current < 0) return this.set([this.points[0].key]);
    const [x, y] = this.places[current];
    let best = null;
    let least = Infinity;
    this.places.forEach(([px, py], at) => {
      const along = (px - x) * dx + (py - y) * dy;
      const across = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      if (along > 0.5 && along >= across / 2 && along + 2 * across < least) [least, best] = [along + 2 * across, this.points[at]];
    });
    if (best) this.set([best.key]);
  }

  close() {
    this.ended.abort();
    this.sizes.disconnect();
  }
}

function shaped(context, shape, x, y, size) {
  context.beginPath();
  if (shape === "square") context.rect(x - size, y - size, 2 * size, 2 * size);
  else if (shape === "triangle") {
    context.moveTo(x, y - 1.25 * size);
    context.lineTo(x + 1.2 * size, y + size);
    context.lineTo(x - 1.2 * size, y + size);
    context.closePath();
  } else context.arc(x, y, size, 0, 2 * Math.PI);
}
