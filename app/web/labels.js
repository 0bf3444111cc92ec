// Sets of labels of one archive: kept on the server under a name, changed at once here, and saved in the order of the clicks.
import { batch, html, plural, signal, useEffect, useLayoutEffect, useRef, useState } from "./core.js";
import { announce, download, get, getAll, Refused, request, useAction } from "./api.js";
import { colourOf, Dialog, Field, Problem, Script, Thumbnail } from "./ui.js";

const shown = (label) => (label == null ? "no label" : Array.isArray(label) ? label.join(", ") || "none of them" : String(label));

export class LabelBook {
  constructor(archive) {
    this.archive = archive;
    this.sets = signal(null); // all sets of the archive
    this.set = signal(null); // the open one, as the server has it
    this.labels = signal(new Map()); // id -> label, as the page shows it
    this.state = signal("saved"); // saved, saving, conflict, failed
    this.problem = signal(null);
    this.conflict = signal(null); // the 412: { current, theirs, conflicts, yours }
    this.undone = []; // what each step changed, for undo: [[id, label before], ...]
    this.steps = signal(0);
    this.queue = []; // bodies of PATCH that wait
    this.isSending = false;
  }

  async load() {
    const known = await getAll(`/v1/label-sets?archive=${encodeURIComponent(this.archive)}`, "label_sets");
    const wanted = localStorage.getItem(`lejepa-med-set:${this.archive}`);
    if (known.length && !this.set.value) await this.open((known.find((one) => one.id === wanted) || known[0]).id);
    this.sets.value = known; // last: only then the panel is drawn, with the set that is open
  }

  async open(id) {
    const { labels, ...set } = await get(`/v1/label-sets/${id}`);
    localStorage.setItem(`lejepa-med-set:${this.archive}`, id);
    this.undone = [];
    batch(() => {
      this.set.value = set;
      this.labels.value = new Map(labels.map((one) => [one.id, one.label]));
      this.state.value = "saved";
      this.problem.value = null;
      this.conflict.value = null;
      this.steps.value = 0;
    });
  }

  async create(name, kind, classes) {
    const made = await (await request("POST", "/v1/label-sets", { json: { name, archive: this.archive, kind, classes } })).json();
    this.sets.value = [made, ...(this.sets.value || [])];
    await this.open(made.id);
  }

  // Give images a label (null removes it), or of several labels switch one on or off.
  assign(ids, label) {
    const set = this.set.value;
    if (!set || !ids.length) return;
    const labels = new Map(this.labels.value);
    const before = ids.map((id) => [id, labels.get(id) ?? null]);
    const isOn = set.kind === "multilabel" && typeof label === "string" && ids.every((id) => (labels.get(id) || []).includes(label));
    for (const id of ids) {
      let given = label;
      if (set.kind === "multilabel" && typeof label === "string") {
        const others = (labels.get(id) || []).filter((one) => one !== label);
        given = isOn ? others : [...others, label];
      }
      if (given == null) labels.delete(id);
      else labels.set(id, given);
    }
    this.undone.push(before);
    this.steps.value = this.undone.length;
    this.labels.value = labels;
    this.send({ labels: ids.map((id) => ({ id, label: labels.get(id) ?? null })) });
    if (ids.length > 1) announce(`${plural(ids.length, "image")}: ${shown(label)}`);
  }

  undo() {
    const before = this.undone.pop();
    if (!before) return;
    const labels = new Map(this.labels.value);
    for (const [id, label] of before) {
      if (label == null) labels.delete(id);
      else labels.set(id, label);
    }
    this.steps.value = this.undone.length;
    this.labels.value = labels;
    this.send({ labels: before.map(([id, label]) => ({ id, label })) });
    announce("Undone");
  }

  addClass(name) {
    const set = this.set.value;
    if (!name || set.classes.includes(name)) return;
    const classes = [...set.classes, name];
    this.set.value = { ...set, classes };
    this.send({ classes });
  }

  rename(old, name) {
    const set = this.set.value;
    if (!name || name === old || set.classes.includes(name)) return;
    this.set.value = { ...set, classes: set.classes.map((one) => (one === old ? name : one)) };
    const changed = (label) => (Array.isArray(label) ? label.map((one) => (one === old ? name : one)) : label === old ? name : label);
    this.labels.value = new Map([...this.labels.value].map(([id, label]) => [id, changed(label)]));
    this.undone = this.undone.map((step) => step.map(([id, label]) => [id, changed(label)]));
    this.send({ rename: { [old]: name } });
  }

  send(body) {
    this.queue.push(body);
    if (this.state.value !== "conflict") this.flush();
  }

  // One request at a time. "saved" is said only after the server's answer, which it gives after writing to the disk.
  async flush() {
    if (this.isSending) return;
    this.isSending = true;
    try {
      while (this.queue.length) {
        this.state.value = "saving";
        const body = this.queue[0];
        const set = this.set.value;
        const answer = await request("PATCH", `/v1/label-sets/${set.id}`, { json: body, headers: { "If-Match": `"${set.version}"` } });
        const { version, count } = await answer.json();
        this.queue.shift();
        this.set.value = { ...this.set.value, version, count };
      }
      batch(() => {
        this.state.value = "saved";
        this.problem.value = null;
      });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      const { problem } = error;
      if (problem.status === 412) {
        batch(() => {
          this.state.value = "conflict";
          this.conflict.value = problem;
        });
        return;
      }
      batch(() => {
        this.state.value = "failed";
        this.problem.value = problem;
      });
      if (problem.status === 0 || problem.status === 503 || problem.status === 429) setTimeout(() => this.flush(), 2000);
    } finally {
      this.isSending = false;
    }
  }

  // After a 412: take over what the others changed, and send again what is ours. `keepMine`: ids where ours shall win.
  settle(keepMine) {
    const { current, theirs, conflicts } = this.conflict.value;
    const lost = new Set((conflicts || []).map((one) => one.id).filter((id) => !keepMine.has(id)));
    const labels = new Map(this.labels.value);
    const ours = new Set(this.queue.flatMap((body) => (body.labels || []).map((one) => one.id)));
    for (const { id, label } of theirs) {
      if (ours.has(id) && !lost.has(id)) continue;
      if (label == null) labels.delete(id);
      else labels.set(id, label);
    }
    this.queue = this.queue.map((body) => (body.labels ? { ...body, labels: body.labels.filter((one) => !lost.has(one.id)) } : body)).filter((body) => !body.labels || body.labels.length);
    const classes = [...current.classes, ...this.set.value.classes.filter((one) => !current.classes.includes(one))];
    batch(() => {
      this.labels.value = labels;
      this.set.value = { ...current, classes };
      this.conflict.value = null;
      this.state.value = "saving";
    });
    this.flush();
  }
}

// --- the panel with classes, sets and training ------------------------------------------------------------------------

const KIND_WORDS = { classification: "one class an image", multilabel: "several labels an image", regression: "a number" };

// `targets`: ids that a key or click labels now. `onDone` moves on to the next image.
export function LabelPanel({ book, targets, onDone = () => {}, children }) {
  const set = book.set.value;
  const [isNew, setIsNew] = useState(false);
  const assign = (label) => {
    book.assign(targets, label);
    onDone(label);
  };
  // a layout effect, so that the next key of a fast typist already finds the next image
  useLayoutEffect(() => {
    const press = (event) => {
      if (event.target.matches("input, select, textarea") || document.querySelector("dialog[open]") || event.altKey) return;
      if ((event.ctrlKey || event.metaKey) && event.key === "z") {
        event.preventDefault();
        book.undo();
        return;
      }
      if (event.ctrlKey || event.metaKey || !set) return;
      const name = /^[1-9]$/.test(event.key) && set.kind !== "regression" && set.classes[Number(event.key) - 1];
      if (name && targets.length) assign(name);
      else if ((event.key === "0" || event.key === "Delete") && targets.length) assign(null);
      else if (event.key === "u") book.undo();
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  });
  if (book.sets.value == null) return null;
  if (!set || isNew) return html`<${NewSet} book=${book} onDone=${() => setIsNew(false)} canCancel=${Boolean(set)} />`;
  return html`<div class="stack label-panel">
    <div class="row"><label class="choice"><span>Labels</span><select value=${set.id} onChange=${(event) => (event.target.value ? book.open(event.target.value) : setIsNew(true))}>
        ${book.sets.value.map((one) => html`<option value=${one.id} selected=${one.id === set.id}>${one.id === set.id ? set.name : one.name}</option>`)}<option value="">New set …</option></select></label>
      <${SaveState} book=${book} /></div>
    ${set.kind === "regression" ? html`<${NumberInput} key=${targets.join()} book=${book} targets=${targets} onDone=${onDone} />` : html`<${Classes} book=${book} targets=${targets} onAssign=${assign} />`}
    <div class="row"><button class="small" disabled=${!book.steps.value} onClick=${() => book.undo()}>Undo <kbd>u</kbd></button>
      <button class="small" disabled=${!targets.length} onClick=${() => assign(null)}>No label <kbd>0</kbd></button>
      <span class="soft small push">${targets.length > 1 ? `${plural(targets.length, "image")} chosen` : ""}</span></div>
    ${children}
    <${Exchange} book=${book} />
    ${book.conflict.value && html`<${Conflict} book=${book} />`}</div>`;
}

function SaveState({ book }) {
  const words = { saved: "saved", saving: "saving …", conflict: "changed by someone else", failed: "not saved" };
  const state = book.state.value;
  return html`<span class=${`tag push ${{ saved: "good", saving: "busy", conflict: "bad", failed: "bad" }[state]}`} role="status">${words[state]}</span>
    ${book.problem.value && html`<${Problem} problem=${book.problem.value} onRetry=${() => book.flush()} />`}`;
}

function Classes({ book, targets, onAssign }) {
  const set = book.set.value;
  const [name, setName] = useState("");
  const [editing, setEditing] = useState(null);
  const counts = new Map();
  for (const label of book.labels.value.values()) for (const one of Array.isArray(label) ? label : [label]) counts.set(one, (counts.get(one) || 0) + 1);
  const current = targets.length === 1 ? book.labels.value.get(targets[0]) : null;
  const isOn = (one) => (Array.isArray(current) ? current.includes(one) : current === one);
  return html`<ul class="classes">${set.classes.map((one, index) => html`<li key=${one}>
      ${editing === one
        ? html`<${Rename} name=${one} onDone=${(name) => { book.rename(one, name); setEditing(null); }} />`
        : html`<button class="class" aria-pressed=${isOn(one)} disabled=${!targets.length} onClick=${() => onAssign(one)} style=${{ "--colour": colourOf(index) }}>
            ${index < 9 && html`<kbd>${index + 1}</kbd>`}<span class="swatch" style=${{ background: colourOf(index) }}></span><span class="class-name">${one}</span><span class="soft">${counts.get(one) || 0}</span></button>
          <button class="plain small" aria-label=${`Rename ${one}`} title="Rename" onClick=${() => setEditing(one)}>✎</button>`}</li>`)}
    <li><form class="row" onSubmit=${(event) => { event.preventDefault(); book.addClass(name.trim()); setName(""); }}>
      <input aria-label="Name of a new class" placeholder="New class" maxlength="200" value=${name} onInput=${(event) => setName(event.target.value)} /><button class="small" disabled=${!name.trim()}>Add</button></form></li></ul>`;
}

function Rename({ name, onDone }) {
  const [value, setValue] = useState(name);
  const input = useRef(null);
  useEffect(() => input.current.select(), []);
  return html`<form class="row" onSubmit=${(event) => { event.preventDefault(); onDone(value.trim()); }}>
    <input ref=${input} aria-label=${`New name of ${name}`} maxlength="200" value=${value} onInput=${(event) => setValue(event.target.value)} onKeyDown=${(event) => event.key === "Escape" && onDone(name)} /><button class="small">Rename</button></form>`;
}

function NumberInput({ book, targets, onDone }) {
  const [value, setValue] = useState(targets.length === 1 ? book.labels.value.get(targets[0]) ?? "" : "");
  return html`<form class="row" onSubmit=${(event) => { event.preventDefault(); if (value !== "" && Number.isFinite(Number(value))) { book.assign(targets, Number(value)); onDone(); } }}>
    <input type="number" step="any" aria-label="Number for the chosen images" value=${value} disabled=${!targets.length} onInput=${(event) => setValue(event.target.value)} style="width:9rem" /><button disabled=${!targets.length || value === ""}>Set</button>
    <span class="soft small">${plural(book.labels.value.size, "number")}</span></form>`;
}

function NewSet({ book, onDone, canCancel }) {
  const [name, setName] = useState("");
  const [kind, setKind] = useState("classification");
  const [classes, setClasses] = useState("");
  const make = useAction(async () => {
    await book.create(name.trim(), kind, kind === "regression" ? [] : [...new Set(classes.split(/[,\n]/).map((one) => one.trim()).filter(Boolean))]);
    onDone();
  });
  return html`<form class="stack" onSubmit=${(event) => { event.preventDefault(); make.run(); }}>
    <div><h2>New set of labels</h2><p class="soft small">It is kept on the service's machine. Others who open this archive see it, too.</p></div>
    <${Field} label="Question"><input required maxlength="120" placeholder="morphology" value=${name} onInput=${(event) => setName(event.target.value)} /><//>
    <${Field} label="Answer"><select value=${kind} onChange=${(event) => setKind(event.target.value)}>${Object.entries(KIND_WORDS).map(([value, text]) => html`<option value=${value}>${text}</option>`)}</select><//>
    ${kind !== "regression" && html`<${Field} label="Classes" hint="Separated by commas; keys 1 to 9 set them. You can add and rename them later."><input placeholder="spiral, elliptical" value=${classes} onInput=${(event) => setClasses(event.target.value)} /><//>`}
    <div class="row"><button class="primary" disabled=${make.isBusy}>Start labelling</button>${canCancel && html`<button type="button" onClick=${onDone}>Cancel</button>`}</div>
    <${Problem} problem=${make.problem} /></form>`;
}

// Labels as a CSV file, out and in.
function Exchange({ book }) {
  const set = book.set.value;
  const file = useRef(null);
  const [told, setTold] = useState("");
  const load = useAction(async (given) => {
    const answer = await request("POST", `/v1/label-sets/${set.id}/csv`, { json: { csv: await given.text(), replace: false }, headers: { "If-Match": `"${set.version}"` } });
    const found = await answer.json();
    await book.open(set.id);
    setTold(`${plural(found.imported, "label")} read${found.unknown ? `, ${found.unknown} of images that this archive does not have` : ""}${found.missing ? `, ${found.missing} without a value` : ""}.`);
  });
  return html`<details class="exchange"><summary>CSV and scripts</summary><div class="row" style="margin-top:.5rem">
      <button class="small" onClick=${() => download(`/v1/label-sets/${set.id}/csv`, `${set.name}.csv`)}>Save as CSV</button>
      <button class="small" disabled=${load.isBusy} onClick=${() => file.current.click()}>Read a CSV</button>
      <input ref=${file} type="file" accept=".csv" class="hidden" tabindex="-1" aria-label="CSV with labels" onChange=${(event) => event.target.files[0] && load.run(event.target.files[0])} /></div>
    <p class="soft small">${told || "Columns id and label. “lejepa-med probe” reads the same file."}</p><${Problem} problem=${load.problem} />
    <${Script} calls=${[{ title: "Change labels", method: "PATCH", path: `/v1/label-sets/${set.id}`, headers: { "If-Match": `"${set.version}"` }, json: { labels: [{ id: "ID", label: set.classes[0] || 1 }] } }, { title: "Save as CSV", path: `/v1/label-sets/${set.id}/csv`, out: "labels.csv" }]} /></details>`;
}

function Conflict({ book }) {
  const { conflicts = [], theirs = [], current } = book.conflict.value;
  const [mine, setMine] = useState(new Set());
  const flip = (id, isMine) => {
    const next = new Set(mine);
    if (isMine) next.add(id);
    else next.delete(id);
    setMine(next);
  };
  return html`<${Dialog} title="Someone else changed these labels" onClose=${() => {}}>
    <p>While you labelled, ${plural(theirs.length, "label")} of “${current.name}” ${theirs.length === 1 ? "was" : "were"} changed elsewhere. ${conflicts.length ? "Choose what shall stay. Everything else is put together." : "No image got two different labels, so both can be put together."}</p>
    ${conflicts.length > 0 && html`<div class="scroll"><table><thead><tr><th scope="col">Image</th><th scope="col">Yours</th><th scope="col">Theirs</th></tr></thead><tbody>
      ${conflicts.map((one) => html`<tr key=${one.id}><td style="width:90px"><${Thumbnail} archive=${book.archive} id=${one.id} /></td>
        <td><label><input type="radio" name=${one.id} checked=${mine.has(one.id)} onChange=${() => flip(one.id, true)} /> ${shown(one.yours)}</label></td>
        <td><label><input type="radio" name=${one.id} checked=${!mine.has(one.id)} onChange=${() => flip(one.id, false)} /> ${shown(one.theirs)}</label></td></tr>`)}</tbody></table></div>`}
    <p><button class="primary" onClick=${() => book.settle(mine)}>Put together and save</button></p><//>`;
}

// --- a grid of images that keys label ---------------------------------------------------------------------------------

// Arrow keys move, Shift chooses several, Enter opens. `focus` is a place in `ids`.
export function LabelGrid({ book, archive, ids, focus, chosen, onFocus, onChoose, captions, isCurrent = true }) {
  const grid = useRef(null);
  const set = book && book.set.value;
  const labels = book ? book.labels.value : new Map();
  const colour = (id) => {
    const label = labels.get(id);
    if (label == null || !set) return null;
    if (set.kind === "regression") return "var(--accent)";
    const first = Array.isArray(label) ? label[0] : label;
    return first == null ? "var(--soft)" : colourOf(set.classes.indexOf(first));
  };
  const press = (event) => {
    const wide = Math.max(1, Math.floor(grid.current.clientWidth / (grid.current.firstChild ? grid.current.firstChild.offsetWidth + 8 : 100)));
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: wide, ArrowUp: -wide }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = Math.min(ids.length - 1, Math.max(0, focus + step));
    onFocus(next, event.shiftKey);
  };
  useEffect(() => {
    const one = isCurrent && grid.current && grid.current.children[focus];
    if (one) {
      one.scrollIntoView({ block: "nearest" });
      const active = document.activeElement;
      if (active === document.body || grid.current.contains(active)) one.focus({ preventScroll: true });
    }
  }, [focus, ids]);
  return html`<div class="pictures label-grid" ref=${grid} role="listbox" aria-label="Images" aria-multiselectable="true" onKeyDown=${press}>
    ${ids.map((id, index) => html`<div key=${id} role="option" class=${`pick ${index === focus ? "focus" : ""} ${chosen && chosen.has(id) ? "chosen" : ""}`} tabindex=${index === focus ? 0 : -1}
      aria-selected=${index === focus || Boolean(chosen && chosen.has(id))} aria-label=${`Image ${index + 1} of ${ids.length}, ${shown(labels.get(id))}`}
      style=${colour(id) ? { "--colour": colour(id) } : {}} data-labelled=${colour(id) ? "" : undefined} onClick=${(event) => (event.ctrlKey || event.metaKey ? onChoose && onChoose(id) : onFocus(index, event.shiftKey))}>
      <${Thumbnail} archive=${archive} id=${id} />${labels.has(id) && html`<span class="chip">${shown(labels.get(id))}</span>`}${captions && captions(id) && html`<span class="caption">${captions(id)}</span>`}</div>`)}
  </div>`;
}

export { shown };
