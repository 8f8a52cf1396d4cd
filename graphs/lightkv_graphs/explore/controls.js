// @ts-check
// What the controls of a page are called, and what is drawn once.

import { SCALE } from "./colours.js";
import { counted, drawn, element, measure, whole } from "./dom.js";

/** One sentence on all views. */
export function summary(traces, last) {
  const tokens = counted(traces[0].row.length, "vision token");
  if (!last) return `${tokens}; no stage merged any.`;
  const counts = traces.map(({ positions }) => positions.map(({ place }) => whole(place.length)).join(" \u2192 "));
  return `${tokens}, merged in ${counted(last, "stage")}: ${[...new Set(counts)].join("; ")}.`;
}

/** What each position of the slider is called. */
export function marks(traces, last) {
  return Array.from({ length: last + 1 }, (_, position) => {
    if (!position) return "before";
    const reached = traces.filter((trace) => trace.last >= position);
    const layers = new Set(reached.map((trace) => trace.stages[position - 1].layer));
    return layers.size === 1 ? `layer ${[...layers][0]}` : `stage ${position}`;
  });
}

/**
 * What may be drawn, by name and text.
 * @returns {[string, string][]}
 */
export function toggles(traces, last) {
  const merged = last > 0;
  const guided = traces.some((trace) => trace.stages.some((stage) => stage.guidance));
  /** @type {[string, string, boolean][]} */
  const all = [
    ["clusters", "Mean colours", true],
    ["survivors", "Survivors", merged],
    ["windows", "Windows", merged],
    ["edges", "Edges", merged],
    ["guidance", "Guidance", guided],
    ["differences", "Differences", traces.length > 1],
  ];
  return all.flatMap(([name, text, wanted]) => (wanted ? [[name, text]] : []));
}

/** The scale of the guidance drawn. */
export function legend([low, high]) {
  const bar = element("span", { className: "scale" });
  bar.style.background = SCALE;
  return [`guidance: ${measure(low)} `, bar, ` ${measure(high)} (1 is the mean; logarithmic)`];
}

/** The pictures once more, for drawings that show parts of them. */
export function shared(sources) {
  const defs = drawn("defs");
  sources.forEach((source, number) => {
    const unit = { width: 1, height: 1, preserveAspectRatio: "none" };
    defs.append(drawn("image", { id: `picture-${number}`, href: source, ...unit }));
  });
  return drawn("svg", { width: 0, height: 0, class: "unseen", "aria-hidden": "true" }, defs);
}
