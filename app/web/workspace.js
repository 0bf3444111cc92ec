// One archive: its map, its labels, its quality, and what is known about it.
import { count, href, html, plural } from "./core.js";
import { download, remove, useAction, useData } from "./api.js";
import { ArchiveFailures } from "./archives.js";
import { Card, Cautions, Confirm, Facts, Problem, Script, Show } from "./ui.js";

const TABS = [["about", "About"]];

export function Workspace({ name, tab }) {
  const archive = useData(`/v1/archives/${encodeURIComponent(name)}`);
  return html`<div class="view"><div class="view-head"><div><p class="trail"><a href="#/archives">Archives</a></p><h1 tabindex="-1">${name}</h1></div></div>
    <nav class="tabs" aria-label="Archive">${TABS.map(([id, text]) => html`<a href=${href("archives", name, id)} aria-current=${tab === id ? "page" : undefined}>${text}</a>`)}</nav>
    <${Show} of=${archive} what="the archive">${(found) => html`<${About} archive=${found} />`}<//></div>`;
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
