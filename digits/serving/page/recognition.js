// Ink on paper -> its characters as the network expects them: what paper.py, segmentation.py, preprocessing.py and
// images/pictures.py do, step by step and with the same names, so that page and command read alike.

// ---------------------------------------------------------------- pixels: [height, width] in rows, as numpy has them

export const WORK = 900;

/** A picture of numbers: `data` is a typed array of height * width values. */
class Grid {
  constructor(height, width, data = new Float32Array(height * width)) {
    Object.assign(this, { height, width, data });
  }

  at(row, column) {
    return this.data[row * this.width + column];
  }

  map(change, Type = Float32Array) {
    const made = new Type(this.data.length);
    for (let place = 0; place < made.length; place++) made[place] = change(this.data[place], place);
    return new Grid(this.height, this.width, made);
  }

  crop(top, bottom, left, right) {
    const made = new Grid(bottom - top, right - left, new this.data.constructor((bottom - top) * (right - left)));
    for (let row = top; row < bottom; row++) {
      made.data.set(this.data.subarray(row * this.width + left, row * this.width + right), (row - top) * made.width);
    }
    return made;
  }

  pad(top, bottom, left, right) {
    const [height, width] = [this.height + top + bottom, this.width + left + right];
    const made = new Grid(height, width, new this.data.constructor(height * width));
    for (let row = 0; row < this.height; row++) {
      made.data.set(this.data.subarray(row * this.width, (row + 1) * this.width), (row + top) * width + left);
    }
    return made;
  }

  transposed() {
    const { height, width, data } = this;
    const made = new data.constructor(data.length);
    for (let row = 0, place = 0; row < height; row++) {
      for (let column = 0; column < width; column++) made[column * height + row] = data[place++];
    }
    return new Grid(width, height, made);
  }
}

const sum = (values) => values.reduce((one, other) => one + other, 0);
const mean = (values) => sum(values) / values.length;
const highest = (values) => values.reduce((one, other) => Math.max(one, other), -Infinity);
const lowest = (values) => values.reduce((one, other) => Math.min(one, other), Infinity);
const clip = (value, low, high) => Math.min(Math.max(value, low), high);
const halfUp = (value) => Math.floor(value + 0.5);

/** Round as Python does: halves to the even number. */
function round(value) {
  const up = halfUp(value);
  return up - value === 0.5 && up % 2 ? up - 1 : up;
}

function median(values) {
  const sorted = Float32Array.from(values).sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Return the pixels along the border, corners twice. */
function border({ height, width, data }) {
  const made = [...data.subarray(0, width), ...data.subarray((height - 1) * width)];
  for (const column of [0, width - 1]) for (let row = 0; row < height; row++) made.push(data[row * width + column]);
  return made;
}

/** Return a decoded picture, RGBA, as a gray Grid in 0 … 255, and how many of its pixels make one of these. */
export function toGray(rgba, width, height) {
  const paper = paperOf(rgba, width, height);
  const gray = new Grid(height, width, new Uint8Array(height * width));
  for (let place = 0; place < gray.data.length; place++) {
    const alpha = rgba[4 * place + 3];
    const red = blend(rgba[4 * place], paper, alpha);
    const green = blend(rgba[4 * place + 1], paper, alpha);
    const blue = blend(rgba[4 * place + 2], paper, alpha);
    gray.data[place] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16; // ITU-R 601
  }
  const longest = Math.max(width, height);
  const factor = Math.max(1, Math.floor(longest / WORK));
  let small = factor > 1 ? reduce(gray, factor) : gray.map((value) => value);
  const size = Math.max(small.height, small.width);
  if (size > WORK) {
    const scale = WORK / size;
    small = resize(small, Math.max(1, round(small.height * scale)), Math.max(1, round(small.width * scale)));
  }
  return { gray: small, scale: longest / Math.max(small.height, small.width) };
}

/** Put a value on the paper, by Pillow's integer arithmetic. */
function blend(value, paper, alpha) {
  if (alpha === 255) return value;
  if (alpha === 0) return paper;
  const mixed = (value * alpha + paper * (255 - alpha)) * 128;
  const shifted = mixed + (0x80 << 7);
  return ((shifted >> 8) + shifted) >> 15;
}

/** Return black or white: the paper that contrasts with what is opaque. */
function paperOf(rgba, width, height) {
  let [total, seen] = [0, 0];
  const [across, down] = [Math.min(width, 300), Math.min(height, 300)];
  for (let row = 0; row < down; row++) {
    for (let column = 0; column < across; column++) {
      const y = Math.floor(((row + 0.5) * height) / down);
      const x = Math.floor(((column + 0.5) * width) / across);
      const place = 4 * (y * width + x);
      if (rgba[place + 3] > 127) {
        total += rgba[place] + rgba[place + 1] + rgba[place + 2];
        seen += 3;
      }
    }
  }
  return seen && total / seen > 127 && isTransparent(rgba) ? 0 : 255;
}

function isTransparent(rgba) {
  for (let place = 3; place < rgba.length; place += 4) if (rgba[place] < 255) return true;
  return false;
}

/** Return the rounded means of squares of pixels, those at the end smaller. */
function reduce({ height, width, data }, factor) {
  const made = new Grid(Math.ceil(height / factor), Math.ceil(width / factor));
  for (let row = 0; row < made.height; row++) {
    const bottom = Math.min((row + 1) * factor, height);
    for (let column = 0; column < made.width; column++) {
      const right = Math.min((column + 1) * factor, width);
      let total = 0;
      for (let y = row * factor; y < bottom; y++) {
        for (let x = column * factor; x < right; x++) total += data[y * width + x];
      }
      const count = (bottom - row * factor) * (right - column * factor);
      const share = Math.floor(2 ** 24 / count); // Pillow divides by integer arithmetic
      made.data[row * made.width + column] = Math.floor(((total + (count >> 1)) * share) / 2 ** 24);
    }
  }
  return made;
}

/** Return pixels interpolated, or averaged with the weights of a triangle: Pillow's BILINEAR. */
export function resize(grid, height, width) {
  return along(along(grid, width).transposed(), height).transposed();
}

function along(grid, length) {
  const { height, width, data } = grid;
  if (length === width) return grid;
  const scale = width / length;
  const support = Math.max(scale, 1);
  const made = new Grid(height, length);
  for (let place = 0; place < length; place++) {
    const center = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(width, Math.trunc(center + support + 0.5));
    const weights = [];
    for (let x = first; x < last; x++) weights.push(Math.max(0, 1 - Math.abs((x - center + 0.5) * (1 / support))));
    const total = sum(weights);
    weights.forEach((weight, index) => (weights[index] = total ? weight * (1 / total) : weight));
    for (let row = 0; row < height; row++) {
      let value = 0;
      for (let index = 0; index < weights.length; index++) value += data[row * width + first + index] * weights[index];
      made.data[row * length + place] = value;
    }
  }
  return made;
}

const [LARGEST, LEAST] = [1, -1];

/** Return the largest or the smallest value within `reach` of each pixel in its row. */
function extreme({ height, width, data }, reach, sign) {
  const made = new data.constructor(data.length);
  for (let row = 0, place = 0; row < height; row++) {
    const start = row * width;
    for (let column = 0; column < width; column++, place++) {
      const first = column < reach ? start : place - reach;
      const last = column + reach < width ? place + reach : start + width - 1;
      let best = data[first];
      for (let near = first + 1; near <= last; near++) if (sign * data[near] > sign * best) best = data[near];
      made[place] = best;
    }
  }
  return new Grid(height, width, made);
}

const square = (grid, size, sign) => extreme(extreme(grid, size >> 1, sign).transposed(), size >> 1, sign).transposed();
const maximumFilter = (grid, size) => square(grid, size, LARGEST);
const minimumFilter = (grid, size) => square(grid, size, LEAST);

/** Return the means of squares of pixels, edges repeated. */
function uniformFilter(grid, size) {
  const once = (one) => {
    const { height, width, data } = one;
    const [made, reach] = [new Grid(height, width), size >> 1];
    for (let row = 0; row < height; row++) {
      const value = (x) => data[row * width + clip(x, 0, width - 1)];
      let total = 0;
      for (let x = -reach; x <= reach; x++) total += value(x);
      for (let x = 0; x < width; x++) {
        made.data[row * width + x] = total / size;
        total += value(x + reach + 1) - value(x - reach);
      }
    }
    return made;
  };
  return once(once(grid.transposed()).transposed());
}

/** Return the number of the connected part, from 1 on, of each pixel of a mask, and how many there are. */
function label(mask) {
  const { height, width, data } = mask;
  const labels = new Grid(height, width, new Int32Array(data.length));
  const stack = [];
  let count = 0;
  for (let start = 0; start < data.length; start++) {
    if (!data[start] || labels.data[start]) continue;
    labels.data[start] = ++count;
    stack.push(start);
    while (stack.length) {
      const place = stack.pop();
      const row = Math.floor(place / width);
      const column = place % width;
      for (let y = Math.max(0, row - 1); y <= Math.min(height - 1, row + 1); y++) {
        for (let x = Math.max(0, column - 1); x <= Math.min(width - 1, column + 1); x++) {
          const near = y * width + x;
          if (data[near] && !labels.data[near]) {
            labels.data[near] = count;
            stack.push(near);
          }
        }
      }
    }
  }
  return { labels, count };
}

/** Return the box of each part: left, top, right, bottom and area, at its number. */
function boxes({ labels, count }) {
  const found = Array.from({ length: count + 1 }, () => ({ left: Infinity, top: Infinity, right: 0, bottom: 0, area: 0 }));
  for (let row = 0, place = 0; row < labels.height; row++) {
    for (let column = 0; column < labels.width; column++, place++) {
      const box = found[labels.data[place]];
      if (column < box.left) box.left = column;
      if (row < box.top) box.top = row;
      if (column >= box.right) box.right = column + 1;
      if (row >= box.bottom) box.bottom = row + 1;
      box.area++;
    }
  }
  return found;
}

// ---------------------------------------------------------------- paper

export const [GRID, WINDOW, NEAR, BINS] = [64, 33, 17, 256];

/** Return how much darker than paper each pixel of a gray picture is, 0 … 1; light ink counts as dark. */
export function darkness(gray) {
  if (!isInkDark(gray)) gray = gray.map((value) => 255 - value);
  const cells = toCells(gray);
  const ink = against(gray, paper(cells, WINDOW));
  const limit = threshold(ink, variation(ink));
  const dark = ink.map((value) => value > limit, Uint8Array);
  const wide = (strokeWidth(dark) * GRID) / Math.max(gray.height, gray.width, GRID);
  return against(gray, paper(cells, Math.min(Math.max(Math.ceil(3 * wide), 3), WINDOW) | 1));
}

function against(gray, paper) {
  if (paper.height !== gray.height || paper.width !== gray.width) paper = resize(paper, gray.height, gray.width);
  return gray.map((value, place) => {
    const light = paper.data[place];
    return clip(Math.fround(Math.fround(light - value) / Math.max(light, 64)), 0, 1);
  });
}

function toCells(gray) {
  const scale = GRID / Math.max(gray.height, gray.width);
  if (scale >= 1) return gray;
  return resize(gray, Math.max(1, round(gray.height * scale)), Math.max(1, round(gray.width * scale)));
}

/** Return the brightness of the paper in each cell: strokes narrower than `size` cells are closed. */
function paper(cells, size) {
  return uniformFilter(minimumFilter(maximumFilter(cells, size), size), 3);
}

/** Say whether the ink is darker than the paper. */
function isInkDark(gray) {
  const light = lightness(gray);
  if (!(0.4 <= light && light <= 1.6)) return light > 1;
  const cells = toCells(gray);
  const near = uniformFilter(cells, NEAR);
  const rest = cells.map((value, place) => value - near.data[place]);
  const middle = median(rest.data);
  return sum(Float64Array.from(rest.data, (value) => (value - middle) ** 3)) < 0;
}

/** Return the share of light pixels in the picture plus that along its border. */
function lightness(gray) {
  const limit = cut(gray);
  const light = gray.map((value) => value > limit, Uint8Array);
  return mean(light.data) + mean(border(light));
}

/** Return Otsu's threshold of a gray picture, all of whose pixels weigh the same. */
function cut(gray) {
  return 255 * threshold(gray.map((value) => value / 255), gray.map(() => 1));
}

/** Return how much the darkness of a pixel and its eight neighbors differs. */
function variation(ink) {
  const [most, least] = [maximumFilter(ink, 3), minimumFilter(ink, 3)];
  return most.map((value, place) => value - least.data[place]);
}

/** Return from which darkness on a pixel is ink, by Otsu's method with a weight for each pixel. */
export function threshold(values, weights) {
  const counts = new Float64Array(BINS);
  values.data.forEach((value, place) => {
    if (value >= 0 && value <= 1) counts[Math.min(BINS - 1, Math.floor(value * BINS))] += weights.data[place];
  });
  const center = (bin) => (bin + 0.5) / BINS;
  const [whole, all] = [sum(counts), counts.reduce((total, count, bin) => total + count * center(bin), 0)];
  let [below, mass, best, at] = [0, 0, 0, 0];
  counts.forEach((count, bin) => {
    below += count;
    mass += count * center(bin);
    const [above, rest] = [whole - below, all - mass];
    const between = below * above * (mass / below - rest / above) ** 2;
    if (between > best) [best, at] = [between, bin];
  });
  return (at + 1) / BINS;
}

/** Return the mean width of strokes in pixels: twice their area by the length of their outline. */
function strokeWidth(mask) {
  const inside = mask.pad(1, 1, 1, 1);
  let [edges, area] = [0, 0];
  for (let row = 1; row < inside.height; row++) {
    for (let column = 1; column < inside.width; column++) {
      const here = inside.at(row, column);
      area += here;
      edges += (here !== inside.at(row - 1, column)) + (here !== inside.at(row, column - 1));
    }
  }
  return (2 * area) / ((Math.max(1, edges) * Math.PI) / 4);
}

// ---------------------------------------------------------------- segmentation

export const [MOST, FAINT, GAP, SMALLEST, CARD_EDGE] = [1000, 0.06, 7, 6, 0.8];

class Part {
  constructor(labels, left, top, right, bottom, area) {
    Object.assign(this, { labels, left, top, right, bottom, area });
  }

  get width() {
    return this.right - this.left;
  }

  get height() {
    return this.bottom - this.top;
  }

  get size() {
    return Math.max(this.width, this.height);
  }

  with(other) {
    return new Part(
      [...this.labels, ...other.labels],
      Math.min(this.left, other.left),
      Math.min(this.top, other.top),
      Math.max(this.right, other.right),
      Math.max(this.bottom, other.bottom),
      this.area + other.area,
    );
  }

  contains(other) {
    return this.left <= other.left && this.top <= other.top && this.right >= other.right && this.bottom >= other.bottom;
  }
}

/** Return which pixels of its box belong to a part. */
function maskOf(labels, part) {
  const numbers = new Set(part.labels);
  return labels.crop(part.top, part.bottom, part.left, part.right).map((number) => numbers.has(number), Uint8Array);
}

/** Return the ink of a part alone, cut out at its edges. */
function inkOf(ink, part) {
  const box = [
    Math.max(0, part.top - 1),
    Math.min(ink.labels.height, part.bottom + 1),
    Math.max(0, part.left - 1),
    Math.min(ink.labels.width, part.right + 1),
  ];
  const numbers = new Set(part.labels);
  const near = maximumFilter(ink.labels.crop(...box).map((number) => numbers.has(number), Uint8Array), 3);
  const alone = ink.darkness.crop(...box).map((value, place) => value * near.data[place]);
  const least = Math.fround(0.1 * highest(alone.data));
  const [, found] = boxes({ labels: alone.map((value) => value > least, Uint8Array), count: 1 });
  return alone.crop(found.top, found.bottom, found.left, found.right);
}

/** Return the ink on a gray picture: its darkness, labels and parts, and the grain of the paper. */
function find(gray, depth = 0) {
  const box = depth < 2 ? card(gray) : null;
  if (box) {
    const found = find(gray.crop(box.top, box.bottom, box.left, box.right), depth + 1);
    if (found.parts.length) return placed(found, box, gray);
  }
  const ink = darkness(gray);
  const varies = variation(ink);
  let limit = threshold(ink, varies);
  const dark = ink.map((value) => value > limit, Uint8Array);
  let lines = linesOf(dark);
  if (!dark.data.some((value, place) => value && !lines.data[place])) lines = lines.map(() => 0, Uint8Array);
  if (lines.data.some((value) => value)) {
    const wide = maximumFilter(lines, 5);
    limit = threshold(ink, varies.map((value, place) => (wide.data[place] ? 0 : value)));
  }
  const least = Math.max(limit / 2, FAINT);
  let faint = ink.map((value, place) => value > least && !lines.data[place], Uint8Array);
  const more = linesOf(faint);
  faint = faint.map((value, place) => value && !more.data[place], Uint8Array);
  const { labels, count } = label(faint);
  const darkest = new Float32Array(count + 1);
  labels.data.forEach((number, place) => (darkest[number] = Math.max(darkest[number], ink.data[place])));
  const parts = readable(partsOf({ labels, count }, (number) => darkest[number] > Math.max(0.6 * limit, FAINT)), labels);
  return { darkness: ink, labels, parts, grain: Math.fround(median(varies.data)) };
}

function placed(found, box, gray) {
  const margins = [box.top, gray.height - box.bottom, box.left, gray.width - box.right];
  const parts = found.parts.map(
    (one) => new Part(one.labels, one.left + box.left, one.top + box.top, one.right + box.left, one.bottom + box.top, one.area),
  );
  return { ...found, darkness: found.darkness.pad(...margins), labels: found.labels.pad(...margins), parts };
}

/** Return the connected parts, the largest first; `keep` says of each number whether it counts. */
function partsOf(labelled, keep) {
  const found = boxes(labelled)
    .map((box, number) => new Part([number], box.left, box.top, box.right, box.bottom, box.area))
    .filter((_, number) => number && keep(number));
  return found.sort((one, other) => other.area - one.area).slice(0, MOST);
}

/** Return the inside of a rectangle of another brightness on which the picture is, such as a card on a table. */
function card(gray) {
  const { height, width } = gray;
  const [limit, light] = [cut(gray), lightness(gray) > 1];
  const labelled = label(gray.map((value) => (light ? value < limit : value >= limit), Uint8Array));
  const parts = partsOf(labelled, () => true);
  if (!parts.length) return null;
  const found = parts.reduce((best, one) => (one.width * one.height > best.width * best.height ? one : best));
  const area = found.width * found.height;
  const share = area / (width * height);
  if (!(0.15 <= share && share <= 0.95) || Math.min(found.width, found.height) < 16 || found.area < area / 2) return null;
  if (found.width === width || found.height === height) return null; // a shadow
  const mask = maskOf(labelled.labels, found);
  const edge = Math.max(1, round(0.02 * Math.min(mask.height, mask.width)));
  const sides = [mask, mask.transposed()].flatMap((one) =>
    [edge, one.height - 1 - edge].map((row) => mean(one.data.subarray(row * one.width, (row + 1) * one.width))),
  );
  if (lowest(sides) < CARD_EDGE) return null;
  const inside = new Part(
    [], found.left + 2 * edge, found.top + 2 * edge, found.right - 2 * edge, found.bottom - 2 * edge, found.area,
  );
  const { data } = gray.crop(inside.top, inside.bottom, inside.left, inside.right);
  return highest(data) - lowest(data) >= 60 ? inside : null;
}

/** Return the pixels of thin lines from one side of the picture to the other, except where a stroke crosses. */
function linesOf(mask) {
  const level = levelLines(mask);
  const upright = levelLines(mask.transposed()).transposed();
  return level.map((value, place) => value || upright.data[place], Uint8Array);
}

function levelLines(image) {
  const { height, width } = image;
  const found = new Grid(height, width, new Uint8Array(image.data.length));
  const reach = GAP >> 1;
  const whole = extreme(extreme(image, reach, LARGEST), reach, LEAST);
  const labelled = label(runs(whole, Math.max(5, round(0.15 * width))));
  boxes(labelled).forEach(({ left, top, right, bottom }, number) => {
    if (!number || right - left < 0.9 * width || left > 0.04 * width || right < 0.96 * width) return;
    const [sure, counts, middles] = [[], [], []];
    for (let column = left; column < right; column++) {
      let [count, first, last] = [0, -1, -1];
      for (let row = top; row < bottom; row++) {
        if (labelled.labels.at(row, column) !== number) continue;
        if (first < 0) first = row;
        last = row;
        count++;
      }
      counts.push(count);
      middles.push((first + last) / 2);
    }
    const thickness = median(counts.filter((count) => count));
    if (thickness > Math.max(1.2, 0.04 * height)) return;
    counts.forEach((count, place) => {
      if (count && count <= 1.5 * thickness) sure.push([place + left, middles[place]]);
    });
    let near = 0;
    for (let column = 0; column < width; column++) {
      while (near < sure.length - 1 && sure[near + 1][0] <= column) near++;
      const row = interpolated(sure, near, column);
      const first = Math.max(0, round(row - thickness / 2 - 1.5));
      const last = Math.min(height - 1, round(row + thickness / 2 + 1.5));
      const crossed = first > 0 && last < height - 1 && image.at(first - 1, column) && image.at(last + 1, column);
      if (!crossed) for (let y = first; y <= last; y++) found.data[y * width + column] = 1;
    }
  });
  return found;
}

/** Return the row of a line at a column, of which it has points before (`near`) and after. */
function interpolated(points, near, column) {
  const [[x, y], next] = [points[near], points[near + 1]];
  if (column <= x || !next) return y;
  return ((next[1] - y) / (next[0] - x)) * (column - x) + y;
}

/** Return the pixels of a mask that lie in horizontal runs of at least `length`. */
function runs({ height, width, data }, length) {
  const made = new Grid(height, width, new Uint8Array(data.length));
  for (let row = 0; row < height; row++) {
    let start = row * width;
    for (let place = start; place <= (row + 1) * width; place++) {
      if (place < (row + 1) * width && data[place]) continue;
      if (place - start >= length) made.data.fill(1, start, place);
      start = place + 1;
    }
  }
  return made;
}

/** Return the parts without frames and, if others are large enough, without bars and strips along an edge. */
function readable(parts, labels) {
  const { height, width } = labels;
  const isFrame = (part) => {
    if (part.width < 0.3 * width || part.height < 0.3 * height) return false;
    if (!parts.some((one) => one !== part && part.contains(one) && one.height > part.height / 4)) return false;
    const mask = maskOf(labels, part);
    const edge = Math.max(1, round(0.1 * Math.min(mask.height, mask.width)));
    return sum(mask.crop(edge, mask.height - edge, edge, mask.width - edge).data) < 0.15 * part.area;
  };
  const isStrip = (part) => {
    const bar = part.width >= 0.5 * width && part.width >= 6 * part.height;
    const shadow = part.height === height && part.width < 0.15 * width;
    const upright = (part.left === 0 || part.right === width) && part.height > 0.5 * height && part.width < 0.15 * width;
    const level = (part.top === 0 || part.bottom === height) && part.width > 0.5 * width && part.height < 0.15 * height;
    return bar || shadow || upright || level;
  };
  parts = parts.filter((part) => !isFrame(part));
  const rest = parts.filter((part) => !isStrip(part));
  return rest.some((part) => part.size >= 0.25 * Math.min(height, width)) ? rest : parts;
}

/** Return the only character, in a list, or none: the largest part and what is near enough to belong to it. */
function one(ink) {
  if (!ink.parts.length) return [];
  let [character] = ink.parts;
  const rest = ink.parts.slice(1).filter((part) => part.area >= 0.02 * ink.parts[0].area);
  for (;;) {
    const near = rest.find((part) => -Math.min(...shared(part, character)) < character.size / 4);
    if (!near) break;
    character = character.with(near);
    rest.splice(rest.indexOf(near), 1);
  }
  return isDrawn(ink, character) ? [character] : [];
}

/** Return the characters of each line, from left to right and from top to bottom. */
function page(ink) {
  if (!ink.parts.length) return [];
  const byHeight = [...ink.parts].sort((first, second) => first.height - second.height);
  const half = sum(byHeight.map((part) => part.area)) / 2;
  let area = 0;
  const typical = byHeight.find((part) => (area += part.area) >= half).height;
  const characters = [];
  for (let part of ink.parts) {
    if (part.size < 0.12 * typical) continue;
    for (;;) {
      const other = characters.find((found) => together(part, found, typical));
      if (!other) break;
      characters.splice(characters.indexOf(other), 1);
      part = part.with(other);
    }
    characters.push(part);
  }
  const large = characters.filter((found) => found.height >= 0.4 * typical && found.width <= 4 * found.height);
  const lines = inLines(large.filter((found) => isDrawn(ink, found)));
  const { height, width } = ink.labels;
  const isCut = (part) => part.left === 0 || part.top === 0 || part.right === width || part.bottom === height;
  const whole = lines.filter((line) => !line.every(isCut));
  return whole.length ? whole : lines;
}

const overlap = (first, last, otherFirst, otherLast) => Math.min(last, otherLast) - Math.max(first, otherFirst);

/** Return how many columns and rows two parts have in common; less than 0 is how far they are apart. */
function shared(part, other) {
  return [
    overlap(part.left, part.right, other.left, other.right),
    overlap(part.top, part.bottom, other.top, other.bottom),
  ];
}

/** Say whether two parts are strokes of one character, given the height of most characters. */
function together(part, other, typical) {
  const [[columns, rows], both] = [shared(part, other), part.with(other)];
  if (both.height > 1.5 * typical) return false;
  const stacked =
    columns >= Math.min(part.width, other.width) / 2 && rows > -typical / 4 && both.width <= 1.5 * typical;
  const beside = Math.min(part.size, other.size) < 0.75 * typical && columns > -0.06 * typical && rows > 0;
  return stacked || beside;
}

/** Say whether a part consists of strokes as a character does: not a speck, a surface, a tangle or grain. */
function isDrawn(ink, part) {
  if (part.size < SMALLEST) return false;
  const mask = maskOf(ink.labels, part);
  const width = strokeWidth(mask);
  return width <= 0.38 * part.size && part.area <= 5 * width * part.size && contrast(ink, part, mask) >= 2;
}

/** Say whether a character is so solid, so tangled or so faint that its answer should not be trusted. */
function isOdd(ink, part) {
  const mask = maskOf(ink.labels, part);
  if (part.area > 4 * strokeWidth(mask) * part.size || contrast(ink, part, mask) < 4) return true;
  // A square that fits into the strokes.
  const side = Math.max(3, round(0.46 * part.size));
  const sums = new Grid(mask.height + 1, mask.width + 1, new Float64Array((mask.height + 1) * (mask.width + 1)));
  for (let row = 1; row < sums.height; row++) {
    for (let column = 1; column < sums.width; column++) {
      const rest = sums.at(row - 1, column) + sums.at(row, column - 1) - sums.at(row - 1, column - 1);
      sums.data[row * sums.width + column] = mask.at(row - 1, column - 1) + rest;
      if (row < side || column < side) continue;
      const [up, left] = [row - side, column - side];
      if (mask.at(row - 1, column - 1) && sums.at(row, column) - sums.at(up, column) - sums.at(row, left) + sums.at(up, left) === side * side) return true;
    }
  }
  return false;
}

/** Return how many times darker the strokes are than the grain of the paper is. */
function contrast(ink, part, mask) {
  const box = ink.darkness.crop(part.top, part.bottom, part.left, part.right);
  return Math.fround(median(box.data.filter((_, place) => mask.data[place]))) / Math.max(ink.grain, 1e-3);
}

/** Return the parts of each line from left to right: a part belongs to the line whose rows it shares most. */
function inLines(parts) {
  const lines = [];
  const height = (part) => part.top + part.bottom;
  for (const part of [...parts].sort((first, second) => height(first) - height(second))) {
    const sharedWith = (line) => {
      const [top, bottom] = ["top", "bottom"].map((end) => mean(line.map((found) => found[end])));
      const away = (found) => Math.abs(found.left + found.right - part.left - part.right);
      const near = line.reduce((best, found) => (away(found) < away(best) ? found : best));
      const rows = Math.max(
        Math.min(part.bottom, bottom) - Math.max(part.top, top),
        overlap(part.top, part.bottom, near.top, near.bottom),
      );
      return rows / Math.min(part.height, bottom - top);
    };
    const scores = lines.map(sharedWith);
    const best = scores.indexOf(highest(scores));
    if (lines.length && scores[best] >= 0.4) lines[best].push(part);
    else lines.push([part]);
  }
  const middles = new Map(lines.map((line) => [line, mean(line.map(height))]));
  lines.sort((first, second) => middles.get(first) - middles.get(second));
  return lines.map((line) => line.sort((first, second) => first.left - second.left));
}

// ---------------------------------------------------------------- preprocessing

export const [INK_SHARE, STROKE, FINE] = [20 / 28, 2.4 / 28, 4];

/** Return the characters of a decoded picture, RGBA: image, box in its pixels, line, and whether it is odd. */
export function read(rgba, width, height, side, single) {
  const { gray, scale } = toGray(rgba, width, height);
  return strokes(gray, side, single).map((found) => ({ ...found, box: found.box.map((edge) => round(edge * scale)) }));
}

/** Return the characters of a gray picture (0 … 255), boxes in its own pixels. */
export function strokes(gray, side, single) {
  const image = asItIs(gray, side);
  if (image) {
    const [, box] = boxes({ labels: image.map((value) => value > Math.fround(0.1), Uint8Array), count: 1 });
    return [{ image: image.data, box: [box.left, box.top, box.right, box.bottom], line: 0, odd: false }];
  }
  if (Math.min(gray.height, gray.width) < 3) return [];
  const ink = find(gray);
  const lines = single ? [one(ink)] : page(ink);
  return lines.flatMap((line, number) =>
    line.map((part) => ({
      image: normalize(inkOf(ink, part), side).data,
      box: [part.left, part.top, part.right, part.bottom],
      line: number,
      odd: isOdd(ink, part),
    })),
  );
}

/** Return a picture as the model's image if it looks like one of MNIST, white on black or black on white. */
function asItIs(gray, side) {
  if (gray.height !== side || gray.width !== side) return null;
  const white = gray.map((value) => value / 255);
  for (const image of [white, white.map((value) => 1 - value)]) {
    if (highest(border(image)) >= 0.02 || highest(image.data) <= 0.9) continue;
    const [, box] = boxes({ labels: image.map((value) => value > Math.fround(0.1), Uint8Array), count: 1 });
    const length = Math.max(box.right - box.left, box.bottom - box.top);
    const off = Math.max(...centerOfMass(image).map((center) => Math.abs(center - (side - 1) / 2)));
    if ((18 / 28) * side <= length && length <= (22 / 28) * side && off <= (1.2 / 28) * side) return image;
  }
  return null;
}

/** Return the ink of one character as MNIST would show it. */
export function normalize(ink, side) {
  const [length, wanted] = [round(INK_SHARE * side * FINE), STROKE * side * FINE];
  let fine = fit(ink, length);
  const radius = (wanted - strokeWidth(fine.map((value) => value > 0.5, Uint8Array))) / 2;
  if (radius > 0) {
    const margin = halfUp(radius);
    fine = widen(fit(ink, length - 2 * margin).pad(margin, margin, margin, margin), radius);
  }
  const [height, width] = [fine.height, fine.width].map((size) => Math.ceil(size / FINE) * FINE);
  const [above, before] = [(height - fine.height) >> 1, (width - fine.width) >> 1];
  fine = fine.pad(above, height - fine.height - above, before, width - fine.width - before);
  const small = new Grid(height / FINE, width / FINE).map((_, place) => {
    const [row, column] = [Math.floor(place / (width / FINE)) * FINE, (place % (width / FINE)) * FINE];
    let total = 0;
    for (let y = row; y < row + FINE; y++) for (let x = column; x < column + FINE; x++) total += fine.at(y, x);
    return total / (FINE * FINE);
  });
  const sizes = [small.height, small.width];
  const [top, left] = centerOfMass(small).map((center, axis) =>
    clip(halfUp((side - 1) / 2 - center), 0, side - sizes[axis]),
  );
  return small.pad(top, side - top - small.height, left, side - left - small.width);
}

/** Return ink with its longer side of `length` pixels and its darkest strokes at 1. */
function fit(ink, length) {
  const scale = length / Math.max(ink.height, ink.width);
  const small = resize(ink, Math.max(1, halfUp(ink.height * scale)), Math.max(1, halfUp(ink.width * scale)));
  const most = highest(small.data);
  const dark = small.data.filter((value) => value > most / 2).sort();
  const full = dark[Math.floor((3 * (dark.length - 1)) / 4)];
  return small.map((value) => clip(value / full, 0, 1));
}

/** Return ink whose every pixel is a disc of this radius, the last pixel of which fades. */
function widen(ink, radius) {
  const reach = Math.ceil(radius);
  const [padded, out] = [ink.pad(reach, reach, reach, reach), ink.map((value) => value)];
  for (let down = -reach; down <= reach; down++) {
    for (let right = -reach; right <= reach; right++) {
      const share = Math.fround(Math.min(1, radius + 1 - Math.hypot(down, right)));
      if (share <= 0) continue;
      for (let row = 0; row < ink.height; row++) {
        for (let column = 0; column < ink.width; column++) {
          const moved = share * padded.at(row + reach + down, column + reach + right);
          const place = row * ink.width + column;
          if (moved > out.data[place]) out.data[place] = moved;
        }
      }
    }
  }
  return out;
}

/** Return the row and the column of the center of mass. */
function centerOfMass({ height, width, data }) {
  let [total, down, right] = [0, 0, 0];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const value = data[row * width + column];
      total += value;
      down += row * value;
      right += column * value;
    }
  }
  return [down / total, right / total];
}
