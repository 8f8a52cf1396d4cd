// @ts-check
// Elements and words. Whatever was given is set as text, never as markup.

/** An element with properties and children; children that are strings become text. */
export function element(name, properties = {}, ...children) {
  const { data = {}, ...rest } = properties;
  const made = Object.assign(document.createElement(name), rest);
  Object.assign(made.dataset, data);
  made.append(...children);
  return made;
}

/** The same for SVG, whose properties are attributes. */
export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  made.append(...children);
  return made;
}

/** An element of the page by its id. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return /** @type {any} */ (found);
}

const NUMBERS = new Intl.NumberFormat("en");

/** A whole number for people. */
export function whole(value) {
  return NUMBERS.format(value);
}

/** "1 patch", "2 patches". */
export function counted(value, one, many = `${one}s`) {
  return `${whole(value)} ${value === 1 ? one : many}`;
}

/** A measure with three figures; a dash where there is none. */
export function measure(value) {
  if (value === null || Number.isNaN(value)) return "\u2013";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  return Math.abs(value) < 0.0005 ? "0" : String(Number(value.toPrecision(3)));
}

/** A fraction as a percentage. */
export function percent(value) {
  return `${measure(100 * value)} %`;
}

/** Bytes for people. */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let at = 0;
  for (; value >= 1024 && at < units.length - 1; at++) value /= 1024;
  return `${measure(value)} ${units[at]}`;
}
