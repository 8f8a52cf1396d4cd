// @ts-check
// The lineage of a survivor: stages from left to right, an edge as wide as a token's weight.

import { cellColour } from "./colours.js";
import { drawn, whole } from "./dom.js";

const DRAWN = 14; // patches drawn
const WIDEST = 560;
const LINE = 31; // height of a patch's line
const TOP = 30;
const SIDE = 24; // of a patch

/** The patches drawn of those that live on with a token: it, and those with the largest shares. */
function heaviest(trace, token) {
  const share = new Map();
  for (const member of trace.cluster(token, trace.last)) share.set(member, trace.share(member, trace.last));
  const rank = (member) => (member === token ? Infinity : share.get(member));
  const ranked = [...share.keys()].toSorted((one, other) => rank(other) - rank(one));
  return ranked.slice(0, DRAWN);
}

/** Patches of one branch beside each other. */
function inBranches(trace, patches) {
  return patches.toSorted((one, other) => {
    for (let position = trace.last; position > 0; position--) {
      const { survivor } = trace.at(position);
      if (survivor[one] !== survivor[other]) return survivor[one] - survivor[other];
    }
    return one - other;
  });
}

/** A token's cell, cut from the picture or in its colour. */
function thumbnail(image, trace, token, x, y, side) {
  const cell = trace.row[token] * image.cols + trace.col[token];
  const place = { x: x - side / 2, y: y - side / 2, width: side, height: side };
  if (trace.row[token] < 0) return drawn("rect", { ...place, class: "nowhere" });
  const colour = `rgb(${Array.from(cellColour(image, cell)).join(", ")})`;
  if (image.picture === undefined) return drawn("rect", { ...place, fill: colour });
  const box = [trace.col[token] / image.cols, trace.row[token] / image.rows, 1 / image.cols, 1 / image.rows];
  return drawn(
    "svg",
    { ...place, viewBox: box.join(" "), preserveAspectRatio: "none" },
    drawn("use", { href: `#picture-${image.picture}` }),
  );
}

/** The drawing, for a token of an image and in so many pixels; the position shown is marked. */
export function lineage(trace, image, token, position, room) {
  const width = Math.max(240, Math.min(WIDEST, room));
  const patches = inBranches(trace, heaviest(trace, token));
  const left = trace.cluster(token, trace.last).length - patches.length;
  const height = TOP + patches.length * LINE + (left ? 26 : 4);
  const across = (at) => 26 + (at * (width - 84)) / Math.max(1, trace.last);
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, class: "lineage", role: "img" });
  const nodes = patches.map((patch, index) => ({ row: patch, patch, y: TOP + (index + 0.5) * LINE }));
  const columns = [new Map(nodes.map((node) => [node.row, node]))];
  const edges = drawn("g", { class: "edges" });
  for (let at = 1; at <= trace.last; at++) {
    const { survivor } = trace.stages[at - 1];
    const { place } = trace.at(at);
    const column = new Map();
    for (const node of columns[at - 1].values()) {
      const row = survivor[node.row];
      const found = column.get(row) ?? { row, patch: place[row], ys: [] };
      found.ys.push(node.y);
      column.set(row, found);
    }
    for (const node of column.values()) node.y = node.ys.reduce((sum, y) => sum + y, 0) / node.ys.length;
    for (const node of columns[at - 1].values()) {
      edges.append(edge(trace, at, node, column.get(survivor[node.row]), across, token));
    }
    columns.push(column);
  }
  picture.append(edges);
  columns.forEach((column, at) => {
    const stage = trace.stages[at - 1];
    const kind = at === position ? "column now" : "column";
    picture.append(drawn("text", { x: across(at), y: 13, class: kind }, stage ? `layer ${stage.layer}` : "patches"));
    for (const node of column.values()) picture.append(...drawnNode(trace, image, at, node, across(at), token));
  });
  if (left) picture.append(drawn("text", { x: 14, y: height - 6, class: "more" }, `and ${whole(left)} more`));
  return picture;
}

function edge(trace, at, from, to, across, token) {
  const stage = trace.stages[at - 1];
  const weight = stage.weight[from.row];
  const [x, end] = [across(at - 1) + 8, across(at) - 8];
  const middle = (x + end) / 2;
  const own = trace.at(at - 1).survivor[token] === from.row;
  const merged = stage.kept[to.row] !== from.row;
  return drawn(
    "path",
    {
      d: `M${x} ${from.y}C${middle} ${from.y} ${middle} ${to.y} ${end} ${to.y}`,
      "stroke-width": 0.8 + 11 * Math.max(0, Number.isFinite(weight) ? weight : 0),
      class: own ? "own" : merged ? "merged" : "stays",
    },
    drawn("title", {}, `weight ${weight.toPrecision(3)}${merged ? "" : ", stays"}`),
  );
}

function drawnNode(trace, image, at, node, x, token) {
  const { mass, survivor } = trace.at(at);
  const side = at ? SIDE + Math.min(20, 5 * Math.log2(Math.max(1, mass[node.row]))) : SIDE;
  const frame = { x: x - side / 2, y: node.y - side / 2, width: side, height: side, rx: 2 };
  const own = survivor[token] === node.row;
  const parts = [
    thumbnail(image, trace, node.patch, x, node.y, side),
    drawn("rect", { ...frame, class: own ? "frame own" : "frame", "data-token": node.patch }),
  ];
  if (mass[node.row] > 1) parts.push(drawn("text", { x: x + side / 2 + 4, y: node.y - 9, class: "mass" }, `\u00d7${whole(mass[node.row])}`));
  return parts;
}
