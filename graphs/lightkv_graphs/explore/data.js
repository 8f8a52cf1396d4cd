// @ts-check
// What the page knows: the packed numbers, and from them who stands for whom.

const KINDS = { u8: Uint8Array, i16: Int16Array, i32: Int32Array, f32: Float32Array };

/**
 * Numbers from base64 of little-endian bytes, which is the order of every machine with a browser.
 * @param {{kind: string, data: string}} packed
 */
export function unpack({ kind, data }) {
  const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
  return new KINDS[kind](bytes.buffer);
}

/** One prefill. A token is a number before the first stage; position 0 is before all stages. */
export class Trace {
  constructor(packed) {
    this.name = packed.name;
    this.prompts = packed.prompts;
    this.answer = packed.answer;
    this.row = unpack(packed.row);
    this.col = unpack(packed.col);
    this.mass = unpack(packed.mass);
    this.protected = unpack(packed.protected);
    this.stages = packed.stages.map((stage) => ({
      ...stage,
      ...Object.fromEntries(
        ["window", "kept", "survivor", "weight", "similarity"].map((name) => [name, unpack(stage[name])]),
      ),
      guidance: stage.guidance && unpack(stage.guidance),
    }));
    this.images = placed(packed.images, this.row, this.col);
    this.positions = lived(this.row.length, this.mass, this.stages);
    this.layers = packed.layers ?? known(this);
  }

  get last() {
    return this.stages.length;
  }

  /** The position's own, where this trace has fewer stages than another. */
  at(position) {
    return this.positions[Math.min(position, this.last)];
  }

  /** The stage that led to a position; before all of them, the first. */
  stage(position) {
    return this.stages[Math.max(0, Math.min(position, this.last) - 1)];
  }

  /** What came before the stage of a position. */
  before(position) {
    return this.positions[Math.max(0, Math.min(position, this.last) - 1)];
  }

  /** Tokens that live on together with this one, itself included, ascending. */
  cluster(token, position) {
    const { survivor, start, member } = this.at(position);
    return member.subarray(start[survivor[token]], start[survivor[token] + 1]);
  }

  /** The token in whose place this one lives on. */
  home(token, position) {
    const { survivor, place } = this.at(position);
    return place[survivor[token]];
  }

  /** Share of a token in its survivor, by the weights of all stages up to the position. */
  share(token, position) {
    let share = 1;
    for (let stage = 0; stage < Math.min(position, this.last); stage++) {
      share *= this.stages[stage].weight[this.positions[stage].survivor[token]];
    }
    return share;
  }

  /** What the stage between a position and the one before says of a token. */
  passage(token, position) {
    const stage = this.stages[position - 1];
    const row = this.positions[position - 1].survivor[token];
    return {
      layer: stage.layer,
      window: stage.window[row],
      weight: stage.weight[row],
      divergence: 1 - stage.similarity[row],
      guidance: stage.guidance ? stage.guidance[row] : null,
      merged: stage.kept[stage.survivor[row]] !== row,
      mass: this.at(position).mass[stage.survivor[row]],
    };
  }

  /** Tokens of an image that are there at a position, with and without a place. */
  count(image, position) {
    const { first, end } = this.images[image];
    return this.at(position).place.reduce((sum, token) => sum + Number(token >= first && token < end), 0);
  }
}

/** The images, each with its tokens' numbers, and the token of each cell; -1 where there is none. */
function placed(images, row, col) {
  let end = 0;
  return images.map((image) => {
    const first = end;
    end += image.tokens;
    const cells = new Int32Array(image.rows * image.cols).fill(-1);
    const loose = [];
    for (let token = first; token < end; token++) {
      const inside = row[token] >= 0 && row[token] < image.rows && col[token] >= 0 && col[token] < image.cols;
      if (inside) cells[row[token] * image.cols + col[token]] = token;
      else loose.push(token);
    }
    return { ...image, first, end, cells, loose, colours: image.colours && unpack(image.colours) };
  });
}

/** Who stands for whom at each position, and how many patches each survivor stands for. */
function lived(count, mass, stages) {
  const range = Int32Array.from({ length: count }, (_, token) => token);
  const positions = [grouped(range, range, mass)];
  for (const { survivor, kept } of stages) {
    const before = positions.at(-1);
    positions.push(grouped(before.survivor.map((row) => survivor[row]), Int32Array.from(kept, (row) => before.place[row]), mass));
  }
  return positions;
}

/** Members of each survivor in one array, survivor by survivor, and where each one's begin. */
function grouped(survivor, place, masses) {
  const start = new Int32Array(place.length + 1);
  const mass = new Int32Array(place.length);
  survivor.forEach((row, token) => {
    start[row + 1]++;
    mass[row] += masses[token];
  });
  for (let row = 0; row < place.length; row++) start[row + 1] += start[row];
  const next = start.slice();
  const member = new Int32Array(survivor.length);
  survivor.forEach((row, token) => (member[next[row]++] = token));
  return { survivor, place, start, member, mass };
}

/** Tokens per layer as far as the trace tells: up to the layer behind the last stage. */
function known({ stages, positions }) {
  const layers = [];
  if (!stages.length) return layers;
  const full = positions[0].place.length;
  const last = stages.at(-1).layer + 1;
  for (let layer = 0, done = 0; layer <= last; layer++) {
    while (done < stages.length && stages[done].layer < layer) done++;
    layers.push({ tokens: positions[done].place.length, full, open: layer === last });
  }
  return layers;
}

const APART = 0.05; // shares that differ by less are called the same

/** Tokens of an image that do not live on in one place in all traces, and those whose shares differ. */
export function differing(traces, image, position) {
  const { first, end } = traces[0].images[image];
  const found = { elsewhere: [], otherwise: [] };
  for (let token = first; token < end; token++) {
    const homes = traces.map((trace) => trace.home(token, position));
    const shares = traces.map((trace) => trace.share(token, position));
    if (homes.some((home) => home !== homes[0])) found.elsewhere.push(token);
    else if (Math.max(...shares) - Math.min(...shares) >= APART) found.otherwise.push(token);
  }
  return found;
}

const SOME = 9;

/** A patch to tell of before any is pointed at: the one the prompt cares for most, else one that lives on with some others. */
export function example(trace, image) {
  const heard = trace.stages.findIndex(({ guidance }) => guidance);
  const { survivor, place, mass } = trace.at(heard < 0 ? trace.last : heard);
  const matters = heard < 0 ? (row) => -Math.abs(mass[row] - SOME) : (row) => trace.stages[heard].guidance[row];
  let best = null;
  for (const token of image.cells) {
    if (token < 0 || place[survivor[token]] !== token) continue;
    const value = matters(survivor[token]);
    if (best === null || value > best.value || Number.isNaN(best.value)) best = { token, value };
  }
  return best && best.token;
}
