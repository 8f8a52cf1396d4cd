// @ts-check
// What each decoder layer holds, as bars, with the stages between them.

import { bytes, element, percent, whole } from "./dom.js";

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

/** One row of bars: a measure of every layer beside what it is without compression. */
function row(trace, position, title, held, full, words) {
  const most = Math.max(1, ...full);
  const stages = new Map(trace.stages.map((stage, index) => [stage.layer, index]));
  let done = 0;
  const bars = held.map((value, layer) => {
    const bar = element("span", { className: "bar" });
    const open = trace.layers[layer].open;
    bar.style.height = `${(100 * value) / most}%`;
    const column = element("span", { className: "full" }, bar);
    column.style.height = `${(100 * full[layer]) / most}%`;
    const item = element("li", { title: `layer ${layer}${open ? " and later" : ""}: ${words(value)} of ${words(full[layer])}` }, column);
    if (done === Math.min(position, trace.last)) item.classList.add("now");
    if (stages.has(layer)) {
      item.classList.add("stage");
      done = stages.get(layer) + 1;
    }
    if (stages.has(layer) || layer === 0 || layer === held.length - 1) {
      item.append(element("span", { className: "number" }, `${layer}${open ? "+" : ""}`));
    }
    return item;
  });
  const known = !trace.layers.some((layer) => layer.open);
  const total = known ? `${percent(sum(held) / sum(full))} of ${words(sum(full))}` : "as far as the trace tells";
  return element(
    "figure",
    { className: "bars" },
    element("figcaption", {}, element("span", {}, title), element("span", { className: "total" }, total)),
    element("ol", {}, ...bars),
  );
}

/** Tokens, and bytes where they are known, of every layer. */
export function layerBars(trace, position) {
  if (!trace.layers.length) return [];
  const column = (name) => trace.layers.map((layer) => layer[name]);
  const rows = [row(trace, position, "Vision tokens in each layer", column("tokens"), column("full"), whole)];
  if (trace.layers.every((layer) => layer.kv_bytes !== null && layer.kv_bytes_full)) {
    rows.push(row(trace, position, "Keys and values in each layer", column("kv_bytes"), column("kv_bytes_full"), bytes));
  }
  return rows;
}
