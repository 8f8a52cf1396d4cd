// @ts-check
// An image with its tokens on it: one canvas of what is there, one of what is pointed at.

import { cellBitmap, clusterBitmap, guidanceBitmap } from "./colours.js";
import { Places } from "./places.js";

const ACCENT = "#ff6a2b";

const FEW = 60; // edges that are drawn in full

/** Draws what is there, and what is pointed at. */
export class Board {
  /**
   * @param {HTMLCanvasElement} base of what is there
   * @param {HTMLCanvasElement} over of what is pointed at
   * @param {HTMLImageElement[]} pictures of the page
   */
  constructor(trace, base, over, pictures) {
    this.trace = trace;
    this.base = base;
    this.over = over;
    this.pictures = pictures;
    this.unit = 1;
  }

  /** Gives both canvases the pixels that their place on the screen has. */
  fit(width, height) {
    const dense = Math.max(1, Math.min(3, window.devicePixelRatio || 1));
    for (const canvas of [this.base, this.over]) {
      canvas.width = Math.max(1, Math.round(width * dense));
      canvas.height = Math.max(1, Math.round(height * dense));
    }
    this.unit = dense * Math.max(1, Math.min(width, 700) / 420);
  }

  /** The guidance of the image's tokens that the stage at a position heard. */
  heard({ image: number, position }) {
    const { trace } = this;
    const { guidance } = trace.stage(position) ?? {};
    if (!guidance) return [];
    const before = trace.before(position).survivor;
    return Array.from(trace.images[number].cells.filter((token) => token >= 0), (token) => guidance[before[token]]);
  }

  /** Draws the image at a position, bare without lines; with guidance where its scale is given. */
  draw({ image: number, position, show, differences, scale = null }) {
    const { trace, base } = this;
    const image = trace.images[number];
    const { survivor } = trace.at(position);
    const before = trace.before(position).survivor;
    const stage = trace.stage(position);
    const pen = base.getContext("2d");
    const places = new Places(image, base.width, base.height);
    pen.clearRect(0, 0, base.width, base.height);
    const picture = this.pictures[image.picture];
    if (picture && !show.clusters) {
      pen.imageSmoothingEnabled = base.width < 3 * picture.naturalWidth;
      pen.imageSmoothingQuality = "high";
      pen.drawImage(picture, 0, 0, base.width, base.height);
    } else {
      this.spread(pen, show.clusters ? clusterBitmap(image, survivor) : cellBitmap(image));
    }
    if (scale && stage?.guidance) {
      pen.globalAlpha = 0.7;
      this.spread(pen, guidanceBitmap(image, before, stage.guidance, scale));
      pen.globalAlpha = 1;
    }
    if (show.bare) return;
    const fine = Math.min(base.width / image.cols, base.height / image.rows) < 9 * this.unit;
    const lines = places.borders((token) => (token < 0 ? -1 : survivor[token]));
    this.stroke(pen, lines, "rgb(0 0 0 / .28)", fine ? 1.4 : 2.2);
    this.stroke(pen, lines, "rgb(255 255 255 / .85)", fine ? 0.7 : 1.1);
    if (show.windows && stage) {
      const walls = places.borders((token) => (token < 0 ? -1 : stage.window[before[token]]));
      this.stroke(pen, walls, "rgb(255 255 255 / .9)", 4.5);
      this.stroke(pen, walls, "#16130f", 2.4);
    }
    const homes = image.cells.filter((token) => token >= 0 && trace.home(token, position) === token);
    if (show.survivors) this.pick(pen, places, homes, false);
    if (show.edges && stage && position > 0) this.edges(pen, places, image, position);
    if (differences) this.pick(pen, places, [...differences.elsewhere, ...differences.otherwise], true);
  }

  /**
   * Marks a cluster, the patch pointed at, and the cell that the keyboard is on; bare, the first.
   * Where nothing is pointed at, the example's cluster has a rim.
   */
  mark({ image: number, position, token, example = null, cursor, bare = false }) {
    const { trace, over } = this;
    const image = trace.images[number];
    const pen = over.getContext("2d");
    const places = new Places(image, over.width, over.height);
    pen.clearRect(0, 0, over.width, over.height);
    const { survivor } = trace.at(position);
    if (token === null && example !== null && !bare) {
      const rim = places.borders((other) => other >= 0 && survivor[other] === survivor[example], false);
      this.stroke(pen, rim, "#fff", 3.4);
      this.stroke(pen, rim, ACCENT, 2);
    }
    if (token !== null) {
      const veil = new Path2D();
      veil.rect(0, 0, over.width, over.height);
      for (const member of trace.cluster(token, position)) this.cell(veil, places, member);
      pen.fillStyle = "rgb(12 10 8 / .5)";
      pen.fill(veil, "evenodd");
      const rim = places.borders((other) => other >= 0 && survivor[other] === survivor[token], false);
      this.stroke(pen, rim, "#fff", bare ? 3.4 : 5);
      this.stroke(pen, rim, ACCENT, bare ? 2 : 3);
      if (!bare) this.rays(pen, places, token, position);
    }
    if (cursor !== null) {
      const ring = new Path2D();
      places.cell(ring, Math.floor(cursor / image.cols), cursor % image.cols);
      this.stroke(pen, ring, "#000", 4.5);
      this.stroke(pen, ring, "#fff", 2);
    }
  }

  spread(pen, drawn) {
    pen.imageSmoothingEnabled = false;
    pen.drawImage(drawn, 0, 0, pen.canvas.width, pen.canvas.height);
  }

  stroke(pen, path, colour, width) {
    pen.strokeStyle = colour;
    pen.lineWidth = width * this.unit;
    pen.lineJoin = pen.lineCap = "round";
    pen.stroke(path);
  }

  cell(path, places, token) {
    if (this.trace.row[token] >= 0) places.cell(path, this.trace.row[token], this.trace.col[token]);
  }

  /** @returns {[number, number]} */
  middle(places, token) {
    return places.middle(this.trace.row[token], this.trace.col[token]);
  }

  /** From each patch of a cluster to the place where it lives on. */
  rays(pen, places, token, position) {
    const { trace } = this;
    const home = trace.home(token, position);
    if (trace.row[home] < 0) return;
    const end = this.middle(places, home);
    const path = new Path2D();
    for (const member of trace.cluster(token, position)) {
      if (member === home || trace.row[member] < 0) continue;
      path.moveTo(...this.middle(places, member));
      path.lineTo(...end);
    }
    this.stroke(pen, path, "rgb(0 0 0 / .35)", 2.4);
    this.stroke(pen, path, "rgb(255 255 255 / .9)", 1.1);
    this.dot(pen, end, 4.2, ACCENT);
    this.dot(pen, this.middle(places, token), 2.6, "#fff");
  }

  /** From each token that a stage merged to the one that it ended in. */
  edges(pen, places, image, position) {
    const { trace } = this;
    const { place } = trace.before(position);
    const { kept, survivor } = trace.stage(position);
    const path = new Path2D();
    const ends = new Set();
    let edges = 0;
    survivor.forEach((row, token) => {
      const from = place[token];
      const to = place[kept[row]];
      if (from === to || from < image.first || from >= image.end) return;
      path.moveTo(...this.middle(places, from));
      path.lineTo(...this.middle(places, to));
      ends.add(to);
      edges++;
    });
    const cell = Math.min(places.width / image.cols, places.height / image.rows) / this.unit;
    const few = Math.min(1, Math.sqrt(FEW / edges)); // many are thin and pale, or hide the picture
    const width = Math.max(0.5, Math.min(1.6, cell / 14) * few);
    pen.globalAlpha = 0.85 * few;
    this.stroke(pen, path, "rgb(0 0 0 / .4)", 1.9 * width);
    this.stroke(pen, path, ACCENT, width);
    pen.globalAlpha = 1;
    for (const end of ends) this.dot(pen, this.middle(places, end), 1.7 * width, ACCENT);
  }

  /** Veils all patches but some, which may be outlined. */
  pick(pen, places, tokens, outlined) {
    const found = new Set(tokens);
    const veil = new Path2D();
    veil.rect(0, 0, pen.canvas.width, pen.canvas.height);
    for (const token of tokens) this.cell(veil, places, token);
    pen.fillStyle = "rgb(245 243 238 / .55)";
    pen.fill(veil, "evenodd");
    if (!outlined) return;
    const rim = places.borders((token) => found.has(token), false);
    this.stroke(pen, rim, "#fff", 4);
    this.stroke(pen, rim, "#16130f", 2.2);
  }

  dot(pen, [x, y], radius, colour) {
    pen.beginPath();
    pen.arc(x, y, radius * this.unit, 0, 2 * Math.PI);
    pen.fillStyle = colour;
    pen.fill();
    pen.lineWidth = Math.min(1.2, radius / 2) * this.unit;
    pen.strokeStyle = colour === "#fff" ? "#16130f" : "#fff";
    pen.stroke();
  }
}
