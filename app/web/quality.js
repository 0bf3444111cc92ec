// Quality of an archive: images unlike all others, copies, labels that are probably wrong, and what vectors betray.
import { count, html, plural, score, useState, when } from "./core.js";
import { announce, download, post, useAction, useData, useJob } from "./api.js";
import { Card, Cautions, Choice, Empty, JobLine, Problem, Script, Show, Tag, Thumbnail } from "./ui.js";

const FINDINGS = {
  odd: ["Unlike all others", "Often a scan error, a test image, or another body part."],
  copy: ["Near-duplicates", "Two images that are almost the same. In two groups, they make scores too high."],
  label: ["Probably wrong labels", "The image lies among images of another label."],
  layout: ["Another layout", "Screenshots, montages, or exports of another kind."],
  marked: ["Marks and artefacts", "Pen marks, burnt-in text, or damage of the recording."],
  empty: ["Nearly empty", "Hardly any signal in what the encoder sees."],
  header: ["Unusual headers", "The header of the file differs from those of the others."],
};
const STATES = { confounded: ["bad", "confounded with the label"], tied: ["busy", "tied to the label"], encoded: ["busy", "visible in the vectors"], clear: ["good", "not visible"], unknown: ["", "cannot be told"] };

export function QualityTab({ archive, data, onSelect }) {
  const path = `/v1/archives/${encodeURIComponent(archive.name)}`;
  const list = useData(`${path}/qualities`);
  const probes = useData("/v1/probes?limit=1000").data;
  const fitting = ((probes && probes.probes) || []).filter((one) => one.fingerprint === archive.fingerprint && one.kind === "classification").slice(0, 30);
  const [probe, setProbe] = useState("");
  const [jobId, setJobId] = useState(null);
  const { job } = useJob(jobId);
  const [open, setOpen] = useState(null);
  const active = job && ["queued", "running"].includes(job.state);
  const start = useAction(async (kind) => setJobId((await post(`${path}/${kind}`, probe ? { probe } : {})).id));
  const found = (list.data && list.data.qualities) || [];
  const shown = open || (found[0] && found[0].id);
  if (list.problem && list.problem.status === 404)
    return html`<${Empty} title="This service cannot look for problems itself"><p>The operator can, on its machine: <code>lejepa-med check runs/${archive.name}</code></p><//>`;
  return html`
    <${Card} title="Look for problems in this archive">
      <div class="row"><button class="primary" disabled=${start.isBusy || active} onClick=${() => start.run("outliers")}>Find odd images, copies, wrong labels</button>
        <button disabled=${start.isBusy || active} onClick=${() => start.run("checks")}>Check for confounders</button>
        ${fitting.length > 0 && html`<${Choice} label="Labels of" value=${probe} options=${[["", "the catalogue"], ...fitting.map((one) => [one.id, `${one.name}, version ${one.version}`])]} onChange=${setProbe} />`}</div>
      <p class="soft small" style="margin-top:.7rem">A confounder is a fact, such as the scanner or the site, that the vectors show and that goes along with the label: a probe may learn it in place of the disease.</p>
      <${Problem} problem=${start.problem} />${job && job.state !== "succeeded" && html`<${JobLine} job=${job} />`}
      <${Script} calls=${[{ method: "POST", path: `${path}/outliers`, json: probe ? { probe } : {} }, { method: "POST", path: `${path}/checks`, json: probe ? { probe } : {} }]} /><//>
    <${Show} of=${list} what="earlier findings">${() => (found.length
      ? html`${found.length > 1 && html`<${Choice} label="Show" value=${shown} options=${found.map((one) => [one.id, `${one.kind === "check" ? "Confounders" : "Odd images, copies, labels"}, ${when(one.created)}`])} onChange=${setOpen} />`}
          <${Report} key=${shown} id=${shown} archive=${archive} data=${data} onSelect=${onSelect} />`
      : !active && html`<${Empty} title="Nothing was looked for yet"><p>Both take seconds to minutes and change nothing.</p><//>`)}<//>`;
}

function Report({ id, archive, data, onSelect }) {
  const quality = useData(`/v1/qualities/${id}`);
  return html`<${Show} of=${quality} what="the findings">${(found) => html`
    <${Card} title=${found.kind === "check" ? "Confounders" : "Findings"} aside=${found.kind === "outliers" && html`<button class="small" onClick=${() => download(`/v1/qualities/${id}/table`, `${archive.name}-findings.csv`, { Accept: "text/csv" })}>Save all as CSV</button>`}>
      <ul>${found.summary.map((text) => html`<li>${text}</li>`)}</ul><${Cautions} list=${found.report.notes} title="Note" /><//>
    ${found.kind === "check" ? html`<${Confounders} report=${found.report} />` : [...new Set(["odd", "copy", "label", ...found.report.findings.map((one) => one.kind)])].map((kind) => html`<${Findings} kind=${kind} report=${found.report} archive=${archive} data=${data} onSelect=${onSelect} />`)}`}<//>`;
}

function Findings({ kind, report, archive, data, onSelect }) {
  const [limit, setLimit] = useState(24);
  const list = report.findings.filter((one) => one.kind === kind);
  const [title, text] = FINDINGS[kind] || [kind, ""];
  const select = () => {
    const rows = list.flatMap((one) => [one.id, one.other]).filter(Boolean).map((id) => data.row(id)).filter((row) => row >= 0);
    onSelect([...new Set(rows)]);
    location.hash = `#/archives/${encodeURIComponent(archive.name)}/map`;
    announce(`${plural(rows.length, "image")} chosen on the map`);
  };
  return html`<${Card} title=${`${title}: ${count(report.counts[kind] ?? list.length)}`} aside=${list.length > 0 && html`<button class="small" onClick=${select}>Choose them on the map</button>`}><p class="soft small">${text}</p>
    ${list.length ? html`<div class="findings">${list.slice(0, limit).map((one) => html`<figure key=${one.id + (one.other || "")}><div class="pair"><${Thumbnail} archive=${archive.name} id=${one.id} />${one.other && html`<${Thumbnail} archive=${archive.name} id=${one.other} />`}</div>
      <figcaption>${one.suggested && html`<p><${Tag} kind="bad">${one.label}<//> → <${Tag} kind="good">${one.suggested}<//></p>`}${one.reason}</figcaption></figure>`)}</div>
      ${list.length > limit && html`<p><button onClick=${() => setLimit(limit + 48)}>Show more</button></p>`}` : html`<p>None.</p>`}<//>`;
}

function Confounders({ report }) {
  if (!report.columns.length) return html`<${Empty} title="There is no column to check"><p>Embed the archive with the columns of its catalogue, such as site or scanner.</p><//>`;
  return html`<${Card} title="Columns"><div class="scroll"><table><thead><tr><th scope="col">Column</th><th scope="col">State</th><th scope="col">What it means</th><th scope="col" class="number">AUROC</th><th scope="col" class="number">Images</th></tr></thead>
    <tbody>${report.columns.map((one) => html`<tr key=${one.column}><th scope="row">${one.column}</th><td><${Tag} kind=${(STATES[one.state] || [""])[0]}>${(STATES[one.state] || ["", one.state])[1]}<//></td><td>${one.sentence || one.reason}</td>
      <td class="number">${one.prediction && one.prediction.auroc != null ? score(one.prediction.auroc) : "–"}</td><td class="number">${count(one.images)}</td></tr>`)}</tbody></table></div><//>`;
}
