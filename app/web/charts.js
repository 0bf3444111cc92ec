// Line charts as SVG: training curves, ROC and calibration.
import { html } from "./core.js";
import { colourOf } from "./ui.js";

const WIDTH = 460;
const LEFT = 46;

function ticks(low, high) {
  const step = 10 ** Math.floor(Math.log10(high - low || 1));
  const wide = [5, 2, 1, 0.5, 0.2].map((factor) => factor * step).find((one) => (high - low) / one >= 3) || step / 5;
  const found = [];
  for (let at = Math.ceil(low / wide - 1e-9) * wide; at <= high + wide * 1e-6; at += wide) found.push(+at.toPrecision(10));
  return found;
}
const label = (value) => (Math.abs(value) >= 10_000 ? `${value / 1000}k` : String(value));

// `series`: [{ name, points: [[x, y], ...], colour? }]; x and y ranges come from the points unless they are given.
export function LineChart({ title, series, x, y, xRange, yRange, diagonal, height = 250, dots }) {
  const known = series.map((one) => ({ ...one, points: one.points.filter(([, value]) => value != null && Number.isFinite(value)) }));
  const all = known.flatMap((one) => one.points);
  if (!all.length) return html`<p class="soft">No values yet.</p>`;
  const [x0, x1] = xRange || [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
  let [y0, y1] = yRange || [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
  if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
  const bottom = height - 36;
  const atX = (value) => LEFT + ((value - x0) / (x1 - x0 || 1)) * (WIDTH - LEFT - 12);
  const atY = (value) => bottom - ((value - y0) / (y1 - y0)) * (bottom - 10);
  return html`<figure class="stack" style="margin:0;gap:0">
    <svg class="chart" viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label=${`${title}: ${known.map((one) => `${one.name}, last value ${one.points.length ? +one.points.at(-1)[1].toPrecision(3) : "no value"}`).join(", ")}`}>
      ${ticks(y0, y1).map((at) => html`<line class="axis" x1=${LEFT} x2=${WIDTH - 12} y1=${atY(at)} y2=${atY(at)} /><text x=${LEFT - 7} y=${atY(at) + 4} text-anchor="end">${label(at)}</text>`)}
      ${ticks(x0, x1).map((at) => html`<text x=${atX(at)} y=${bottom + 17} text-anchor="middle">${label(at)}</text>`)}
      <text x=${(LEFT + WIDTH) / 2} y=${height - 3} text-anchor="middle">${x}</text>
      ${y && html`<text x="-${bottom / 2}" y="11" transform="rotate(-90)" text-anchor="middle">${y}</text>`}
      ${diagonal && html`<line class="diagonal" x1=${atX(x0)} y1=${atY(y0)} x2=${atX(x1)} y2=${atY(y1)} />`}
      ${known.map((one, index) => html`<polyline fill="none" stroke=${one.colour || colourOf(index)} stroke-width="2" stroke-linejoin="round"
          points=${one.points.map(([a, b]) => `${atX(a).toFixed(1)},${atY(b).toFixed(1)}`).join(" ")} />
        ${(dots || one.points.length === 1) && one.points.map(([a, b, text]) => html`<circle cx=${atX(a)} cy=${atY(b)} r="4" fill=${one.colour || colourOf(index)}>${text && html`<title>${text}</title>`}</circle>`)}`)}
    </svg>
    ${series.length > 1 && html`<ul class="legend">${known.map((one, index) => html`<li><span class="swatch" style=${{ background: one.colour || colourOf(index) }}></span>${one.name}</li>`)}</ul>`}
  </figure>`;
}
