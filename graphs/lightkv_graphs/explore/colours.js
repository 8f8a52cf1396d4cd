// @ts-check
// Colours of cells, clusters and guidance, as bitmaps with one pixel per cell.

const INFERNO = ["000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4"]
  .map((hex) => [0, 2, 4].map((digit) => Number.parseInt(hex.slice(digit, digit + 2), 16)));

const RANGE = 1000; // largest over smallest value that colours tell apart

/** A colour of the scale that figures have too, for a value from 0 to 1. */
function heat(value) {
  const at = Math.max(0, Math.min(1, value)) * (INFERNO.length - 1);
  const low = Math.min(Math.floor(at), INFERNO.length - 2);
  return INFERNO[low].map((part, index) => part + (at - low) * (INFERNO[low + 1][index] - part));
}

/** The scale as a CSS gradient. */
export const SCALE = `linear-gradient(90deg, ${INFERNO.map((colour) => `rgb(${colour})`).join(", ")})`;

/** Red, green and blue of an image's cell: the picture's, or else one that tells places apart. */
export function cellColour(image, cell) {
  if (image.colours) return image.colours.subarray(3 * cell, 3 * cell + 3);
  const row = Math.floor(cell / image.cols);
  const col = cell % image.cols;
  const across = col / Math.max(1, image.cols - 1);
  const down = row / Math.max(1, image.rows - 1);
  const light = (row + col) % 2 ? 8 : -8;
  return [108 + 70 * across + light, 148 - 38 * down + light, 190 - 70 * across + 20 * down + light];
}

/**
 * A bitmap of an image's grid.
 * @param {(token: number, cell: number) => ArrayLike<number> | null} colour of each token's cell
 */
function bitmap(image, colour) {
  const canvas = document.createElement("canvas");
  canvas.width = image.cols;
  canvas.height = image.rows;
  const pixels = new ImageData(image.cols, image.rows);
  image.cells.forEach((token, cell) => {
    const found = token < 0 ? null : colour(token, cell);
    if (found) pixels.data.set([found[0], found[1], found[2], 255], 4 * cell);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Each cell in its own colour. */
export function cellBitmap(image) {
  return bitmap(image, (_, cell) => cellColour(image, cell));
}

/** Each cell in the mean colour of its cluster. */
export function clusterBitmap(image, survivor) {
  const sums = new Map();
  image.cells.forEach((token, cell) => {
    if (token < 0) return;
    const sum = sums.get(survivor[token]) ?? [0, 0, 0, 0];
    const colour = cellColour(image, cell);
    for (let part = 0; part < 3; part++) sum[part] += colour[part];
    sum[3]++;
    sums.set(survivor[token], sum);
  });
  return bitmap(image, (token) => {
    const [red, green, blue, count] = sums.get(survivor[token]);
    return [red / count, green / count, blue / count];
  });
}

/**
 * Ends of the scale for guidance that is shown side by side, as in figures.
 * @param {number[]} values relative to the mean
 * @returns {[number, number] | null} null where nothing was heard
 */
export function limitsOf(values) {
  const heard = values.filter((value) => value > 0);
  if (!heard.length) return null;
  const high = heard.reduce((most, value) => Math.max(most, value));
  const low = Math.max(heard.reduce((least, value) => Math.min(least, value)), high / RANGE);
  return high > 1.05 * low ? [low, high] : [low / 2, high * 2];
}

/** The guidance that a stage heard for each cell, on a logarithmic scale. */
export function guidanceBitmap(image, before, guidance, [low, high]) {
  return bitmap(image, (token) => {
    const value = guidance[before[token]];
    return Number.isNaN(value) ? null : heat(Math.log(Math.max(value, low) / low) / Math.log(high / low));
  });
}
