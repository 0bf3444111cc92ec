// One archive: its map, its labels, its quality, and what is known about it.
import { count, href, html, plural, useEffect, useMemo, useState } from "./core.js";
import { download, remove, useAction, useData } from "./api.js";
import { ArchiveFailures } from "./archives.js";
import { ArchiveData } from "./columns.js";
import { LabelTab } from "./labelling.js";
import { LabelBook } from "./labels.js";
import { MapTab } from "./map.js";
import { QualityTab } from "./quality.js";
import { Card, Cautions, Confirm, Empty, Facts, Loading, Problem, Script, Show } from "./ui.js";

const TABS = [["map", "Map"], ["label", "Label and train"], ["quality", "Quality"], ["about", "About"]];

export function Workspace({ name, tab }) {
  const archive = useData(`/v1/archives/${encodeURIComponent(name)}`);
  const book = useMemo(() => new LabelBook(name), [name]);
  const [data, setData] = useState(null);
  const [problem, setProblem] = useState(null);
  const [selection, setSelection] = useState([]);
  const content = archive.data && archive.data.content;
  useEffect(() => {
    if (!content) return;
    new ArchiveData(name).load().then(setData, (error) => setProblem(error.problem));
    book.load().catch((error) => setProblem(error.problem));
  }, [content, name]);
  // labels that are not saved yet must not be lost with the tab
  useEffect(() => {
    const ask = (event) => book.state.value !== "saved" && event.preventDefault();
    addEventListener("beforeunload", ask);
    return () => removeEventListener("beforeunload", ask);
  }, [book]);
  const parts = { archive: archive.data, data, book, selection, onSelect: setSelection };
  return html`<div class="view whole"><div class="view-head"><div><p class="trail"><a href="#/archives">Archives</a></p><h1 tabindex="-1">${name}</h1></div>
      <nav class="tabs" aria-label="Parts of the archive">${TABS.map(([id, text]) => html`<a href=${href("archives", name, id)} aria-current=${tab === id ? "page" : undefined}>${text}</a>`)}</nav></div>
    <${Problem} problem=${problem} />
    <${Show} of=${archive} what="the archive">${(found) =>
      tab === "about" ? html`<div class="inner"><${About} archive=${found} /></div>`
      : found.count === 0 ? html`<${Empty} title="This archive is empty"><p>No image of it could be embedded. About says why.</p><//>`
      : !data || book.sets.value == null ? !problem && html`<${Loading} what="the archive" />`
      : tab === "label" ? html`<${LabelTab} ...${parts} />` : tab === "quality" ? html`<div class="inner"><${QualityTab} ...${parts} /></div>` : html`<${MapTab} ...${parts} />`}<//></div>`;
}

function About({ archive }) {
  const path = `/v1/archives/${encodeURIComponent(archive.name)}`;
  const drop = useAction(async () => {
    await remove(path);
    location.hash = "#/archives";
  });
  const labels = Object.entries(archive.labels);
  return html`<div class="two"><${Card} title="What it holds"><${Facts} rows=${[["Images", count(archive.count)], ["Groups", count(archive.groups)], ["Vector", `${count(archive.dim)} numbers`],
      ["Encoder", archive.encoder ? html`<a href=${href("encoders", archive.encoder)}>${archive.encoder}</a>` : "not in the runs directory"], ["Groups by folder", archive.by_folder], ["Fingerprint", html`<span class="mono">${archive.fingerprint.slice(0, 16)}…</span>`]]} />
      <${Cautions} list=${[...archive.cautions, ...archive.notes, ...(archive.leak ? [`${plural(archive.leak.groups, "group")} and ${plural(archive.leak.copies, "copy", "copies")} lie in several splits of the catalogue: a score on such a split is too high.`] : [])]} /><//>
    <${Card} title="Labels of the catalogue">${labels.length ? html`<div class="scroll"><table><thead><tr><th scope="col">Label</th><th scope="col" class="number">Images</th></tr></thead><tbody>${labels.slice(0, 30).map(([label, number]) => html`<tr><td>${label}</td><td class="number">${count(number)}</td></tr>`)}</tbody></table></div>` : html`<p class="soft">None. Give some on the tab Label.</p>`}<//></div>
    <${ArchiveFailures} name=${archive.name} />
    <div class="row"><button onClick=${() => download(`${path}/table`, `${archive.name}.parquet`)}>Download the vectors (Parquet)</button>
      ${archive.created && html`<${Confirm} label="Remove the archive" question="Remove its vectors?" isBusy=${drop.isBusy} onYes=${drop.run} />`}</div>
    <${Problem} problem=${drop.problem} />
    <${Script} calls=${[{ path, python: `print(service.archive(${JSON.stringify(archive.name)}))` }, { title: "Download the vectors", path: `${path}/table`, out: "vectors.parquet", python: `service.download_archive(${JSON.stringify(archive.name)}, "vectors.parquet")` }]} />`;
}
