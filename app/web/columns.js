// The data of one archive as the map needs it: ids, points, columns as typed arrays, and colours made of them.
import { get, request } from "./api.js";
import { colourOf, COLOURS } from "./ui.js";
import { pixel } from "./scatter.js";

const KINDS = { float32: Float32Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };

async function binary(path) {
  return (await request("GET", path)).arrayBuffer();
}

export class ArchiveData {
  constructor(name) {
    this.name = name;
    this.path = `/v1/archives/${encodeURIComponent(name)}`;
    this.known = new Map();
  }

  // Ids first, then the list of columns; the points of a map come separately, since there are several maps.
  async load() {
    const [about, ids] = await Promise.all([get(`${this.path}/columns`), binary(`${this.path}/columns/id`)]);
    this.columns = about.columns;
    this.count = about.count;
    this.bytes = new Uint8Array(ids);
    this.rows = null;
    return this;
  }

  id(row) {
    return String.fromCharCode(...this.bytes.subarray(32 * row, 32 * row + 32));
  }

  row(id) {
    if (!this.rows) {
      this.rows = new Map();
      for (let row = 0; row < this.count; row++) this.rows.set(this.id(row), row);
    }
    return this.rows.get(id) ?? -1;
  }

  async points(method) {
    return new Float32Array(await binary(`${this.path}/map/points?method=${method}`));
  }

  // Values of a column of the table ("label") or of a probe's predictions ("APPLICATION/label").
  async column(key) {
    if (this.known.has(key)) return this.known.get(key);
    const [application, name] = key.includes("/") ? [key.slice(0, 32), key.slice(33)] : [null, key];
    const base = application ? `/v1/applications/${application}` : this.path;
    const list = application ? (await get(`${base}/columns`)).columns : this.columns;
    const about = list.find((one) => one.name === name);
    if (!about) return null;
    const values = new KINDS[about.dtype](await binary(`${base}/columns/${encodeURIComponent(name)}`));
    const found = { ...about, codes: values };
    this.known.set(key, found);
    return found;
  }
}

const OTHER = "#9aa4ae";
const RAMP = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"]; // viridis

// Codes, palette and legend of a column: nine colours for the most frequent texts, a ramp for numbers. A text that is one
// of `classes` has its colour, so that a class looks the same on the map and beside its key.
export function colouring(column, count, classes = []) {
  const codes = new Uint16Array(count);
  if (!column) return { codes, palette: Uint32Array.of(pixel(colourOf(0))), legend: [] };
  if (column.kind === "number") {
    const [low, high] = [column.min ?? 0, column.max ?? 1];
    const steps = 64;
    for (let row = 0; row < count; row++) {
      const value = column.codes[row];
      codes[row] = Number.isNaN(value) ? steps : Math.min(steps - 1, Math.max(0, Math.floor(((value - low) / (high - low || 1)) * steps)));
    }
    const palette = Uint32Array.from({ length: steps + 1 }, (_, step) => (step === steps ? pixel(OTHER) : pixel(ramp(step / (steps - 1)))));
    return { codes, palette, legend: [], range: [low, high] };
  }
  const top = Math.min(9, column.values.length);
  for (let row = 0; row < count; row++) codes[row] = Math.min(column.codes[row], top); // rarer values and missing ones share a colour
  const rest = count - column.counts.slice(0, top).reduce((a, b) => a + b, 0);
  const shown = column.values.slice(0, top);
  const places = shown.map((name) => classes.indexOf(name));
  const free = [...Array(COLOURS.length).keys()].filter((place) => !places.includes(place));
  const colours = places.map((place) => colourOf(place >= 0 ? place : free.shift()));
  const legend = shown.map((name, index) => ({ code: index, name, colour: colours[index], count: column.counts[index] }));
  if (rest > 0) legend.push({ code: top, name: column.distinct > top ? "other or none" : "none", colour: OTHER, count: rest });
  return { codes, palette: Uint32Array.from({ length: top + 1 }, (_, index) => pixel(index < top ? colours[index] : OTHER)), legend };
}

// Codes by the labels that the user gave: one colour a class, the rest grey.
export function labelColouring(data, set, labels) {
  const codes = new Uint16Array(data.count).fill(set.classes.length);
  const counts = new Array(set.classes.length).fill(0);
  for (const [id, label] of labels) {
    const row = data.row(id);
    const place = set.classes.indexOf(Array.isArray(label) ? label[0] : String(label));
    if (row < 0 || place < 0) continue;
    codes[row] = place;
    counts[place] += 1;
  }
  const legend = set.classes.map((name, index) => ({ code: index, name, colour: colourOf(index), count: counts[index] }));
  legend.push({ code: set.classes.length, name: "no label", colour: OTHER, count: data.count - counts.reduce((a, b) => a + b, 0) });
  return { codes, palette: Uint32Array.from([...set.classes.map((_, index) => pixel(colourOf(index))), pixel(OTHER)]), legend };
}

function ramp(part) {
  const at = part * (RAMP.length - 1);
  const [from, to] = [RAMP[Math.floor(at)], RAMP[Math.min(RAMP.length - 1, Math.floor(at) + 1)]];
  const mix = [1, 3, 5].map((place) => {
    const [a, b] = [parseInt(from.slice(place, place + 2), 16), parseInt(to.slice(place, place + 2), 16)];
    return Math.round(a + (b - a) * (at % 1)).toString(16).padStart(2, "0");
  });
  return `#${mix.join("")}`;
}
export const RAMP_CSS = `linear-gradient(to right, ${RAMP.join(", ")})`;
