// The map of an archive: similar images lie close together. Pan, zoom, draw a line around points, colour by any column.
import { count, html, plural, route, score, setQuery, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./core.js";
import { announce, get, getAll, post, useAction, useData, useJob } from "./api.js";
import { colouring, labelColouring, RAMP_CSS } from "./columns.js";
import { LabelGrid, LabelPanel } from "./labels.js";
import { Scatter } from "./scatter.js";
import { Bar, Choice, Empty, Loading, pictureOf, Problem, Script, Thumbnail, thumbnailPath } from "./ui.js";

const YOURS = "your labels";
const METHODS = { pca: "Overview", tsne: "Neighbours" };

export function MapTab({ archive, data, book, selection, onSelect }) {
  const { query } = route.value;
  const maps = useData(`${data.path}/map`);
  const ready = maps.data && maps.data.methods.filter((one) => one.state === "ready").map((one) => one.method);
  const method = ready && (ready.includes(query.get("by")) ? query.get("by") : ready.includes("tsne") ? "tsne" : "pca");
  const applications = useApplications(archive);
  const labelled = book.set.value && book.set.value.kind !== "regression";
  const choices = [["", "one colour"], ...(labelled ? [[YOURS, `${YOURS} (${book.set.value.name})`]] : []), ...data.columns.filter((one) => one.kind !== "id").map((one) => [one.name, one.name]), ...applications];
  const first = data.columns.find((one) => one.name === "label" && one.values && one.values.length) ? "label" : "";
  const asked = (query.get("colour") ?? first).replace(/^none$/, "");
  const colour = asked === YOURS && !labelled ? "" : asked;
  const [points, setPoints] = useState(null);
  const [column, setColumn] = useState(null);
  const [problem, setProblem] = useState(null);
  const [only, setOnly] = useState(null); // the one value of the legend that is shown
  const [tool, setTool] = useState("pan");
  const [showPictures, setShowPictures] = useState(false);
  const [hover, setHover] = useState(-1);
  const [focus, setFocus] = useState(0);

  useEffect(() => {
    if (!method) return undefined;
    let isGone = false;
    data.points(method).then((found) => isGone || setPoints(found), (error) => isGone || setProblem(error.problem));
    return () => (isGone = true);
  }, [data, method]);
  useEffect(() => {
    let isGone = false;
    setOnly(null);
    if (!colour || colour === YOURS) setColumn(null);
    else data.column(colour).then((found) => isGone || setColumn(found), (error) => isGone || setProblem(error.problem));
    return () => (isGone = true);
  }, [data, colour]);

  const labels = book.labels.value;
  const set = book.set.value;
  const colours = useMemo(() => (colour === YOURS && set ? labelColouring(data, set, labels) : colouring(column, data.count, set ? set.classes : [])), [data, column, colour, colour === YOURS && labels, set]);
  const rows = selection;
  const ids = useMemo(() => rows.slice(0, 2000).map((row) => data.id(row)), [rows, data]);
  useEffect(() => setFocus(0), [rows]);
  const shownRow = hover >= 0 ? hover : rows.length ? rows[focus] ?? -1 : -1;

  if (problem) return html`<${Problem} problem=${problem} />`;
  return html`<div class="work">
    <section class="stage" aria-label="Map">
      <div class="tools">
        ${ready && html`<div class="segments" role="group" aria-label="Arrangement">${Object.entries(METHODS).map(([id, text]) => html`<button aria-pressed=${method === id} disabled=${!ready.includes(id)} title=${id === "pca" ? "Principal components" : "t-SNE"} onClick=${() => setQuery("by", id)}>${text}</button>`)}</div>`}
        <div class="segments" role="group" aria-label="What dragging does"><button aria-pressed=${tool === "pan"} onClick=${() => setTool("pan")}>Move</button><button aria-pressed=${tool === "lasso"} onClick=${() => setTool("lasso")}>Lasso</button></div>
        ${archive.thumbnails && html`<button aria-pressed=${showPictures} onClick=${() => setShowPictures(!showPictures)}>Images</button>`}
        <${Choice} class="push" label="Colour" value=${colour} options=${choices} onChange=${(value) => setQuery("colour", value || "none")} />
      </div>
      ${points ? html`<${Canvas} data=${data} points=${points} colours=${colours} only=${only} selection=${rows} tool=${tool} showPictures=${showPictures && archive.thumbnails} focusRow=${rows.length ? rows[focus] ?? -1 : -1}
          onHover=${setHover} onSelect=${(found) => { onSelect(found); announce(found.length ? `${plural(found.length, "image")} chosen` : "Nothing chosen"); }} />` : html`<div class="canvas-place"><${Loading} what="the map" /></div>`}
      <${Legend} colours=${colours} column=${column} only=${only} onOnly=${setOnly} name=${colour} />
      <${Arrange} maps=${maps} path=${data.path} />
    </section>
    <aside class="sheet" aria-label="Chosen images">
      <${Item} archive=${archive} data=${data} row=${shownRow} colour=${column} onSimilar=${(found) => onSelect(found)} />
      ${rows.length
        ? html`<div class="row"><h2>${plural(rows.length, "image")} chosen</h2><button class="small push" onClick=${() => onSelect([])}>Clear</button></div>
            <${LabelPanel} book=${book} targets=${ids} />
            <${LabelGrid} book=${book} archive=${archive.name} ids=${ids.slice(0, 300)} focus=${focus} onFocus=${setFocus} isCurrent=${false} />
            ${rows.length > 300 && html`<p class="soft small">The first 300 are shown${rows.length > 2000 ? "; labels are given to the first 2,000" : "; labels are given to all"}.</p>`}`
        : html`<${Empty} title="Choose images"><p>Click a point, or take the lasso (<kbd>Shift</kbd> and drag) and draw a line around a group. Then keys <kbd>1</kbd> to <kbd>9</kbd> label them all.</p>
            <p class="soft small">Keyboard: <kbd>Tab</kbd> to the map, arrows move, <kbd>+</kbd> <kbd>−</kbd> zoom, <kbd>Enter</kbd> chooses all images in the window, <kbd>f</kbd> shows everything.</p><//>`}
      <${Script} calls=${[{ title: "The map", path: `${data.path}/map/points?method=${method || "pca"}`, out: "points.f32" }, { title: "A column", path: `${data.path}/columns/label`, out: "label.bin" }]} />
    </aside></div>`;
}

// Columns of the predictions that probes made for this archive, as choices of the colour.
function useApplications(archive) {
  const [found, setFound] = useState([]);
  const probes = useData("/v1/probes?limit=1000").data;
  useEffect(() => {
    let isGone = false;
    const read = async () => {
      const fitting = ((probes && probes.probes) || []).filter((one) => one.fingerprint === archive.fingerprint).slice(0, 20);
      const lists = await Promise.all(fitting.map((probe) => getAll(`/v1/probes/${encodeURIComponent(probe.id)}/applications`, "applications").then((list) => list.filter((one) => one.archive === archive.name).slice(0, 1).map((one) => ({ ...one, name: `${probe.name} ${probe.version}` })))));
      const choices = await Promise.all(lists.flat().map(async (one) => (await get(`/v1/applications/${one.id}/columns`)).columns.filter((column) => column.kind !== "id" && !["note"].includes(column.name) && (column.values || column.kind === "number")).map((column) => [`${one.id}/${column.name}`, `${one.name}: ${column.name}`])));
      if (!isGone) setFound(choices.flat());
    };
    read().catch(() => {}); // the map is complete without them
    return () => (isGone = true);
  }, [probes, archive.fingerprint, archive.name]);
  return found;
}

function Canvas({ data, points, colours, only, selection, tool, showPictures, focusRow, onHover, onSelect }) {
  const place = useRef(null);
  const scatter = useRef(null);
  const images = useRef(new Map());
  useLayoutEffect(() => {
    const [canvas, overlay] = place.current.querySelectorAll("canvas");
    const made = new Scatter(canvas, overlay);
    scatter.current = made;
    made.resize();
    const watch = new ResizeObserver(() => made.resize());
    watch.observe(place.current);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const again = () => made.redraw();
    dark.addEventListener("change", again);
    const themed = new MutationObserver(again);
    themed.observe(document.documentElement, { attributes: true });
    place.current.scatter = made; // for measurements
    return () => {
      watch.disconnect();
      themed.disconnect();
      dark.removeEventListener("change", again);
      cancelAnimationFrame(made.pending);
    };
  }, []);
  useLayoutEffect(() => scatter.current.setPoints(points), [points]);
  useLayoutEffect(() => {
    const made = scatter.current;
    made.codes = colours.codes;
    made.palette = colours.palette;
    made.dimmed = only == null ? null : Array.from(colours.palette, (_, code) => code !== only);
    made.redraw();
  }, [colours, only]);
  useLayoutEffect(() => {
    const made = scatter.current;
    made.selected = new Uint8Array(data.count);
    for (const row of selection) made.selected[row] = 1;
    made.selectedCount = selection.length;
    made.focus = focusRow;
    made.redraw();
  }, [selection, data, focusRow]);
  useLayoutEffect(() => {
    const made = scatter.current;
    made.picture = showPictures
      ? (row) => {
          const known = images.current.get(row);
          if (known !== undefined) return known;
          images.current.set(row, null);
          pictureOf(thumbnailPath(data.name, data.id(row))).then((url) => {
            const image = new Image();
            image.onload = () => {
              images.current.set(row, image);
              made.redraw();
            };
            image.src = url;
          }, () => {});
          return null;
        }
      : null;
    made.redraw();
  }, [showPictures, data]);

  const drag = useRef(null);
  const where = (event) => {
    const box = place.current.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const down = (event) => {
    if (event.button !== 0) return;
    place.current.setPointerCapture(event.pointerId);
    const [x, y] = where(event);
    drag.current = { x, y, moved: 0, isLasso: tool === "lasso" || event.shiftKey };
    if (drag.current.isLasso) scatter.current.lasso = [[x, y]];
  };
  const move = (event) => {
    const made = scatter.current;
    const [x, y] = where(event);
    const now = drag.current;
    if (!now) {
      const row = made.pick(x, y);
      if (row !== made.hover) {
        made.hover = row;
        onHover(row);
        cancelAnimationFrame(made.pendingAbove);
        made.pendingAbove = requestAnimationFrame(() => made.drawAbove());
      }
      return;
    }
    now.moved += Math.abs(x - now.x) + Math.abs(y - now.y);
    if (now.isLasso) {
      made.lasso.push([x, y]);
      made.drawAbove();
    } else if (now.moved > 3) made.pan(x - now.x, y - now.y);
    [now.x, now.y] = [x, y];
  };
  const up = (event) => {
    const made = scatter.current;
    const now = drag.current;
    drag.current = null;
    if (!now) return;
    const line = made.lasso;
    made.lasso = null;
    if (now.isLasso && line.length > 3) onSelect(made.inside(line));
    else if (now.moved <= 3) {
      const row = made.pick(...where(event));
      onSelect(row < 0 ? [] : event.ctrlKey || event.metaKey ? [...new Set([...selection, row])] : [row]);
    }
    made.redraw();
  };
  useEffect(() => {
    const wheel = (event) => {
      event.preventDefault();
      scatter.current.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...where(event));
    };
    const box = place.current;
    box.addEventListener("wheel", wheel, { passive: false });
    return () => box.removeEventListener("wheel", wheel);
  }, []);
  const press = (event) => {
    const made = scatter.current;
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (step) made.pan(...step);
    else if (event.key === "+" || event.key === "=") made.zoom(1.3);
    else if (event.key === "-") made.zoom(1 / 1.3);
    else if (event.key === "f") made.fit();
    else if (event.key === "Enter") onSelect(made.inside(null));
    else if (event.key === "Escape") onSelect([]);
    else return;
    event.preventDefault();
  };
  return html`<div class=${`canvas-place ${tool}`} ref=${place} tabindex="0" role="application" aria-label=${`Map of ${plural(data.count, "image")}. Arrows move, plus and minus zoom, Enter chooses all images in the window.`}
      onPointerDown=${down} onPointerMove=${move} onPointerUp=${up} onPointerCancel=${() => (drag.current = null)} onPointerLeave=${() => { scatter.current.hover = -1; onHover(-1); scatter.current.drawAbove(); }} onKeyDown=${press}>
    <canvas class="points" aria-hidden="true"></canvas><canvas class="above" aria-hidden="true"></canvas>
    <div class="zoom"><button aria-label="Zoom in" onClick=${() => scatter.current.zoom(1.5)} onPointerDown=${(event) => event.stopPropagation()}>+</button><button aria-label="Zoom out" onClick=${() => scatter.current.zoom(1 / 1.5)} onPointerDown=${(event) => event.stopPropagation()}>−</button><button aria-label="Show everything" title="Show everything" onClick=${() => scatter.current.fit()} onPointerDown=${(event) => event.stopPropagation()}>⤢</button></div></div>`;
}

function Legend({ colours, column, only, onOnly, name }) {
  if (colours.range) return html`<div class="map-legend"><span class="soft">${name.includes("/") ? name.slice(33) : name}</span><span>${score(colours.range[0])}</span><span class="ramp" style=${{ background: RAMP_CSS }}></span><span>${score(colours.range[1])}</span>${column && column.missing > 0 && html`<span class="soft">${count(column.missing)} without a value are grey</span>`}</div>`;
  if (!colours.legend.length) return null;
  return html`<div class="map-legend" role="group" aria-label="Legend; click to show one value only">${colours.legend.map((one) => html`<button class="plain small" aria-pressed=${only === one.code} onClick=${() => onOnly(only === one.code ? null : one.code)}>
    <span class="swatch" style=${{ background: one.colour }}></span>${one.name} <span class="soft">${count(one.count)}</span></button>`)}</div>`;
}

// The neighbour embedding: a job, once for each table.
function Arrange({ maps, path }) {
  const found = maps.data && maps.data.methods.find((one) => one.method === "tsne");
  const [jobId, setJobId] = useState(null);
  const { job } = useJob(jobId || (found && found.job && ["queued", "running"].includes(found.state) ? found.job : null));
  const start = useAction(async () => setJobId((await post(`${path}/map`)).id));
  if (!found || found.state === "ready") return null;
  const active = job && ["queued", "running"].includes(job.state);
  return html`<div class="arrange">${active
    ? html`<span>Arranging by neighbours: ${job.stage || "waiting"}</span><div style="flex:1"><${Bar} value=${job.state === "queued" ? null : job.progress} label="Arranging the map" /></div>`
    : html`<span class="soft">This is an overview by principal components. Groups separate better by neighbours (t-SNE, some minutes for a large archive).</span><button class="small" disabled=${start.isBusy} onClick=${start.run}>Arrange by neighbours</button>`}
    <${Problem} problem=${start.problem || (job && job.error) || (found.state === "failed" ? { detail: found.note || "The arrangement failed.", remedy: "The job's log under Jobs names the cause." } : null)} /></div>`;
}

// The image under the pointer, or the chosen one: its thumbnail, what is known of it, and its neighbours.
function Item({ archive, data, row, onSimilar }) {
  const [facts, setFacts] = useState([]);
  useEffect(() => {
    if (row < 0) return undefined;
    let isGone = false;
    const wanted = data.columns.filter((one) => one.kind !== "id").slice(0, 6);
    Promise.all(wanted.map((one) => data.column(one.name))).then((columns) => {
      if (isGone) return;
      setFacts(columns.map((one) => [one.name, one.kind === "number" ? (Number.isNaN(one.codes[row]) ? "–" : String(+one.codes[row].toPrecision(5))) : nameOf(one, one.codes[row])]));
    }, () => {});
    return () => (isGone = true);
  }, [data, row]);
  const similar = useAction(async () => {
    const answer = await post("/v1/search", { archive: archive.name, ids: [data.id(row)], k: 24 });
    onSimilar([row, ...answer.items[0].hits.map((hit) => data.row(hit.id)).filter((one) => one >= 0)]);
  });
  if (row < 0) return null;
  return html`<div class="item"><${Thumbnail} archive=${archive.name} id=${data.id(row)} alt="" />
    <div><dl>${facts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${name === "group" && value.length > 12 ? `${value.slice(0, 10)}…` : value}</dd></div>`)}<div><dt>id</dt><dd class="mono">${data.id(row).slice(0, 10)}…</dd></div></dl>
      <button class="small" disabled=${similar.isBusy} onClick=${similar.run}>Find similar</button><${Problem} problem=${similar.problem} /></div></div>`;
}

// Only the most frequent thousand values have names; `group` often has more.
function nameOf(column, code) {
  if (column.values[code] !== undefined) return column.values[code];
  return code === 2 ** (8 * column.codes.BYTES_PER_ELEMENT) - 1 ? "–" : `no. ${count(code + 1)} of ${count(column.distinct)}`;
}
