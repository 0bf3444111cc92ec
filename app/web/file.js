// Drop a file: what the encoder sees of it, its nearest neighbours, and the answer of each probe.
import { html, plural, score, share, useEffect, useRef, useState } from "./core.js";
import { sendForm, useAction, useData } from "./api.js";
import { droppedFiles } from "./archives.js";
import { NoArchive } from "./start.js";
import { Bar, Card, Cautions, Choice, colourOf, Empty, Facts, Problem, Script, Show, Tag, Thumbnail } from "./ui.js";
import { zip } from "./zip.js";

export function DropFile() {
  const encoders = useData("/v1/encoders");
  const archives = useData("/v1/archives").data;
  const [encoder, setEncoder] = useState("");
  const [archive, setArchive] = useState("");
  const [files, setFiles] = useState([]);
  const [item, setItem] = useState(0);
  const [sent, setSent] = useState(null);
  const [answer, setAnswer] = useState(null);
  const [mpp, setMpp] = useState("");
  const usable = ((encoders.data && encoders.data.encoders) || []).filter((one) => one.available);
  const tables = ((archives && archives.archives) || []).filter((one) => one.encoder);
  // the encoder of an archive that is there is the likelier wish than the first of the list
  const chosen = encoder || (tables[0] && tables[0].encoder) || (usable[0] && usable[0].id) || "";
  const fitting = tables.filter((one) => one.encoder === chosen);
  const place = fitting.some((one) => one.name === archive) ? archive : fitting[0] ? fitting[0].name : "";
  const newest = useRef(0);
  const ask = useAction(async (given, number) => {
    const round = (newest.current += 1);
    setAnswer(null);
    setSent(0);
    try {
      // several files are one series, and travel as one zip
      const whole = given.length === 1 ? given[0] : await zip(given.map((file) => [file.webkitRelativePath || file.name, file]));
      const form = (overlay) => {
        const made = new FormData();
        made.append("files", whole, given.length === 1 ? given[0].name : "series.zip");
        for (const [name, value] of [["encoder", chosen], ["archive", place], ["item", number], ["k", 12], ["mpp", mpp], ["overlay", overlay]]) if (value !== "") made.append(name, value);
        return made;
      };
      setAnswer(await sendForm("/v1/inspect", form(false), setSent)); // quick; the overlays of a volume take some seconds more
      setSent(null);
      const complete = await sendForm("/v1/inspect", form(true));
      if (round === newest.current) setAnswer({ ...complete, isComplete: true });
    } finally {
      setSent(null);
    }
  });
  const take = (list) => {
    const given = [...list].filter((file) => !file.name.startsWith("."));
    if (!given.length) return;
    setFiles(given);
    setItem(0);
    ask.run(given, 0);
  };
  useEffect(() => {
    if (files.length) ask.run(files, item);
  }, [chosen, place, item]);
  const modality = (usable.find((one) => one.id === chosen) || {}).modality;
  return html`<div class="view"><div class="view-head"><div><h1 tabindex="-1">Drop a file</h1><p class="lead">One image, volume, series or slide. It is read, shown and forgotten; the service keeps nothing of it.</p></div>
      <div class="actions"><${Choice} label="Encoder" value=${chosen} options=${usable.map((one) => [one.id, one.id])} onChange=${setEncoder} />
        ${fitting.length > 0 && html`<${Choice} label="Neighbours in" value=${place} options=${fitting.map((one) => [one.name, one.name])} onChange=${setArchive} />`}
        ${modality === "histology" && html`<label class="choice">µm per pixel <input type="number" step="any" min="0" style="width:6rem" value=${mpp} placeholder="from file" onInput=${(event) => setMpp(event.target.value)} /></label>`}</div></div>
    <${Show} of=${encoders} what="the encoders">${() => (usable.length ? html`<${Zone} files=${files} isSmall=${Boolean(answer)} onFiles=${take} />` : html`<${NoArchive} encoders=${{ encoders: [] }} />`)}<//>
    ${ask.isBusy && !answer && html`<div role="status"><span class="soft">${sent != null && sent < 1 ? `Sending ${share(sent)}` : "Reading and embedding …"}</span><${Bar} value=${sent != null && sent < 1 ? sent : null} label="Reading the file" /></div>`}
    <${Problem} problem=${ask.problem} />
    ${answer && html`<${Answer} answer=${answer} onItem=${setItem} />`}
    <${Script} calls=${[{ title: "All of this", method: "POST", path: "/v1/inspect", form: [["encoder", chosen], ...(place ? [["archive", place]] : []), ["files", "@image.png"]] },
      { title: "Neighbours alone", method: "POST", path: "/v1/search", form: [["archive", place || "ARCHIVE"], ["files", "@image.png"]], python: `for hit in service.search_files(${JSON.stringify(place || "ARCHIVE")}, "image.png")[0].hits:\n    print(hit.id, hit.score, hit.columns)` }]} /></div>`;
}

function Zone({ files, isSmall, onFiles }) {
  const [isOver, setIsOver] = useState(false);
  const input = useRef(null);
  return html`<div class=${`drop ${isOver ? "over" : ""} ${isSmall ? "" : "tall"}`} onDragOver=${(event) => { event.preventDefault(); setIsOver(true); }} onDragLeave=${() => setIsOver(false)}
      onDrop=${async (event) => { event.preventDefault(); setIsOver(false); onFiles(await droppedFiles(event.dataTransfer)); }}>
    <div class="row"><div><p class="state-title">${files.length ? (files.length === 1 ? files[0].name : `${plural(files.length, "file")} as one series`) : "Drop it here"}</p>
      ${!files.length && html`<p class="soft small">PNG, JPEG, TIFF, NIfTI, DICOM, FITS, a slide, or all files of a series.</p>`}</div>
      <button class="push" onClick=${() => input.current.click()}>${files.length ? "Choose another" : "Choose a file"}</button></div>
    <input ref=${input} type="file" multiple class="hidden" tabindex="-1" aria-label="File to look at" onChange=${(event) => onFiles(event.target.files)} /></div>`;
}

function Answer({ answer, onItem }) {
  return html`${answer.items > 1 && html`<div class="row"><${Choice} label=${`${answer.items} items in this file; shown`} value=${String(answer.item)} options=${Array.from({ length: Math.min(500, answer.items) }, (_, index) => [String(index), String(index + 1)])} onChange=${(value) => onItem(Number(value))} /></div>`}
    <div class="inspect"><${Viewer} answer=${answer} />
      <div class="stack">
        <${Card} title="Answers"><${Answers} answer=${answer} /><//>
        <${Card} title="Nearest neighbours" aside=${answer.archive && html`<span class="soft small">${answer.archive}</span>`}>${answer.neighbours && answer.neighbours.length
          ? html`<div class="pictures">${answer.neighbours.map((hit) => html`<figure key=${hit.id}><${Thumbnail} archive=${answer.archive} id=${hit.id} alt=${hit.columns.label || ""} /><figcaption>${hit.columns.label || "no label"}<br /><span class="soft">${score(hit.distance)}</span></figcaption></figure>`)}</div><p class="soft small">The number is the distance: 0 is the same, 2 the opposite.</p>`
          : html`<p class="soft">No archive of this encoder is embedded, so there is nothing to compare with.</p>`}<//>
        <${Cautions} list=${answer.cautions} /></div></div>`;
}

function Viewer({ answer }) {
  const [part, setPart] = useState(Math.floor(answer.parts.length / 2));
  const [layer, setLayer] = useState("features");
  const [opacity, setOpacity] = useState(0.5);
  const shown = answer.parts[Math.min(part, answer.parts.length - 1)];
  const over = layer === "none" ? null : shown[layer];
  const note = layer === "none" ? null : answer[`${layer}_note`];
  const unit = answer.unit || "part";
  return html`<${Card} title="What the encoder sees" aside=${html`<span class="soft small">${answer.width} × ${answer.height} px${answer.count > 1 ? `, ${plural(answer.count, unit)}` : ""}</span>`}>
    <div class="viewer"><img src=${shown.image} alt=${`Prepared ${unit} ${shown.index + 1} of ${answer.count}`} />${over && html`<img class="over" src=${over} alt="" style=${{ opacity }} />`}</div>
    ${answer.parts.length > 1 && html`<label class="slider"><span>${unit} ${shown.index + 1} of ${answer.count}</span><input type="range" min="0" max=${answer.parts.length - 1} value=${part} onInput=${(event) => setPart(Number(event.target.value))} /></label>`}
    <div class="row" style="margin-top:.8rem"><div class="segments" role="group" aria-label="Overlay">${[["none", "Image"], ["features", "Patch features"], ["attention", "Attention"]].map(([id, text]) => html`<button aria-pressed=${layer === id} onClick=${() => setLayer(id)}>${text}</button>`)}</div>
      ${over && html`<label class="slider" style="flex:1"><span>opacity</span><input type="range" min="0" max="1" step="0.05" value=${opacity} onInput=${(event) => setOpacity(Number(event.target.value))} /></label>`}</div>
    ${!answer.isComplete && layer !== "none" && html`<p class="soft small" role="status" style="margin-top:.6rem">The overlays are being computed …</p>`}
    ${answer.isComplete && note && html`<p class="soft small" style="margin-top:.6rem">${note}</p>`}
    ${over && layer === "features" && html`<p class="soft small" style="margin-top:.6rem">Patches of similar colour look similar to the encoder (first three principal components).</p>`}
    ${answer.shown && html`<p class="soft small">${answer.shown}</p>`}<//>`;
}

function Answers({ answer }) {
  if (!answer.predictions.length) return html`<${Empty} title="No probe of this encoder yet"><p>Label some images of one of its archives, and train.</p><//>`;
  return html`${answer.novel && html`<div class="caution"><p><strong>Unlike everything that was labelled.</strong> Do not trust the answers below for this image.</p></div>`}
    ${answer.predictions.map((one) => html`<div class="answer" key=${one.probe}><div class="row"><h3><a href="#/probes/${one.probe}">${one.probe_name}</a></h3>
        ${one.novelty != null && html`<span class="push"><${Tag} kind=${one.note ? "busy" : ""}>novelty ${score(one.novelty)}<//></span>`}</div>
      ${one.error ? html`<${Problem} problem=${one.error} />`
        : one.probabilities ? html`<ul class="chances">${Object.entries(one.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 8).map(([label, chance]) => html`<li><span class=${label === one.label || (one.labels || []).includes(label) ? "named" : ""}>${label}</span><span class="bar"><span style=${{ width: `${100 * chance}%`, background: colourOf(Object.keys(one.probabilities).sort().indexOf(label)) }}></span></span><span class="number">${share(chance)}</span></li>`)}</ul>`
        : html`<${Facts} rows=${[["Value", one.value == null ? null : String(+one.value.toPrecision(4))], ["90 % of true values", one.interval ? `${+one.interval[0].toPrecision(4)} to ${+one.interval[1].toPrecision(4)}` : null]]} />`}
      ${one.note && html`<p class="soft small">${one.note}</p>`}</div>`)}`;
}
