// Viewer of a point cloud that the user can rotate. three.js is loaded when the first cloud is opened.

import { points } from "./asking.js";
import { calm, html } from "./dom.js";

const STEP = Math.PI / 18; // rotation for one press of an arrow key
const FIELD = 36; // field of view, degrees
const FAR = 3.4; // distance of the camera, in radii of the cloud: all of it is visible from every side
const ROUND = "if (length(gl_PointCoord - 0.5) > 0.5) discard;"; // draws points as discs instead of squares
const HELP = "Drag to rotate, pinch or scroll to zoom; arrow keys rotate, + and − zoom.";

/** Put a viewer of `item` into `stage`; returns `{close}`. */
export function orbit(stage, item) {
  const ended = new AbortController();
  const canvas = html("canvas", { tabindex: 0, role: "img", "aria-label": `The point cloud ${item.item}. ${HELP}` });
  const status = html("p", { class: "soft", role: "status" }, "Loading the point cloud …");
  stage.replaceChildren(canvas, status);
  let viewer = null;
  Promise.all([points(item.key, ended.signal), import("/static/vendor/three/three.module.min.js")])
    .then(([cloud, three]) => {
      if (ended.signal.aborted) return;
      viewer = new Viewer(three, canvas, cloud);
      status.textContent = `${cloud.count.toLocaleString("en")} points. ${HELP}`;
    })
    .catch((error) => {
      if (error.name === "AbortError") return;
      canvas.remove();
      status.textContent = error.message.includes("WebGL") ? "This browser has no WebGL; these pictures show the cloud:" : error.message;
      stage.append(...item.pictures.map((p) => html("img", { src: p.source, width: p.width, height: p.height, alt: `seen from ${p.at} degrees` })));
    });
  return {
    close() {
      ended.abort();
      viewer?.close();
    },
  };
}

class Viewer {
  constructor(three, canvas, cloud) {
    this.canvas = canvas;
    this.renderer = new three.WebGLRenderer({ canvas, antialias: true, alpha: true });
    this.renderer.outputColorSpace = "srgb-linear"; // shows the file's colours unchanged
    this.scene = new three.Scene();
    this.scene.fog = new three.Fog(getComputedStyle(canvas).backgroundColor, FAR - 1.2, FAR + 3.7); // fades points at the back
    this.scene.fog.color.convertLinearToSRGB(); // the page's colour, unchanged like the colours of the points
    this.camera = new three.PerspectiveCamera(FIELD, 1, 0.01, 100);
    this.camera.up.set(0, 0, 1);
    this.camera.position.set(0.72 * FAR, 0.54 * FAR, 0.43 * FAR);
    this.cloud = drawn(three, cloud);
    this.scene.add(this.cloud);
    this.controls = new three.OrbitControls(this.camera, canvas);
    Object.assign(this.controls, { enableDamping: !calm(), minDistance: 0.4, maxDistance: 12, autoRotate: !calm(), autoRotateSpeed: 1.5 });
    this.controls.addEventListener("start", () => this.controls.autoRotate = false);
    canvas.addEventListener("keydown", (event) => this.pressed(event));
    this.sizes = new ResizeObserver(() => this.resized());
    this.sizes.observe(canvas);
    this.resized();
    this.frame = () => {
      this.next = requestAnimationFrame(this.frame);
      this.controls.update();
      this.renderer.render(this.scene, this.camera);
    };
    this.frame();
  }

  resized() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
  }

  pressed(event) {
    const turns = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] }[event.key];
    const closer = { "+": 0.85, "=": 0.85, "-": 1.18 }[event.key];
    if (!turns && !closer) return;
    event.preventDefault();
    event.stopPropagation();
    this.controls.autoRotate = false;
    const { x, y, z } = this.camera.position;
    const far = Math.hypot(x, y, z) * (closer ?? 1);
    const around = Math.atan2(y, x) + (turns?.[0] ?? 0);
    const up = Math.max(-1.5, Math.min(1.5, Math.asin(z / Math.hypot(x, y, z)) + (turns?.[1] ?? 0)));
    this.camera.position.set(far * Math.cos(up) * Math.cos(around), far * Math.cos(up) * Math.sin(around), far * Math.sin(up));
  }

  close() {
    cancelAnimationFrame(this.next);
    this.sizes.disconnect();
    this.controls.dispose();
    this.cloud.geometry.dispose();
    this.cloud.material.dispose();
    this.renderer.dispose();
    this.renderer.forceContextLoss(); // a browser allows only a few WebGL contexts at once
  }
}

/** The cloud scaled into a ball of radius 1 around the origin; points are smaller the more there are. */
function drawn(three, cloud) {
  const { positions, colours, count } = cloud;
  const low = [Infinity, Infinity, Infinity];
  const high = [-Infinity, -Infinity, -Infinity];
  positions.forEach((value, place) => {
    low[place % 3] = Math.min(low[place % 3], value);
    high[place % 3] = Math.max(high[place % 3], value);
  });
  let far = 1e-12;
  const centred = positions.map((value, place) => value - (low[place % 3] + high[place % 3]) / 2);
  for (let p = 0; p < centred.length; p += 3) far = Math.max(far, Math.hypot(centred[p], centred[p + 1], centred[p + 2]));
  const geometry = new three.BufferGeometry();
  geometry.setAttribute("position", new three.BufferAttribute(centred.map((value) => value / far), 3));
  geometry.setAttribute("color", new three.BufferAttribute(Float32Array.from(colours, (value) => value / 255), 3));
  const material = new three.PointsMaterial({ size: Math.max(0.02, 4 / Math.sqrt(count)), vertexColors: true });
  material.onBeforeCompile = (shader) => {
    shader.fragmentShader = shader.fragmentShader.replace("void main() {", `void main() {\n${ROUND}`);
  };
  return new three.Points(geometry, material);
}
