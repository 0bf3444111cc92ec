// The start: what to do first, and the archives that are there.
import { count, href, html, plural } from "./core.js";
import { isActive, jobs, useData } from "./api.js";
import { Card, Empty, JobLine, Show, Tag, Thumbnail } from "./ui.js";

const STEPS = [
  ["Embed an archive", "A folder that the operator has listed, or files from this computer, become points that can be compared.", href("embed"), "Embed"],
  ["Look at the map", "Similar images lie close together. Move, zoom, and draw a line around a group of points.", null, ""],
  ["Label a few, train", "Keys 1 to 9 set the class. Twenty labels are enough for a first probe with an honest interval.", null, ""],
  ["Ask about a file", "Drop one image, volume or slide: what the encoder sees, its neighbours, and each probe's answer.", href("file"), "Drop a file"],
];

export function Start() {
  const archives = useData("/v1/archives");
  const encoders = useData("/v1/encoders");
  const first = archives.data && archives.data.archives[0];
  const active = (jobs.value || []).filter(isActive);
  return html`<div class="view">
    <div class="view-head"><div><h1 tabindex="-1">Look, label, probe</h1>
      <p class="lead">Images of your archive, arranged by what the encoder learnt from them. A few labels become a trained probe. Nothing leaves this machine.</p></div></div>
    <div class="steps">${STEPS.map(([title, text, link, action], index) => {
      const to = link || (first ? href("archives", first.name, index === 1 ? "map" : "label") : null);
      return html`<section class="card step"><span class="step-number" aria-hidden="true">${index + 1}</span><h2>${title}</h2><p>${text}</p>
        ${to ? html`<p><a href=${to}>${action || `Open ${first.name}`}</a></p>` : html`<p>Needs an archive first.</p>`}</section>`;
    })}</div>
    ${active.length > 0 && html`<${Card} title="Running now">${active.map((job) => html`<${JobLine} key=${job.id} job=${job} />`)}<//>`}
    <h2>Archives</h2>
    <${Show} of=${archives} what="the archives">${({ archives: found }) => (found.length ? html`<${ArchiveCards} archives=${found} />` : html`<${NoArchive} encoders=${encoders.data} />`)}<//>
  </div>`;
}

export function NoArchive({ encoders }) {
  if (encoders && !encoders.encoders.length)
    return html`<${Empty} title="There is no encoder yet">
      <p>An encoder learns from your archive once, on the service's machine. The person who runs the service starts it there; it appears here by itself:</p>
      <p><code>lejepa-med pretrain /data/scans --modality mri --out runs/heads --minutes 60</code></p><//>`;
  return html`<${Empty} title="No archive is embedded yet"><p>Begin with a folder that the operator has listed, or with files from this computer.</p>
    <p><a class="button primary" href=${href("embed")}>Embed an archive</a></p><//>`;
}

export function ArchiveCards({ archives }) {
  return html`<div class="grid">${archives.map((one) => html`<a class="card archive-card" key=${one.name} href=${href("archives", one.name, "map")}>
    ${one.thumbnails && html`<${Strip} name=${one.name} />`}
    <div class="card-text"><div class="row"><h3>${one.name}</h3>${!one.encoder && html`<${Tag} kind="busy">its encoder is not here<//>`}</div>
      <span class="soft small">${plural(one.count, "image")} · ${one.encoder || "unknown encoder"} · ${count(one.dim)} numbers each</span></div></a>`)}</div>`;
}

function Strip({ name }) {
  const ids = useData(`/v1/archives/${encodeURIComponent(name)}/ids?limit=6`);
  return html`<div class="strip">${(ids.data ? ids.data.items : Array(6).fill(null)).map((item) => (item ? html`<${Thumbnail} archive=${name} id=${item.id} />` : html`<span class="thumbnail"></span>`))}</div>`;
}
