// Probes: the list, and one probe with its quality: scores, images behind each cell, curves, warnings, versions.
import { count, href, html, plural, score, share, useState, when } from "./core.js";
import { download, post, useAction, useData, useJob } from "./api.js";
import { LineChart } from "./charts.js";
import { Card, Cautions, Choice, colourOf, Dialog, Empty, JobLine, Problem, Script, Show, Tag, Thumbnail } from "./ui.js";

// What tells the quality of a probe of each kind: the key in its metrics, its name, and whether chance is known.
export const MEASURES = {
  classification: ["balanced_accuracy", "Balanced accuracy"],
  multilabel: ["auroc", "Macro AUROC"],
  regression: ["spearman", "Rank correlation"],
};
const ANSWERS = { classification: "one class an image", multilabel: "any number of labels an image", regression: "a number" };

export function Probes() {
  const list = useData("/v1/probes?limit=1000", { every: 10_000 });
  return html`<div class="view"><div class="view-head"><div><h1 tabindex="-1">Probes</h1><p class="lead">A probe answers one question about an image. It learns from your labels, on top of an encoder.</p></div></div>
    <${Show} of=${list} what="the probes">${({ probes, unusable }) => {
      const newest = probes.filter((one, index) => probes.findIndex((other) => other.series === one.series) === index);
      return html`${newest.length
        ? html`<div class="grid">${newest.map((one) => html`<a class="card" key=${one.id} href=${href("probes", one.id)}><div class="card-head"><h2>${one.name}</h2><${Tag}>version ${one.version}<//></div>
            <p class="row" style="gap:.35rem .8rem">${one.labels.slice(0, 6).map((label, index) => html`<span class="row small" style="gap:.35rem"><span class="swatch" style=${{ background: colourOf(index) }}></span>${label}</span>`)}${one.kind === "regression" && html`<span class="small">a number</span>`}</p>
            <p class="soft small">${plural(one.count, "label")} · ${one.encoder || "encoder not here"} · ${when(one.created)}${one.read_only ? " · from the command line" : ""}</p></a>`)}</div>`
        : html`<${Empty} title="No probe yet"><p>Open an archive, give some images a class with the keys 1 to 9, and train.</p><p><a class="button" href="#/archives">Open the archives</a></p><//>`}
      ${unusable.map((one) => html`<${Problem} problem=${{ detail: `${one.id}: ${one.detail}`, remedy: one.remedy }} />`)}`;
    }}<//>
    <${Script} calls=${[{ path: "/v1/probes", python: "for probe in service.probes():\n    print(probe.name, probe.version, probe.count)" }]} /></div>`;
}

export function ProbeView({ id }) {
  const probe = useData(`/v1/probes/${encodeURIComponent(id)}`);
  return html`<div class="view"><${Show} of=${probe} what="the probe">${(found) => html`
    <div class="view-head"><div><p class="trail"><a href="#/probes">Probes</a></p><h1 tabindex="-1">${found.name}</h1>
      <p class="lead">Version ${found.version}, ${plural(found.count, "label")}, ${ANSWERS[found.kind]}, on encoder <a href=${href("encoders", found.encoder)}>${found.encoder}</a>.</p></div>
      <div class="actions">${found.versions.length > 1 && html`<${Choice} label="Version" value=${found.id} options=${found.versions.map((one) => [one.id, `${one.version} (${plural(one.count, "label")})`])} onChange=${(one) => (location.hash = href("probes", one))} />`}</div></div>
    <${Quality} probe=${found} />
    <${Application} probe=${found} />
    <${Script} calls=${[{ title: "Its quality", path: `/v1/probes/${found.id}`, python: `print(service.probe("${found.id}").metrics["linear"])` },
      { title: "Ask it about a file", method: "POST", path: `/v1/probes/${found.id}/predictions`, form: [["files", "@image.png"]], python: `for found in service.predict_files("${found.id}", ["image.png"]):\n    print(found.label, found.probabilities, found.novelty)` }]} />`}<//></div>`;
}

// Everything about the quality of one probe; also used beside the labels.
export function Quality({ probe }) {
  const evaluation = useData(`/v1/probes/${encodeURIComponent(probe.id)}/evaluation`);
  const { metrics } = probe;
  return html`
    <div class="two">
      <${Card} title="How good it is"><${Headline} probe=${probe} /><${Warnings} list=${metrics.warnings} /><${Cautions} list=${probe.cautions} /><//>
      <${Card} title="Versions"><${Versions} probe=${probe} /><//>
    </div>
    <${Show} of=${evaluation} what="the answers of the cross-validation">${(found) => html`
      ${found.note && html`<p class="soft">${found.note}</p>`}
      ${found.confusion && html`<${Confusion} evaluation=${found} />`}
      ${found.marks && html`<${Marks} evaluation=${found} />`}
      <div class="two">
        ${found.roc.length > 0 && html`<${Card} title="ROC"><${Roc} curves=${found.roc} /><//>`}
        ${found.calibration && html`<${Card} title="Calibration"><${Calibration} bins=${found.calibration} ece=${found.ece} /><//>`}
        ${found.kind === "regression" && html`<${Card} title="Truth and answer"><${Agreement} rows=${found.rows} /><//>`}
      </div>`}<//>`;
}

export function Headline({ probe }) {
  const { metrics } = probe;
  const [measure, name] = MEASURES[probe.kind];
  const linear = metrics.linear || {};
  const interval = linear[`${measure}_interval`];
  if (linear[measure] == null) return html`<p class="soft">No score: the labels are too few for a cross-validation.</p>`;
  return html`<div class="figures">
    <div><div class="figure">${score(linear[measure])}</div><div class="soft small">${name}${interval ? `, 95 % interval ${score(interval[0])} to ${score(interval[1])}` : ""}</div></div>
    ${metrics.chance != null && html`<div><div class="figure soft">${score(metrics.chance)}</div><div class="soft small">by chance</div></div>`}
    ${linear.auroc != null && measure !== "auroc" && html`<div><div class="figure">${score(linear.auroc)}</div><div class="soft small">AUROC</div></div>`}
    ${metrics.knn && metrics.knn[measure] != null && html`<div><div class="figure soft">${score(metrics.knn[measure])}</div><div class="soft small">nearest neighbours</div></div>`}
  </div>
  <p class="soft small" style="margin-top:.6rem">Measured on images that the answer had not learnt from: ${plural(metrics.folds, "fold")} of cross-validation, and all images of a group in one fold.</p>`;
}

export function Warnings({ list }) {
  return html`<${Cautions} list=${list} title="Read this before you trust the number" />`;
}

function Versions({ probe }) {
  const [, name] = MEASURES[probe.kind];
  const list = [...probe.versions].sort((a, b) => a.version - b.version);
  const scored = list.filter((one) => one.score != null);
  return html`${scored.length > 1 && html`<${LineChart} title=${`${name} by labels`} x="labels" y=${name.toLowerCase()} yRange=${[Math.min(0, ...scored.map((one) => one.score)), 1]} height="190" dots series=${[{ name, points: scored.map((one) => [one.count, one.score, `version ${one.version}`]) }]} />`}
    <div class="scroll"><table><thead><tr><th scope="col">Version</th><th scope="col" class="number">Labels</th><th scope="col">${name}</th><th scope="col">Trained</th></tr></thead>
    <tbody>${list.reverse().map((one) => html`<tr key=${one.id}><td>${one.id === probe.id ? html`<strong>${one.version}, shown</strong>` : html`<a href=${href("probes", one.id)}>${one.version}</a>`}</td><td class="number">${count(one.count)}</td>
      <td>${one.score == null ? "–" : html`${score(one.score)} ${one.interval && html`<span class="soft">(${score(one.interval[0])} to ${score(one.interval[1])})</span>`}`}</td><td class="soft">${when(one.created)}</td></tr>`)}</tbody></table></div>`;
}

// Rows: true class; columns: answer. A cell opens the images behind it.
export function Confusion({ evaluation }) {
  const [open, setOpen] = useState(null);
  const { classes, matrix, cells } = evaluation.confusion;
  return html`<${Card} title="What it confuses" aside=${html`<span class="soft small">click a cell to see its images</span>`}>
    <div class="scroll"><table class="confusion"><caption class="hidden">Rows are the true class, columns the probe's answer</caption>
      <thead><tr><th scope="col"><span class="soft">true ↓, answer →</span></th>${classes.map((name) => html`<th scope="col">${name}</th>`)}<th scope="col" class="soft">found</th></tr></thead>
      <tbody>${classes.map((truth, row) => {
        const sum = matrix[row].reduce((a, b) => a + b, 0);
        return html`<tr><th scope="row"><span class="swatch" style=${{ background: colourOf(row) }}></span> ${truth}</th>${classes.map((answer, column) => {
          const part = sum ? matrix[row][column] / sum : 0;
          const tone = row === column ? "var(--good)" : "var(--bad)";
          return html`<td><button style=${{ background: `color-mix(in srgb, ${tone} ${Math.round(part * 32)}%, var(--card))` }} disabled=${!matrix[row][column]} onClick=${() => setOpen([row, column])}
            aria-label=${`True ${truth}, answer ${answer}: ${plural(matrix[row][column], "image")}`}>${count(matrix[row][column])}</button></td>`;
        })}<td class="soft number">${sum ? share(matrix[row][row] / sum) : ""}</td></tr>`;
      })}</tbody></table></div>
    ${open && html`<${Dialog} class="wide" title=${open[0] === open[1] ? `${classes[open[0]]}, found` : `${classes[open[0]]}, taken for ${classes[open[1]]}`} onClose=${() => setOpen(null)}><${Behind} rows=${cells[open[0]][open[1]].map((at) => evaluation.rows[at])} /><//>`}<//>`;
}

function Marks({ evaluation }) {
  const [open, setOpen] = useState(null);
  const cell = (label, name, rows) => html`<td class="number"><button class="small" disabled=${!rows.length} aria-label=${`${label}, ${name}: ${plural(rows.length, "image")}`} onClick=${() => setOpen([`${label}: ${name}`, rows])}>${rows.length}</button></td>`;
  return html`<${Card} title="Right and wrong, by label" aside=${html`<span class="soft small">click a number to see its images</span>`}><div class="scroll"><table>
    <thead><tr><th scope="col">Label</th><th scope="col" class="number">Found</th><th scope="col" class="number">Missed</th><th scope="col" class="number">False alarms</th></tr></thead>
    <tbody>${evaluation.marks.map((one) => html`<tr><th scope="row">${one.label}</th>${cell(one.label, "found", one.true_positive)}${cell(one.label, "missed", one.false_negative)}${cell(one.label, "false alarms", one.false_positive)}</tr>`)}</tbody></table></div>
    ${open && html`<${Dialog} class="wide" title=${open[0]} onClose=${() => setOpen(null)}><${Behind} rows=${open[1].map((at) => evaluation.rows[at])} /><//>`}<//>`;
}

const text = (value) => (Array.isArray(value) ? value.join(", ") || "none" : typeof value === "number" ? String(+value.toPrecision(4)) : value);

function Behind({ rows }) {
  const sorted = [...rows].sort((a, b) => (b.probability ?? 0) - (a.probability ?? 0));
  return html`<p class="soft small">${plural(rows.length, "image")}, the most certain answer first.</p><div class="pictures large">${sorted.slice(0, 200).map((row) => html`<figure key=${row.id}>
    ${row.archive ? html`<${Thumbnail} archive=${row.archive} id=${row.id} alt=${`true ${text(row.label)}, answer ${text(row.predicted)}`} />` : html`<span class="thumbnail"><span class="no-picture">a file that was sent</span></span>`}
    <figcaption>${row.probability != null ? share(row.probability) : text(row.predicted)}</figcaption></figure>`)}</div>`;
}

function Roc({ curves }) {
  return html`<${LineChart} title="ROC" x="false positive rate" y="true positive rate" xRange=${[0, 1]} yRange=${[0, 1]} diagonal
    series=${curves.map((one) => ({ name: `${one.label} (${score(one.auc)})`, points: one.false_positive_rate.map((rate, index) => [rate, one.true_positive_rate[index]]) }))} />`;
}

function Calibration({ bins, ece }) {
  return html`<${LineChart} title="Calibration" x="stated probability" y="share that was right" xRange=${[0, 1]} yRange=${[0, 1]} diagonal dots
      series=${[{ name: "answers", points: bins.map((bin) => [bin.confidence, bin.right, plural(bin.count, "answer")]) }]} />
    <p class="soft small">On the dashed line, an answer of 80 % is right in 80 of 100 cases. ${ece != null ? `Mean distance from it: ${score(ece)}.` : ""}</p>`;
}

function Agreement({ rows }) {
  const values = rows.flatMap((row) => [row.label, row.predicted]);
  const range = [Math.min(...values), Math.max(...values)];
  return html`<${LineChart} title="Truth and answer" x="true value" y="answer" xRange=${range} yRange=${range} diagonal dots series=${[{ name: "images", colour: "transparent", points: [] }, ...rows.map((row) => ({ name: "image", colour: colourOf(0), points: [[row.label, row.predicted]] }))].slice(1)} />`;
}

// Apply the probe to a whole archive, and get the result as a table or on the map.
export function Application({ probe, archive }) {
  const archives = useData(archive ? null : "/v1/archives").data;
  const fitting = archive ? [archive] : ((archives && archives.archives) || []).filter((one) => one.fingerprint === probe.fingerprint).map((one) => one.name);
  const [chosen, setChosen] = useState("");
  const [jobId, setJobId] = useState(null);
  const { job } = useJob(jobId);
  const list = useData(`/v1/probes/${encodeURIComponent(probe.id)}/applications`);
  const target = chosen || fitting[0];
  const apply = useAction(async () => setJobId((await post(`/v1/probes/${encodeURIComponent(probe.id)}/applications`, { archive: target })).id));
  const found = (list.data && list.data.applications) || [];
  return html`<${Card} title="Apply it to a whole archive">
    ${fitting.length
      ? html`<div class="row">${!archive && html`<${Choice} label="Archive" value=${target} options=${fitting.map((one) => [one, one])} onChange=${setChosen} />`}
          <button class="primary" disabled=${apply.isBusy || (job && ["queued", "running"].includes(job.state))} onClick=${apply.run}>Predict every image</button></div>`
      : html`<p class="soft">No archive was embedded with this probe's encoder.</p>`}
    <${Problem} problem=${apply.problem} />
    ${job && job.state !== "succeeded" && html`<${JobLine} job=${job} />`}
    ${found.length > 0 && html`<div class="scroll" style="margin-top:.9rem"><table><thead><tr><th scope="col">Archive</th><th scope="col" class="number">Images</th><th scope="col">Result</th><th scope="col">Made</th><th scope="col"><span class="hidden">Actions</span></th></tr></thead>
      <tbody>${found.map((one) => html`<tr key=${one.id}><td>${one.archive}</td><td class="number">${count(one.count)}</td><td><${Summary} summary=${one.summary} /></td><td class="soft">${when(one.created)}</td>
        <td><div class="row"><a class="button" href=${`${href("archives", one.archive, "map")}?colour=${encodeURIComponent(`${one.id}/label`)}`}>Show on the map</a>
          <button onClick=${() => download(`/v1/applications/${one.id}/table`, `${probe.name}-${one.archive}.csv`, { Accept: "text/csv" })}>CSV</button></div></td></tr>`)}</tbody></table></div>`}
    <${Script} calls=${[{ method: "POST", path: `/v1/probes/${probe.id}/applications`, json: { archive: target || "ARCHIVE" }, python: `job = service.wait(service.apply_probe("${probe.id}", ${JSON.stringify(target || "ARCHIVE")}))\nservice.download_application(job.id, "predictions.csv")` }]} /><//>`;
}

function Summary({ summary }) {
  const counts = Object.entries(summary.counts || {});
  return html`<span class="row" style="gap:.2rem .8rem">${counts.map(([label, number]) => html`<span>${label} <strong>${count(number)}</strong></span>`)}${summary.unlike > 0 && html`<${Tag} kind="busy">${share(summary.unlike)} unlike the labelled ones<//>`}</span>`;
}
