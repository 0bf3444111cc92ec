// Draws up to some hundred thousand points. Pixels are written by hand: this needs no GPU, which remote desktops and
// hospital computers often lack, and a frame of 200,000 points takes a few milliseconds (benchmarks/results).

const CELL = 64; // pixels of a cell in which one thumbnail is drawn
const SELECTED_GROWTH = 1.6;

// Offsets and coverage (0 to 256) of the pixels of a disc.
function disc(radius) {
  const reach = Math.ceil(radius);
  const found = [];
  for (let y = -reach; y <= reach; y++)
    for (let x = -reach; x <= reach; x++) {
      const cover = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(x, y)));
      if (cover > 0.05) found.push([x, y, Math.round(cover * 256)]);
    }
  return found;
}

// "rgb(1, 2, 3)" or "#010203" as a pixel (alpha, blue, green, red).
export function pixel(colour) {
  const [r, g, b] = colour.startsWith("#") ? [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) : colour.match(/[\d.]+/g).map(Number);
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

export class Scatter {
  // `canvas` shows the points, `overlay` above it thumbnails, rings and the lasso.
  constructor(canvas, overlay) {
    this.canvas = canvas;
    this.overlay = overlay;
    this.context = canvas.getContext("2d", { alpha: false });
    this.above = overlay.getContext("2d");
    this.points = new Float32Array(0);
    this.codes = new Uint16Array(0);
    this.palette = new Uint32Array([pixel("#888888")]);
    this.dimmed = null; // per colour code: drawn first and faint
    this.selected = null; // per row
    this.view = { scale: 1, x: 0, y: 0 }; // of the unit square's centre, in device pixels
    this.hover = -1;
    this.focus = -1;
    this.lasso = null;
    this.picture = null; // row -> image or null; draws thumbnails when set
    this.pending = 0;
  }

  get count() {
    return this.points.length / 2;
  }

  resize() {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const [width, height] = [Math.max(1, Math.round(this.canvas.clientWidth * ratio)), Math.max(1, Math.round(this.canvas.clientHeight * ratio))];
    this.ratio = ratio;
    if (this.canvas.width === width && this.canvas.height === height && this.frame) return;
    const wasEmpty = !this.frame;
    const [dx, dy] = [(width - this.canvas.width) / 2, (height - this.canvas.height) / 2];
    for (const one of [this.canvas, this.overlay]) [one.width, one.height] = [width, height];
    this.frame = this.context.createImageData(width, height);
    this.pixels = new Uint32Array(this.frame.data.buffer);
    if (wasEmpty) this.fit();
    else [this.view.x, this.view.y] = [this.view.x + dx, this.view.y + dy];
    this.redraw();
  }

  setPoints(points) {
    this.points = points;
    if (this.codes.length !== this.count) this.codes = new Uint16Array(this.count);
    this.fit();
  }

  // The whole cloud in the middle. Its middle 99 % decide, so that a few far points do not make it tiny.
  fit() {
    if (!this.frame || !this.count) return;
    const step = Math.max(1, Math.floor(this.count / 20_000));
    const range = (part) => {
      const some = [];
      for (let row = 0; row < this.count; row += step) some.push(this.points[2 * row + part]);
      some.sort((a, b) => a - b);
      return [some[Math.floor(0.005 * (some.length - 1))], some[Math.ceil(0.995 * (some.length - 1))]];
    };
    const [[x0, x1], [y0, y1]] = [range(0), range(1)];
    const { width, height } = this.canvas;
    const scale = 0.88 * Math.min(width / (x1 - x0 || 1), height / (y1 - y0 || 1));
    this.view = { scale, x: width / 2 - ((x0 + x1) / 2) * scale, y: height / 2 + ((y0 + y1) / 2) * scale };
    this.whole = scale;
    this.redraw();
  }

  get radius() {
    const zoom = Math.sqrt(this.view.scale / (this.whole || 1));
    return this.ratio * Math.min(7, Math.max(1, (150 / Math.sqrt(this.count + 300)) * zoom));
  }

  pan(dx, dy) {
    this.view.x += dx * this.ratio;
    this.view.y += dy * this.ratio;
    this.redraw();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const [px, py] = [x * this.ratio, y * this.ratio];
    const scale = Math.min(this.whole * 400, Math.max(this.whole * 0.3, this.view.scale * factor));
    const real = scale / this.view.scale;
    this.view = { scale, x: px - (px - this.view.x) * real, y: py - (py - this.view.y) * real };
    this.redraw();
  }

  redraw() {
    if (!this.pending) this.pending = requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.pending = 0;
    if (!this.frame) return;
    this.drawPoints();
    this.drawAbove();
  }

  drawPoints() {
    const { points, codes, palette, selected, dimmed } = this;
    const { width, height } = this.canvas;
    const { scale, x: left, y: top } = this.view;
    const background = pixel(getComputedStyle(this.canvas).backgroundColor);
    this.pixels.fill(background);
    if (this.picture) {
      this.context.putImageData(this.frame, 0, 0); // thumbnails take the place of the points
      return;
    }
    const paint = (sprite, reach, alpha, wanted) => {
      for (let row = 0, at = 0; row < codes.length; row++, at += 2) {
        if (!wanted(row)) continue;
        const px = Math.round(points[at] * scale + left);
        const py = Math.round(top - points[at + 1] * scale);
        if (px < reach || py < reach || px >= width - reach || py >= height - reach) continue;
        const colour = palette[codes[row]];
        const base = py * width + px;
        for (let k = 0; k < sprite.length; k += 2) {
          const place = base + sprite[k];
          const cover = (sprite[k + 1] * alpha) >> 8;
          if (cover >= 256) this.pixels[place] = colour;
          else {
            const below = this.pixels[place];
            const rest = 256 - cover;
            this.pixels[place] =
              (0xff000000 | (((colour & 0xff00ff) * cover + (below & 0xff00ff) * rest) / 256) & 0xff00ff | (((colour & 0xff00) * cover + (below & 0xff00) * rest) >>> 8) & 0xff00) >>> 0;
          }
        }
      }
    };
    const sprite = (radius) => {
      const found = disc(radius);
      return [Int32Array.from(found.flatMap(([dx, dy, cover]) => [dy * width + dx, cover])), Math.ceil(radius)];
    };
    const [small, reach] = sprite(this.radius);
    const isFaint = (row) => (dimmed && dimmed[codes[row]]) || (selected && this.selectedCount && !selected[row]);
    const alpha = this.count > 50_000 ? 200 : 230;
    if (dimmed || (selected && this.selectedCount)) {
      paint(small, reach, 80, isFaint);
      paint(small, reach, alpha, (row) => !isFaint(row) && !(selected && selected[row]));
    } else paint(small, reach, alpha, () => true);
    if (selected && this.selectedCount) {
      const [large, wide] = sprite(this.radius * SELECTED_GROWTH);
      paint(large, wide, 256, (row) => selected[row] === 1);
    }
    this.context.putImageData(this.frame, 0, 0);
  }

  drawAbove() {
    const { above } = this;
    above.clearRect(0, 0, this.overlay.width, this.overlay.height);
    if (this.picture) this.drawPictures();
    const ink = getComputedStyle(this.canvas).color;
    for (const [row, weight] of [[this.hover, 1.5], [this.focus, 3]]) {
      if (row < 0 || row >= this.count) continue;
      const [x, y] = this.at(row);
      above.strokeStyle = ink;
      above.lineWidth = weight * this.ratio;
      above.beginPath();
      above.arc(x, y, this.radius + 4 * this.ratio, 0, 7);
      above.stroke();
    }
    if (this.lasso && this.lasso.length > 1) {
      above.beginPath();
      for (const [x, y] of this.lasso) above.lineTo(x * this.ratio, y * this.ratio);
      above.closePath();
      above.fillStyle = "rgb(98 192 204 / 20%)";
      above.fill();
      above.strokeStyle = ink;
      above.lineWidth = 1.5 * this.ratio;
      above.setLineDash([5 * this.ratio, 4 * this.ratio]);
      above.stroke();
      above.setLineDash([]);
    }
  }

  // One thumbnail a cell. Cells belong to the map and not to the window, so they stay as they are while it moves.
  drawPictures() {
    const size = CELL * this.ratio;
    const { above } = this;
    for (const [cell, row] of this.cells(size)) {
      const image = this.picture(row);
      if (!image) continue;
      const [cx, cy] = cell.split(",").map(Number);
      const [x, y] = [cx * size + this.view.x, cy * size + this.view.y];
      const edge = size - 5 * this.ratio;
      const ratio = Math.min(edge / image.width, edge / image.height);
      const [w, h] = [image.width * ratio, image.height * ratio];
      const [px, py] = [x + (size - w) / 2, y + (size - h) / 2];
      const colour = this.palette[this.codes[row]];
      above.fillStyle = `rgb(${colour & 255} ${(colour >> 8) & 255} ${(colour >> 16) & 255})`;
      above.fillRect(px - 2 * this.ratio, py - 2 * this.ratio, w + 4 * this.ratio, h + 4 * this.ratio);
      above.drawImage(image, px, py, w, h);
    }
  }

  cells(size) {
    const found = new Map();
    const { scale, x: left, y: top } = this.view;
    const { width, height } = this.canvas;
    for (let row = 0; row < this.count; row++) {
      const [x, y] = [this.points[2 * row] * scale, -this.points[2 * row + 1] * scale];
      if (x + left < 0 || y + top < 0 || x + left > width || y + top > height) continue;
      if (this.dimmed && this.dimmed[this.codes[row]]) continue;
      const cell = `${Math.floor(x / size)},${Math.floor(y / size)}`;
      if (!found.has(cell)) found.set(cell, row);
    }
    return found;
  }

  at(row) {
    return [this.points[2 * row] * this.view.scale + this.view.x, this.view.y - this.points[2 * row + 1] * this.view.scale];
  }

  // The row nearest to a place of the canvas (CSS pixels), or -1 where none is within `reach` pixels.
  pick(x, y, reach = 14) {
    const [px, py] = [x * this.ratio, y * this.ratio];
    if (this.picture) {
      const size = CELL * this.ratio;
      const row = this.cells(size).get(`${Math.floor((px - this.view.x) / size)},${Math.floor((py - this.view.y) / size)}`);
      if (row !== undefined) return row;
    }
    const { scale, x: left, y: top } = this.view;
    let [best, nearest] = [(reach * this.ratio) ** 2, -1];
    for (let row = 0, at = 0; row < this.count; row++, at += 2) {
      const dx = this.points[at] * scale + left - px;
      const dy = top - this.points[at + 1] * scale - py;
      const distance = dx * dx + dy * dy;
      if (distance < best && !(this.dimmed && this.dimmed[this.codes[row]])) [best, nearest] = [distance, row];
    }
    return nearest;
  }

  // Rows inside of a line drawn around them (CSS pixels), or in the window where there is no line.
  inside(line) {
    const { scale, x: left, y: top } = this.view;
    const corners = line && line.map(([x, y]) => [x * this.ratio, y * this.ratio]);
    const xs = corners ? corners.map((one) => one[0]) : [0, this.canvas.width];
    const ys = corners ? corners.map((one) => one[1]) : [0, this.canvas.height];
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const found = [];
    for (let row = 0; row < this.count; row++) {
      const x = this.points[2 * row] * scale + left;
      const y = top - this.points[2 * row + 1] * scale;
      if (x < x0 || x > x1 || y < y0 || y > y1 || (this.dimmed && this.dimmed[this.codes[row]])) continue;
      if (!corners || isInside(corners, x, y)) found.push(row);
    }
    return found;
  }
}

// Even-odd rule: how often a ray to the right crosses the line.
function isInside(corners, x, y) {
  let is = false;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
    const [[xi, yi], [xj, yj]] = [corners[i], corners[j]];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) is = !is;
  }
  return is;
}
