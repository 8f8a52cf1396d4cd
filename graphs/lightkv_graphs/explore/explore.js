// @ts-check
// The state of the page, and what changes it.

import { cellBitmap, limitsOf } from "./colours.js";
import { legend, marks, shared, summary, toggles } from "./controls.js";
import { differing, example, Trace } from "./data.js";
import { fate, whereabouts } from "./details.js";
import { byId, element } from "./dom.js";
import { Panel } from "./panel.js";

const given = JSON.parse(byId("data").textContent);
const traces = given.views.map((view) => new Trace(view));
const pictures = given.pictures.map((source) => element("img", { src: source, alt: "" }));
const panels = traces.map((trace, number) => new Panel(trace, pictures, number));
const last = Math.max(...traces.map((trace) => trace.last));

const state = {
  image: 0,
  position: 0,
  example: /** @type {number | null} */ (null),
  token: /** @type {number | null} */ (null),
  pinned: false,
  cursor: /** @type {number | null} */ (null),
  show: { clusters: false, windows: false, survivors: false, edges: false, guidance: false, differences: false },
};

function image() {
  return traces[0].images[state.image];
}

/** Draws everything afresh. */
function draw() {
  const differences = state.show.differences ? differing(traces, state.image, state.position) : null;
  const scale = state.show.guidance ? limitsOf(panels.flatMap(({ board }) => board.heard(state))) : null;
  for (const panel of panels) panel.draw(state, differences, scale);
  byId("stage").value = String(state.position);
  [...byId("marks").children].forEach((name, position) => name.classList.toggle("now", position === state.position));
  byId("stage").ariaValueText = `${state.position ? "after " : ""}${byId("marks").children[state.position].textContent}`;
  byId("back").disabled = state.position === 0;
  byId("on").disabled = state.position === last;
  byId("legend").hidden = !scale;
  if (scale) byId("legend").replaceChildren(...legend(scale));
  mark();
}

/** Draws what is pointed at. */
function mark() {
  for (const panel of panels) panel.mark(state);
}

function fit() {
  for (const panel of panels) panel.fit(state);
  draw();
}

function go(position) {
  const next = Math.max(0, Math.min(last, position));
  if (next === state.position) return;
  for (const panel of panels) panel.fade();
  state.position = next;
  draw();
}

/** Points at a token, or at nothing. */
function point(token, { pinned = false, cursor = null, say = false } = {}) {
  if (token === state.token && pinned === state.pinned && cursor === state.cursor) return;
  Object.assign(state, { token, pinned, cursor });
  mark();
  if (say) tell();
}

/** Says in words what is pointed at, for those who listen. */
function tell() {
  const { token, pinned, position } = state;
  const words = token === null ? ["No patch"] : traces.map((trace) => `${trace.name} ${fate(trace, token, position)}`);
  const where = token === null ? "" : `${whereabouts(traces[0], token)}${pinned ? ", pinned" : ""}: `;
  byId("said").textContent = where + words.join(" ").trim();
}

function choose(number) {
  const shown = example(traces[0], traces[0].images[number]);
  Object.assign(state, { image: number, example: shown, token: null, pinned: false, cursor: null });
  fit();
}

/** Which of so many equal parts a fraction lies in. */
function part(fraction, count) {
  return Math.max(0, Math.min(count - 1, Math.floor(fraction * count)));
}

/** The cell under a pointer. */
function cellAt(frame, event) {
  const box = frame.getBoundingClientRect();
  const { rows, cols } = image();
  const row = part((event.clientY - box.top) / box.height, rows);
  return row * cols + part((event.clientX - box.left) / box.width, cols);
}

function tokenAt(cell) {
  const token = image().cells[cell];
  return token < 0 ? null : token;
}

function listen({ frame, small, told }) {
  frame.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch" && !state.pinned) point(tokenAt(cellAt(frame, event)));
  });
  frame.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch" && !state.pinned) point(null);
  });
  frame.addEventListener("click", (event) => {
    const token = tokenAt(cellAt(frame, event));
    const again = state.pinned && token === state.token;
    point(again ? null : token, { pinned: !again && token !== null, say: true });
  });
  frame.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const { rows, cols } = image();
    const start = state.cursor ?? Math.max(0, image().cells.indexOf(state.token ?? image().first));
    const row = Math.floor(start / cols);
    const col = start % cols;
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -col], End: [0, cols - 1 - col] };
    const move = moves[event.key];
    if (move) {
      const from = state.cursor === null ? [0, 0] : move;
      const cursor = Math.max(0, Math.min(rows - 1, row + from[0])) * cols + Math.max(0, Math.min(cols - 1, col + from[1]));
      point(tokenAt(cursor), { cursor, say: true });
    } else if (event.key === "Enter" || event.key === " ") {
      point(tokenAt(start), { cursor: start, pinned: !state.pinned && tokenAt(start) !== null, say: true });
    } else return;
    event.preventDefault();
  });
  frame.addEventListener("blur", () => {
    if (state.cursor !== null) point(state.pinned ? state.token : null, { pinned: state.pinned });
  });
  for (const { button } of small) button.addEventListener("click", () => go(Number(button.dataset.position)));
  told.addEventListener("click", (event) => {
    const token = event.target instanceof Element && event.target.getAttribute("data-token");
    if (token) point(Number(token), { pinned: true, say: true });
  });
}

let playing = 0;

function play() {
  if (playing) return stop();
  go(state.position === last ? 0 : state.position + 1);
  playing = window.setInterval(() => (state.position < last ? go(state.position + 1) : stop()), 1100);
  byId("play").ariaPressed = "true";
}

function stop() {
  window.clearInterval(playing);
  playing = 0;
  byId("play").ariaPressed = "false";
}

function controls() {
  byId("stage").max = String(last);
  byId("steps").hidden = !last;
  byId("stage").addEventListener("input", () => go(Number(byId("stage").value)));
  marks(traces, last).forEach((text, position) => {
    const name = element("li", {}, text);
    name.addEventListener("click", () => go(position));
    byId("marks").append(name);
  });
  byId("back").addEventListener("click", () => go(state.position - 1));
  byId("on").addEventListener("click", () => go(state.position + 1));
  byId("play").addEventListener("click", play);
  for (const [name, text] of toggles(traces, last)) {
    const box = element("input", { type: "checkbox", name });
    box.addEventListener("change", () => {
      state.show[name] = box.checked;
      draw();
    });
    byId("toggles").append(element("label", {}, box, text));
  }
  byId("theme").addEventListener("click", () => {
    const { dataset } = document.documentElement;
    const dark = dataset.theme ? dataset.theme === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
    dataset.theme = dark ? "light" : "dark";
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") point(null, { say: true });
  });
}

/** One button for each image, where there are several. */
function chooser() {
  const { images } = traces[0];
  const samples = new Set(images.map(({ sample }) => sample)).size;
  byId("images").hidden = images.length < 2;
  images.forEach((shown, number) => {
    const radio = element("input", { type: "radio", name: "image", checked: number === 0, value: String(number) });
    radio.addEventListener("change", () => choose(number));
    const text = samples > 1 ? `${number}, sample ${shown.sample}` : String(number);
    byId("images").append(element("label", {}, radio, cellBitmap(shown), element("span", {}, text)));
  });
}

byId("summary").textContent = summary(traces, last);
document.body.append(shared(given.pictures));
controls();
chooser();
byId("views").append(...panels.map(({ root }) => root));
byId("views").dataset.count = String(panels.length);
panels.forEach(listen);
await Promise.allSettled(pictures.map((picture) => picture.decode()));
choose(0);
let wide = byId("views").clientWidth;
new ResizeObserver(() => {
  if (byId("views").clientWidth === wide) return; // it may have become taller
  wide = byId("views").clientWidth;
  fit();
}).observe(byId("views"));
document.documentElement.dataset.ready = "true";
