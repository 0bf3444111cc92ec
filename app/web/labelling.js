// Label and train: a queue of images, keys that label them, one click that trains, and what to label next.
import { count, href, html, plural, useEffect, useMemo, useState } from "./core.js";
import { announce, get, post, useAction, useData, useJob } from "./api.js";
import { LabelGrid, LabelPanel, shown } from "./labels.js";
import { Application, Headline, Quality, Warnings } from "./probes.js";
import { Choice, Empty, JobLine, Loading, Problem, Script, Thumbnail } from "./ui.js";

const PAGE = 40;

export function LabelTab({ archive, data, book, selection }) {
  const set = book.set.value;
  const probe = useProbeOf(set, archive);
  const [source, setSource] = useState(selection.length ? "chosen" : "next");
  const [items, setItems] = useState(null); // ids in the queue
  const [notes, setNotes] = useState(new Map()); // id -> what the probe says of it
  const [focus, setFocus] = useState(0);
  const [chosen, setChosen] = useState(new Set());
  const [round, setRound] = useState(0);
  const [problem, setProblem] = useState(null);
  const setId = set && set.id;

  useEffect(() => {
    if (!setId) return undefined;
    let isGone = false;
    setItems(null); // a key must not label an image of the queue before
    const read = async () => {
      if (source === "chosen") return { ids: selection.slice(0, 1000).map((row) => data.id(row)), notes: new Map() };
      if (source === "labelled") return { ids: [...book.labels.value.keys()], notes: new Map() };
      const by = probe.newest ? `&probe=${encodeURIComponent(probe.newest.id)}` : "";
      const found = await get(`/v1/label-sets/${setId}/next?limit=${PAGE}${by}`);
      return { ids: found.items.map((one) => one.id), notes: new Map(found.items.map((one) => [one.id, saysOf(one)])) };
    };
    if (probe.isKnown)
      read().then((found) => {
        if (isGone) return;
        setItems(found.ids);
        setNotes(found.notes);
        setFocus(0);
        setChosen(new Set());
        setProblem(null);
      }, (error) => isGone || setProblem(error.problem || { detail: String(error) }));
    return () => (isGone = true);
  }, [setId, source, round, probe.isKnown, probe.newest && probe.newest.id, source === "chosen" && selection]);

  const labels = book.labels.value;
  const targets = useMemo(() => (chosen.size ? [...chosen] : items && items[focus] ? [items[focus]] : []), [chosen, items, focus]);
  const advance = (label) => {
    if (chosen.size) return setChosen(new Set());
    if (set.kind === "multilabel" || label === null) return undefined; // several keys for one image
    const next = items.findIndex((id, index) => index > focus && !labels.has(id));
    if (next >= 0) setFocus(next);
    else announce("The queue is done. Train, or fetch the next images.");
    return undefined;
  };
  const choose = (index, isRange) => {
    if (isRange) {
      const [from, to] = [Math.min(focus, index), Math.max(focus, index)];
      setChosen(new Set([...chosen, ...items.slice(from, to + 1)]));
    } else setChosen(new Set());
    setFocus(index);
  };
  const flip = (id) => {
    const next = new Set(chosen);
    if (!next.delete(id)) next.add(id);
    setChosen(next);
  };
  const done = items ? items.filter((id) => labels.has(id)).length : 0;
  const sources = [["next", probe.newest ? "Most useful next" : "Spread over the archive"], ["chosen", `Chosen on the map (${count(selection.length)})`], ["labelled", `Labelled so far (${count(labels.size)})`]];
  const current = items && items[focus];
  return html`<div class="work">
    <section class="stage scrolls" aria-label="Images to label">
      ${!set
        ? html`<${Empty} title="What do you want to know of each image?"><p>Name the question and its classes on the right. Then the keys <kbd>1</kbd> to <kbd>9</kbd> answer it, image by image.</p><//>`
        : html`<div class="tools"><${Choice} label="Show" value=${source} options=${sources} onChange=${setSource} />
            <span class="soft small">${items && source !== "labelled" ? `${done} of ${items.length} labelled` : ""}</span>
            ${source === "next" && html`<button class="small" onClick=${() => setRound(round + 1)}>Next images</button>`}
            <span class="push soft small"><kbd>1</kbd> to <kbd>9</kbd>, arrows, <kbd>u</kbd></span></div>
          <${Problem} problem=${problem} onRetry=${() => setRound(round + 1)} />
          ${!items ? !problem && html`<${Loading} what="images to label" />`
            : items.length ? html`<${LabelGrid} book=${book} archive=${archive.name} ids=${items} focus=${focus} chosen=${chosen} onFocus=${choose} onChoose=${flip} captions=${(id) => notes.get(id)} />`
            : html`<${Empty} title=${source === "chosen" ? "Nothing is chosen on the map" : source === "labelled" ? "No label yet" : "Every image has a label"}><p>${source === "chosen" ? html`Draw a line around a group on the <a href=${href("archives", archive.name, "map")}>map</a>, then come back.` : "Choose another source above."}</p><//>`}`}
      ${probe.newest && html`<div class="results"><h2>What the labels taught: ${probe.newest.name}, version ${probe.newest.version}</h2><${Quality} probe=${probe.newest} /><${Application} probe=${probe.newest} archive=${archive.name} /></div>`}
    </section>
    <aside class="sheet" aria-label="Labels">
      ${set && current && html`<div class="preview"><${Thumbnail} archive=${archive.name} id=${current} alt=${`Image ${focus + 1}, ${shown(labels.get(current))}`} /><p class="soft small">${targets.length > 1 ? `${targets.length} images chosen` : html`Image ${focus + 1} of ${items.length}${notes.get(current) ? html` · the probe says ${notes.get(current)}` : ""}`}</p></div>`}
      <${LabelPanel} book=${book} targets=${targets} onDone=${advance}>${set && html`<${Train} set=${set} book=${book} archive=${archive} probe=${probe} />`}<//>
    </aside></div>`;
}

function saysOf(item) {
  if (item.label != null) return `${item.label}${item.probabilities ? ` ${Math.round(100 * item.probabilities[item.label])} %` : ""}`;
  if (item.labels) return item.labels.join(", ") || "none";
  if (item.value != null) return String(+item.value.toPrecision(3));
  return null;
}

// The newest probe that learnt from this set, found by the set's id in its metrics.
function useProbeOf(set, archive) {
  const list = useData(set ? "/v1/probes?limit=1000" : null).data;
  const [state, setState] = useState({ isKnown: false, newest: null });
  const setId = set && set.id;
  useEffect(() => {
    if (!list || !setId) return undefined;
    let isGone = false;
    const look = async () => {
      const newest = list.probes.filter((one, index) => !one.read_only && one.fingerprint === archive.fingerprint && list.probes.findIndex((other) => other.series === one.series) === index);
      for (const one of newest) {
        const detail = await get(`/v1/probes/${one.id}`);
        if (detail.metrics.label_set && detail.metrics.label_set.id === setId) return detail;
      }
      return null;
    };
    look().then((newest) => isGone || setState({ isKnown: true, newest }), () => isGone || setState({ isKnown: true, newest: null }));
    return () => (isGone = true);
  }, [list, setId, archive.fingerprint]);
  return state;
}

function Train({ set, book, archive, probe }) {
  const [jobId, setJobId] = useState(null);
  const { job } = useJob(jobId);
  const labels = book.labels.value;
  const kinds = new Set([...labels.values()].flat());
  const missing = set.kind === "classification" && kinds.size < 2 ? "Label images of two classes at least." : labels.size < 2 ? "Label two images at least." : "";
  const path = probe.newest ? `/v1/probes/${probe.newest.id}/labels` : "/v1/probes";
  const body = probe.newest ? { label_set: set.id } : { label_set: set.id, name: set.name };
  const train = useAction(async () => setJobId((await post(path, body)).id));
  const active = job && ["queued", "running"].includes(job.state);
  return html`<div class="train"><button class="primary" disabled=${Boolean(missing) || train.isBusy || active || book.state.value !== "saved"} onClick=${train.run}>${probe.newest ? `Train version ${probe.newest.version + 1}` : "Train"} on ${plural(labels.size, "label")}</button>
    ${missing && html`<p class="soft small">${missing}</p>`}
    <${Problem} problem=${train.problem} />
    ${job && job.state !== "succeeded" && html`<${JobLine} job=${job} />`}
    ${probe.newest && html`<div class="headline"><${Headline} probe=${probe.newest} /><${Warnings} list=${probe.newest.metrics.warnings} /></div>`}
    <${Script} calls=${[{ method: "POST", path, json: body }]} /></div>`;
}
