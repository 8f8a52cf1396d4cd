// @ts-check
// One view: its prompt, its board, its stages in small, and what is said of the patch pointed at.

import { Board } from "./board.js";
import { fate, loss, passages, patches, when, whereabouts } from "./details.js";
import { counted, element, whole } from "./dom.js";
import { layerBars } from "./layers.js";
import { lineage } from "./lineage.js";

/** Two canvases on top of each other. */
function stack(...classes) {
  return classes.map((className) => element("canvas", { className }));
}

/** What is said of the patches that fare differently. */
function differenceWords({ elsewhere, otherwise }) {
  const lives = counted(elsewhere.length, "patch lives", "patches live");
  return `${lives} on elsewhere in the other view, ${whole(otherwise.length)} with another share`;
}

export class Panel {
  constructor(trace, pictures, number) {
    this.trace = trace;
    this.frame = element("div", {
      className: "board",
      tabIndex: 0,
      role: "application",
      ariaLabel: `Tokens${trace.name ? ` of ${trace.name}` : ""}: arrow keys move, Enter pins, Escape lets go`,
    });
    const [base, fading, over] = stack("base", "fading", "over");
    this.fading = fading;
    this.frame.append(base, fading, over);
    this.board = new Board(trace, base, over, pictures);
    this.small = trace.positions.map((_, position) => {
      const canvases = stack("base", "over");
      const frame = element("span", { className: "small" }, ...canvases);
      const count = element("span");
      const button = element("button", { type: "button", tabIndex: -1, data: { position } }, frame, count);
      return { button, frame, count, board: new Board(trace, canvases[0], canvases[1], pictures) };
    });
    this.prompt = element("p", { className: "prompt", dir: "auto" });
    this.answer = element("p", { className: "answer", hidden: !trace.answer }, element("span", {}, "Answer"), element("bdi", {}, trace.answer));
    this.room = 0;
    this.caption = element("figcaption");
    this.told = element("section", { className: "told", ariaLabel: "The patch" });
    this.bars = element("section", { className: "layers", ariaLabel: "Layers" });
    this.root = element(
      "article",
      { className: "view", data: { view: number } },
      element("div", { className: "heading" }, element("h2", { hidden: !trace.name }, trace.name), this.prompt, this.answer),
      element("figure", { className: "shown" }, this.frame, this.caption, element("div", { className: "strip", hidden: !trace.last }, ...this.small.map(({ button }) => button))),
      this.told,
      this.bars,
    );
  }

  /** Takes on the size that the image has on the screen, and draws its stages in small. */
  fit(state) {
    const image = this.trace.images[state.image];
    const shape = image.shape ?? image.rows / image.cols;
    this.root.style.setProperty("--shape", String(shape));
    this.root.style.setProperty("--count", String(this.small.length));
    this.board.fit(this.frame.clientWidth, this.frame.clientHeight);
    this.room = this.told.clientWidth;
    this.small.forEach(({ button, frame, count, board }, position) => {
      const left = this.trace.count(state.image, position);
      board.fit(frame.clientWidth, frame.clientHeight);
      board.draw({ image: state.image, position, show: { clusters: true, bare: true }, differences: null });
      count.textContent = whole(left);
      button.ariaLabel = when(this.trace, position);
      button.title = `${counted(left, "token")} ${when(this.trace, position)}`;
    });
  }

  /** Draws all that does not depend on what is pointed at. */
  draw(state, differences, scale) {
    const { trace } = this;
    const image = trace.images[state.image];
    const prompt = trace.prompts[image.sample] ?? "";
    this.prompt.textContent = prompt;
    this.prompt.hidden = !prompt;
    this.board.draw({ ...state, differences, scale });
    this.small.forEach(({ button }, position) => {
      button.classList.toggle("now", position === Math.min(state.position, trace.last));
    });
    const left = trace.count(state.image, state.position);
    const full = image.end - image.first;
    const differ = differences ? `; ${differenceWords(differences)}` : "";
    const counts = left === full ? counted(full, "token") : `${whole(left)} of ${counted(full, "token")}`;
    const lost = loss(trace, state.image, state.position);
    this.caption.replaceChildren(element("strong", {}, counts), ` ${when(trace, state.position)}${lost}${differ}`);
    this.bars.replaceChildren(...layerBars(trace, state.position));
  }

  /** Lets what is drawn now fade into what is drawn next. */
  fade() {
    const { base } = this.board;
    if (!base.width || window.matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    this.fading.width = base.width;
    this.fading.height = base.height;
    this.fading.getContext("2d").drawImage(base, 0, 0);
    this.fading.animate([{ opacity: 1 }, { opacity: 0 }], { duration: 260, easing: "ease-out" });
  }

  /** Marks and tells of what is pointed at. */
  mark(state) {
    const { trace } = this;
    const image = trace.images[state.image];
    this.board.mark(state);
    this.small.forEach(({ board }, position) => board.mark({ ...state, position, cursor: null, bare: true }));
    const token = state.token ?? state.example;
    const position = Math.min(state.position, trace.last);
    this.told.dataset.token = state.token ?? "";
    this.told.dataset.members = state.token === null ? "" : trace.cluster(state.token, position).join(" ");
    this.told.classList.toggle("pinned", state.pinned);
    this.told.replaceChildren(...(token === null ? [] : this.tell(image, token, position, state)), ...this.loose(image));
  }

  tell(image, token, position, state) {
    const { trace } = this;
    const where = whereabouts(trace, token);
    const eyebrow = state.token === null ? "For example" : state.pinned ? "Pinned" : "Patch";
    return [
      element("p", { className: "eyebrow" }, eyebrow),
      element("h3", {}, where[0].toUpperCase() + where.slice(1)),
      element("p", { className: "fate" }, fate(trace, token, position)),
      patches(trace, token, position),
      ...(trace.last ? [lineage(trace, image, token, position, this.room), passages(trace, token, position)] : []),
    ];
  }

  /** Tokens without a place are listed. */
  loose(image) {
    if (!image.loose.length) return [];
    const title = `${counted(image.loose.length, "token")} without a place`;
    return [
      element(
        "details",
        { className: "loose", open: this.told.querySelector(".loose")?.open ?? false },
        element("summary", {}, title),
        element("p", {}, "Newlines, separators and the like: they are not drawn, and never merged. By number: "),
        element("p", { className: "numbers" }, image.loose.join(", ")),
      ),
    ];
  }
}
