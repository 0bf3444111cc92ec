// Archives: the list, and how a new one is embedded from a listed folder or from files of this computer.
import { bytes, count, href, html, plural, share, useRef, useState } from "./core.js";
import { post, sendForm, useAction, useData, useJob } from "./api.js";
import { Bar, Card, Choice, Empty, Facts, Field, JobLine, Loading, Problem, Script, Show } from "./ui.js";
import { ArchiveCards, NoArchive } from "./start.js";
import { zip } from "./zip.js";

export function Archives() {
  const list = useData("/v1/archives", { every: 10_000 });
  const encoders = useData("/v1/encoders").data;
  return html`<div class="view"><div class="view-head"><div><h1 tabindex="-1">Archives</h1><p class="lead">An archive is a folder of images with one vector each. Open it to see its map, to label, and to check its quality.</p></div>
      <div class="actions"><a class="button primary" href=${href("embed")}>Embed an archive</a></div></div>
    <${Show} of=${list} what="the archives">${({ archives }) => (archives.length ? html`<${ArchiveCards} archives=${archives} />` : html`<${NoArchive} encoders=${encoders} />`)}<//>
    <${Script} calls=${[{ path: "/v1/archives", python: "for archive in service.archives():\n    print(archive.name, archive.count)" }]} />
  </div>`;
}

const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,119}$/;
const asName = (text) => text.replace(/[^A-Za-z0-9_.-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 120);

export function NewArchive() {
  const encoders = useData("/v1/encoders");
  const [source, setSource] = useState("upload");
  const [name, setName] = useState("");
  const [encoder, setEncoder] = useState("");
  const [folder, setFolder] = useState(null);
  const [files, setFiles] = useState([]);
  const [table, setTable] = useState(null);
  const [columns, setColumns] = useState({ catalog: "", group: "", label: "" });
  const [sending, setSending] = useState(null); // { what, value } while files are packed and sent
  const [jobId, setJobId] = useState(null);
  const usable = ((encoders.data && encoders.data.encoders) || []).filter((one) => one.available);
  const chosen = encoder || (usable[0] && usable[0].id) || "";
  const total = files.reduce((sum, file) => sum + file.size, 0);

  const start = useAction(async () => {
    if (source === "folder") {
      const body = { name, encoder: chosen, folder, ...(columns.catalog && { catalog: columns.catalog }), ...(columns.group && { group_column: columns.group }), ...(columns.label && { label_column: columns.label }) };
      setJobId((await post("/v1/archives", body)).id);
      return;
    }
    try {
      const form = new FormData();
      for (const [field, value] of [["name", name], ["archive", name], ["encoder", chosen], ["embed", "true"], ["group_column", columns.group], ["label_column", columns.label]]) if (value) form.append(field, value);
      const isFolder = files.some((file) => file.webkitRelativePath);
      if (isFolder || files.length > 500) {
        setSending({ what: "Packing", value: 0 });
        const packed = await zip(files.map((file) => [file.webkitRelativePath || file.name, file]), (value) => setSending({ what: "Packing", value }));
        form.append("files", packed, `${name}.zip`);
      } else for (const file of files) form.append("files", file, file.name);
      if (table) form.append("catalog", table, table.name);
      setSending({ what: "Sending", value: 0 });
      setJobId((await sendForm("/v1/uploads", form, (value) => setSending({ what: "Sending", value }))).id);
    } finally {
      setSending(null);
    }
  });

  if (jobId) return html`<${Progress} jobId=${jobId} name=${name} isUpload=${source === "upload"} onAgain=${() => setJobId(null)} />`;
  const hasFiles = source === "folder" ? folder != null : files.length > 0;
  const isReady = NAME.test(name) && chosen && hasFiles;
  return html`<div class="view"><div class="view-head"><div><p class="trail"><a href="#/archives">Archives</a></p><h1 tabindex="-1">Embed an archive</h1>
      <p class="lead">The encoder turns every image, volume or slide into a vector. The images stay where they are or, when you send them, on the service's machine.</p></div></div>
    <${Show} of=${encoders} what="the encoders">${() => !usable.length ? html`<${NoArchive} encoders=${{ encoders: [] }} />` : html`
    <${Card}><form class="form" onSubmit=${(event) => { event.preventDefault(); if (isReady) start.run(); }}>
      <div class="segments" role="group" aria-label="Where the images are">
        <button type="button" aria-pressed=${source === "upload"} onClick=${() => setSource("upload")}>From this computer</button>
        <button type="button" aria-pressed=${source === "folder"} onClick=${() => setSource("folder")}>From a listed folder</button></div>
      ${source === "folder"
        ? html`<${Folders} chosen=${folder} onChoose=${(path, text) => { setFolder(path); if (!name) setName(asName(text)); }} />`
        : html`<${Picker} files=${files} total=${total} onFiles=${(list) => { setFiles(list); if (!name && list[0]) setName(asName((list[0].webkitRelativePath || list[0].name).split(/[/.]/)[0])); }} />`}
      <${Field} label="Name of the archive" hint=${name && !NAME.test(name) ? "Letters, digits, and the characters _ . - only." : "It becomes part of addresses: letters, digits, _ . -"}><input required value=${name} onInput=${(event) => setName(event.target.value)} /><//>
      <${Choice} label="Encoder" value=${chosen} options=${usable.map((one) => [one.id, `${one.id} (${one.modality})`])} onChange=${setEncoder} />
      <details><summary>Labels and groups from a table</summary><div class="form" style="margin-top:.8rem">
        ${source === "folder"
          ? html`<${Field} label="Table in the folder" hint="A CSV with a column path; a participants.tsv is found by itself."><input value=${columns.catalog} placeholder="labels.csv" onInput=${(event) => setColumns({ ...columns, catalog: event.target.value })} /><//>`
          : html`<${Field} label="Table with the images" hint="A CSV with the columns path, and label or group."><input type="file" accept=".csv,.tsv" onChange=${(event) => setTable(event.target.files[0] || null)} /><//>`}
        <${Field} label="Column of the group" hint="Patient, slide case or sky field: what must stay on one side when a probe is tested."><input value=${columns.group} placeholder="group" onInput=${(event) => setColumns({ ...columns, group: event.target.value })} /><//>
        <${Field} label="Column of the label"><input value=${columns.label} placeholder="label" onInput=${(event) => setColumns({ ...columns, label: event.target.value })} /><//></div></details>
      <div class="row"><button class="primary" disabled=${!isReady || start.isBusy}>Embed</button>
        ${!hasFiles && html`<span class="soft small">${source === "folder" ? "Choose a folder first." : "Choose images first."}</span>`}</div>
      ${sending && html`<div role="status"><span class="soft">${sending.what} ${share(sending.value)}</span><${Bar} value=${sending.value} label=${sending.what} /></div>`}
      <${Problem} problem=${start.problem} />
    </form><//>
    <${Script} calls=${source === "folder"
      ? [{ method: "POST", path: "/v1/archives", json: { name: name || "NAME", encoder: chosen, folder: folder || "FOLDER" }, python: `job = service.embed_archive(${JSON.stringify(name || "NAME")}, folder=${JSON.stringify(folder || "FOLDER")}, encoder=${JSON.stringify(chosen)})\nservice.wait(job)` }]
      : [{ method: "POST", path: "/v1/uploads", form: [["name", name || "NAME"], ["encoder", chosen], ["embed", "true"], ["files", "@images.zip"]], python: `job = service.send_upload(["images"], name=${JSON.stringify(name || "NAME")}, encoder=${JSON.stringify(chosen)}, embed=True)\nservice.wait(job)` }]} />`}<//>
  </div>`;
}

function Picker({ files, total, onFiles }) {
  const [isOver, setIsOver] = useState(false);
  const folder = useRef(null);
  const one = useRef(null);
  const take = (list) => onFiles([...list].filter((file) => !file.name.startsWith(".")));
  const drop = async (event) => {
    event.preventDefault();
    setIsOver(false);
    take(await droppedFiles(event.dataTransfer));
  };
  return html`<div class=${isOver ? "drop over" : "drop"} onDragOver=${(event) => { event.preventDefault(); setIsOver(true); }} onDragLeave=${() => setIsOver(false)} onDrop=${drop}>
    <p class="state-title">${files.length ? `${plural(files.length, "file")}, ${bytes(total)}` : "Drop a folder or files here"}</p>
    <p class="soft small">${files.length ? files.slice(0, 3).map((file) => file.webkitRelativePath || file.name).join(", ") + (files.length > 3 ? ", …" : "") : "PNG, JPEG, TIFF, NIfTI, DICOM, FITS, slides, or a zip. A folder keeps its structure."}</p>
    <div class="row"><button type="button" onClick=${() => folder.current.click()}>Choose a folder</button><button type="button" onClick=${() => one.current.click()}>Choose files</button></div>
    <input ref=${folder} class="hidden" type="file" webkitdirectory aria-label="Folder of images" tabindex="-1" onChange=${(event) => take(event.target.files)} />
    <input ref=${one} class="hidden" type="file" multiple aria-label="Image files" tabindex="-1" onChange=${(event) => take(event.target.files)} /></div>`;
}

// Files of a drop, those inside of dropped folders included, with the path below the folder.
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  const found = [];
  const walk = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      if (entry.fullPath.split("/").length > 2) Object.defineProperty(file, "webkitRelativePath", { value: entry.fullPath.slice(1) });
      found.push(file);
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 at a time
      if (!some.length) break;
      for (const one of some) await walk(one);
    }
  };
  for (const entry of entries) await walk(entry);
  return found.length ? found : [...transfer.files];
}

function Folders({ chosen, onChoose }) {
  const [path, setPath] = useState("");
  const list = useData(`/v1/folders?path=${encodeURIComponent(path)}`);
  if (list.problem) return html`<div>${(list.problem.type || "").endsWith("no-archives")
    ? html`<${Empty} title="The operator has listed no folder"><p>Files of this computer can be sent instead. To list folders, the operator starts the service with <code>LEJEPA_ARCHIVES_DIR=/data</code>.</p><//>`
    : html`<${Problem} problem=${list.problem} onRetry=${list.reload} />`}</div>`;
  if (!list.data) return html`<${Loading} what="the folders" />`;
  const above = path.split("/").slice(0, -1).join("/");
  return html`<div class="folders"><div class="row"><span class="field-label">Folder</span><span class="mono">/${path}</span>
      ${path && html`<button type="button" class="small" onClick=${() => setPath(above)}>Up</button>`}
      ${path && html`<button type="button" class="small" aria-pressed=${chosen === path} onClick=${() => onChoose(path, path.split("/").pop())}>${chosen === path ? "Chosen" : "Choose this folder"}</button>`}</div>
    ${list.data.folders.length === 0 ? html`<p class="soft small">No folder inside.</p>` : html`<ul>${list.data.folders.map((one) => html`<li key=${one.path}>
      <button type="button" class="plain folder-name" onClick=${() => setPath(one.path)}>${one.name}</button>
      <span class="soft small">${[one.folders && plural(one.folders, "folder"), one.files && plural(one.files, "file")].filter(Boolean).join(", ") || "empty"}</span>
      <button type="button" class="small push" aria-pressed=${chosen === one.path} onClick=${() => onChoose(one.path, one.name)}>${chosen === one.path ? "Chosen" : "Choose"}<span class="hidden"> ${one.name}</span></button></li>`)}</ul>`}
    ${list.data.truncated && html`<p class="soft small">More folders are not shown.</p>`}</div>`;
}

function Progress({ jobId, name, isUpload, onAgain }) {
  const first = useJob(jobId);
  const imported = isUpload && first.job && first.job.state === "succeeded";
  const upload = useData(imported ? `/v1/uploads/${jobId}` : null).data;
  const second = useJob(upload && upload.embedding);
  const last = isUpload ? second.job : first.job;
  const isDone = last && last.state === "succeeded";
  const failed = [first.job, second.job].some((job) => job && ["failed", "cancelled", "dead"].includes(job.state));
  return html`<div class="view"><div class="view-head"><div><p class="trail"><a href="#/archives">Archives</a></p><h1 tabindex="-1">${isDone ? `${name} is ready` : `Embedding ${name}`}</h1>
      <p class="lead">${isDone ? "Every readable image has its vector." : "You may close this page; the work goes on. It is listed under Jobs."}</p></div>
      <div class="actions">${isDone && html`<a class="button primary" href=${href("archives", name, "map")}>Open the map</a>`}${failed && html`<button onClick=${onAgain}>Change and try again</button>`}</div></div>
    <${Card} title="Progress">${first.job ? html`<${JobLine} job=${first.job} />` : html`<${Loading} what="the job" />`}${second.job && html`<${JobLine} job=${second.job} />`}<${Problem} problem=${first.problem || second.problem} /><//>
    ${upload && html`<${UploadReport} upload=${upload} />`}
    ${isDone && html`<${ArchiveFailures} name=${name} />`}</div>`;
}

function UploadReport({ upload }) {
  return html`<${Card} title="What was found"><${Facts} rows=${[["Files", count(upload.files)], ["Images or volumes", count(upload.items)], ["Groups", count(upload.groups)], ["Rejected", count(upload.refused)], ["Copies", upload.duplicates ? count(upload.duplicates) : null], ["Not images", upload.skipped ? `${count(upload.skipped)} (tables, texts)` : null], ["Groups by folder", upload.by_folder]]} />
    ${upload.refused > 0 && html`<h3 style="margin-top:1rem">Rejected files</h3><div class="scroll"><table><thead><tr><th scope="col">File</th><th scope="col">Why</th><th scope="col">What to do</th></tr></thead>
      <tbody>${upload.refused_items.map((one) => html`<tr><td>${one.name || `file ${one.file_index + 1}`}</td><td>${one.reason}</td><td>${one.remedy}</td></tr>`)}</tbody></table></div>`}<//>`;
}

export function ArchiveFailures({ name }) {
  const detail = useData(`/v1/archives/${encodeURIComponent(name)}`).data;
  if (!detail || !detail.failed) return null;
  return html`<${Card} title=${`${plural(detail.failed, "file")} could not be used`}><div class="scroll"><table><thead><tr><th scope="col">Why</th><th scope="col" class="number">Files</th></tr></thead>
    <tbody>${detail.failures.map((one) => html`<tr><td>${one.reason}</td><td class="number">${count(one.count)}</td></tr>`)}</tbody></table></div><//>`;
}
