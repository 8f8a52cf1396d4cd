// @ts-check
// What is said of one patch, in words and in a table.

import { counted, element, measure, percent } from "./dom.js";

/** "row 3, column 5", or what a token without a place is called. */
export function whereabouts(trace, token) {
  if (trace.row[token] < 0) return `token ${token}, without a place`;
  return `row ${trace.row[token]}, column ${trace.col[token]}`;
}

/** "before the first stage", "after layer 3". */
export function when(trace, position) {
  return position ? `after layer ${trace.stages[Math.min(position, trace.last) - 1].layer}` : "before the first stage";
}

/** What the stage before a position lost of an image, where its matcher could tell. */
export function loss(trace, image, position) {
  const stage = position ? trace.stages[Math.min(position, trace.last) - 1] : null;
  if (!stage?.lost) return "";
  const [share, least] = stage.lost[image];
  const of = stage.guidance ? "what the prompt asks about" : "what the tokens say";
  return `; lost ${percent(share)} of ${of}, any other choice of as many ${percent(least)} at least`;
}

/** One sentence on where a patch lives on at a position. */
export function fate(trace, token, position) {
  const at = Math.min(position, trace.last);
  const others = trace.cluster(token, at).length - 1;
  const home = trace.home(token, at);
  const time = when(trace, at);
  const start = time[0].toUpperCase() + time.slice(1);
  const kept = trace.protected[token] ? " It is never merged." : "";
  if (!others) return `${start} it stands for itself.${kept}`;
  const company = `with ${counted(others, "other patch", "other patches")}`;
  const share = `its share there is ${percent(trace.share(token, at))}`;
  if (home === token) return `${start} it lives on in its own place, ${company}; ${share}.`;
  return `${start} it lives on at ${whereabouts(trace, home)}, ${company}; ${share}.`;
}

const LISTED = 40; // patches listed

/** The patches that live on together, by row and column. */
export function patches(trace, token, position) {
  const members = [...trace.cluster(token, position)];
  const names = members.slice(0, LISTED).map((member) => {
    const text = trace.row[member] < 0 ? `token ${member}` : `${trace.row[member]},${trace.col[member]}`;
    return element("li", { className: member === token ? "own" : "" }, text);
  });
  if (members.length > LISTED) names.push(element("li", { className: "more" }, `and ${members.length - LISTED} more`));
  return element("ol", { className: "patches" }, ...names);
}

const HEAD = ["after layer", "window", "weight", "divergence", "guidance", "mass"];

/** What every stage did with the token that stands for a patch. */
export function passages(trace, token, position) {
  const rows = trace.stages.map((_, index) => {
    const passage = trace.passage(token, index + 1);
    const cells = [
      passage.layer,
      passage.window,
      passage.merged && passage.weight === 0 ? "dropped" : measure(passage.weight),
      measure(passage.merged ? passage.divergence : null),
      measure(passage.guidance),
      passage.mass,
    ];
    const now = index + 1 === Math.min(position, trace.last);
    return element("tr", { className: now ? "now" : "" }, ...cells.map((cell) => element("td", {}, String(cell))));
  });
  const head = element("tr", {}, ...HEAD.map((text) => element("th", { scope: "col" }, text)));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}
