// Encoders: what each one learnt, how well, and its report.
import { count, href, html, plural, score, setQuery, route } from "./core.js";
import { download, key, useData } from "./api.js";
import { LineChart } from "./charts.js";
import { Card, Cautions, Choice, Empty, Facts, Script, Show, Tag, Text } from "./ui.js";

const MODALITY = { images: "images", mri: "MRI", histology: "histology", galaxy: "galaxies" };

export function Encoders() {
  const list = useData("/v1/encoders", { every: 10_000 });
  const chosen = (route.value.query.get("compare") || "").split(",").filter(Boolean);
  const toggle = (id) => setQuery("compare", (chosen.includes(id) ? chosen.filter((one) => one !== id) : [...chosen.slice(-1), id]).join(","));
  return html`<div class="view"><div class="view-head"><div><h1 tabindex="-1">Encoders</h1>
      <p class="lead">Each one learnt from an archive without labels. A new run appears here by itself.</p></div></div>
    <${Show} of=${list} what="the encoders">${({ encoders }) =>
      encoders.length
        ? html`<div class="grid">${encoders.map((one) => html`<${EncoderCard} key=${one.id} encoder=${one} isChosen=${chosen.includes(one.id)} onChoose=${() => toggle(one.id)} />`)}</div>
          ${chosen.length === 1 && html`<p class="soft">Choose a second encoder to compare.</p>`}
          ${chosen.length === 2 && html`<${Comparison} ids=${chosen} />`}`
        : html`<${Empty} title="There is no encoder yet"><p>The person who runs the service trains one on its machine; it appears here by itself:</p>
            <p><code>lejepa-med pretrain /data/scans --modality mri --out runs/heads --minutes 60</code></p><//>`}<//>
    <${Script} calls=${[{ path: "/v1/encoders", python: "for encoder in service.encoders():\n    print(encoder.id, encoder.modality)" }]} />
  </div>`;
}

function EncoderCard({ encoder, isChosen, onChoose }) {
  const detail = useData(encoder.available ? `/v1/encoders/${encoder.id}` : null).data;
  return html`<section class="card"><div class="card-head"><h2><a href=${href("encoders", encoder.id)}>${encoder.id}</a></h2><${Tag} kind="accent">${MODALITY[encoder.modality] || encoder.modality}<//></div>
    ${!encoder.available && html`<p><${Tag} kind="bad">damaged<//> Its folder is incomplete. The operator copies it again.</p>`}
    ${detail && html`<${Verdict} detail=${detail} /><${Facts} rows=${[["Vector", `${count(detail.dim)} numbers`], ["Sees", encoder.vectors], ["Backbone", detail.info.backbone], ["Effective rank", rank(detail)]]} />
      <p style="margin-top:.8rem"><button class="small" aria-pressed=${isChosen} onClick=${onChoose}>${isChosen ? "Chosen to compare" : "Compare"}</button></p>`}
  </section>`;
}

function rank(detail) {
  const value = detail.effective_rank ?? detail.metrics.evaluation["backbone/effective_rank"] ?? detail.metrics.training["backbone/effective_rank"];
  return value == null ? null : `${value.toFixed(0)} of ${detail.dim}`;
}

function Verdict({ detail, isWhole }) {
  if (!detail.verdict) return null;
  const kind = { collapsing: "bad", collapsed: "bad", improving: "good", plateau: "good" }[detail.verdict.state] || "";
  return html`<p><${Tag} kind=${kind}>${detail.verdict.state}<//> <${Text} text=${detail.verdict.text} /></p>${isWhole && detail.verdict.notes && detail.verdict.notes.length > 0 && html`<ul class="small">${detail.verdict.notes.map((note) => html`<li>${note}</li>`)}</ul>`}${isWhole && detail.verdict.advice && html`<p class="small">${detail.verdict.advice}</p>`}`;
}

export function Encoder({ id }) {
  const detail = useData(`/v1/encoders/${encodeURIComponent(id)}`);
  return html`<div class="view"><div class="view-head"><div><p class="trail"><a href="#/encoders">Encoders</a></p><h1 tabindex="-1">${id}</h1></div>
      ${detail.data && detail.data.report && html`<div class="actions"><${ReportLink} id=${id} path=${detail.data.report} /></div>`}</div>
    <${Show} of=${detail} what="the encoder">${(found) => html`
      <div class="two">
        <${Card} title="At a glance"><${Verdict} detail=${found} isWhole /><${Facts} rows=${[["Modality", MODALITY[found.modality] || found.modality], ["Vectors", found.vectors], ["Length", count(found.dim)], ["Image size", `${found.image_size} px`], ["Channels", found.channels],
          ["Backbone", found.info.backbone], ["Method", found.info.objective && found.info.objective.method], ["Effective rank", rank(found)], ["Precision", found.precision], ["Fingerprint", html`<span class="mono">${found.fingerprint.slice(0, 16)}…</span>`]]} /><//>
        <${Curves} id=${id} />
      </div>
      <${ProbesOf} id=${id} />
      ${found.card && html`<${Card} title="Model card"><${Markdown} text=${found.card} /><//>`}
      <${Script} calls=${[{ path: `/v1/encoders/${id}`, python: `encoder = service.encoder(${JSON.stringify(id)})\nprint(encoder.dim, encoder.fingerprint)` },
        { title: "Embed files with it", method: "POST", path: "/v1/embeddings", form: [["encoder", id], ["files", "@image.png"]].map(([name, value]) => [name, value]), python: `found = service.embed("image.png", encoder=${JSON.stringify(id)})\nprint(found.array().shape)` }]} />`}<//>
  </div>`;
}

function ReportLink({ id, path }) {
  // a link carries no key, so with a key the report is saved as a file, which the browser opens
  if (key.value) return html`<button onClick=${() => download(path, `${id.replaceAll("/", "-")}-report.html`)}>Save the run's report</button>`;
  return html`<a class="button" href=${path} target="_blank" rel="noopener">Open the run's report</a>`;
}

const CURVES = [
  ["Loss", "training", ["loss", "invariance", "sigreg"], ["loss"]],
  ["Effective rank", "evaluation", ["backbone/effective_rank", "projector/effective_rank"], null],
];

function Curves({ id }) {
  const curve = useData(`/v1/encoders/${encodeURIComponent(id)}/curve?points=300`, { every: 15_000 });
  return html`<${Card} title="Training"><${Show} of=${curve} what="the training curve">${(data) => {
    if (!data.training.step || !data.training.step.length) return html`<p class="soft">This encoder's folder came without its run, so there is no curve.</p>`;
    const lines = (part, names) => names.filter((name) => data[part][name]).map((name) => ({ name: name.replace("/", ", ").replace("_", " "), points: data[part].step.map((step, index) => [step, data[part][name][index]]) }));
    const quality = lines("evaluation", ["linear", "knn"]).filter((one) => one.points.some(([, value]) => value != null));
    return html`<div class="stack"><${LineChart} title="Loss" x="step" y="loss" series=${lines("training", ["loss"])} height="200" />
      ${quality.length > 0 && html`<${LineChart} title="Balanced accuracy on labelled images" x="step" y="balanced accuracy" series=${quality} yRange=${[0, 1]} height="200" />`}
      <${LineChart} title="Effective rank" x="step" y="effective rank" series=${lines(data.evaluation.step && data.evaluation.step.length > 1 ? "evaluation" : "training", ["backbone/effective_rank"])} height="200" /></div>`;
  }}<//><//>`;
}

function ProbesOf({ id }) {
  const probes = useData("/v1/probes?limit=1000");
  const own = probes.data && probes.data.probes.filter((one) => one.encoder === id);
  if (!own) return null;
  return html`<${Card} title="Probes of this encoder">${own.length ? html`<div class="scroll"><table><thead><tr><th scope="col">Name</th><th scope="col">Version</th><th scope="col">Answers</th><th scope="col" class="number">Labels</th></tr></thead>
    <tbody>${own.map((one) => html`<tr key=${one.id}><td><a href=${href("probes", one.id)}>${one.name}</a></td><td>${one.version}</td><td>${one.labels.join(", ") || "a number"}</td><td class="number">${count(one.count)}</td></tr>`)}</tbody></table></div>` : html`<p class="soft">None yet. Label images of one of its archives, and train.</p>`}<//>`;
}

// Two encoders side by side, with the newest probes that were trained on the same labels.
function Comparison({ ids }) {
  const [one, other] = ids.map((id) => useData(`/v1/encoders/${encodeURIComponent(id)}`).data);
  const probes = useData("/v1/probes?limit=1000").data;
  if (!one || !other || !probes) return null;
  const names = [...new Set(probes.probes.map((probe) => probe.name))].filter((name) => ids.every((id) => probes.probes.some((probe) => probe.name === name && probe.encoder === id)));
  const rows = [["Modality", (e) => e.modality], ["Vector", (e) => `${e.dim} numbers`], ["Vectors", (e) => e.vectors], ["Effective rank", rank], ["Backbone", (e) => e.info.backbone], ["Verdict", (e) => e.verdict && e.verdict.state]];
  return html`<${Card} title="Side by side"><div class="scroll"><table><thead><tr><th scope="col"></th>${ids.map((id) => html`<th scope="col">${id}</th>`)}</tr></thead>
    <tbody>${rows.map(([name, value]) => html`<tr><th scope="row">${name}</th><td>${value(one) ?? "–"}</td><td>${value(other) ?? "–"}</td></tr>`)}
      ${names.map((name) => html`<tr key=${name}><th scope="row">Probe “${name}”</th>${ids.map((id) => html`<td><${NewestScore} probe=${probes.probes.find((probe) => probe.name === name && probe.encoder === id)} /></td>`)}</tr>`)}</tbody></table></div>
    ${!names.length && html`<p class="soft small" style="margin-top:.7rem">Both have no probe of the same name yet. Train the same label set on an archive of each to compare their scores: the interval tells whether they differ.</p>`}<//>`;
}

function NewestScore({ probe }) {
  const detail = useData(`/v1/probes/${probe.id}`).data;
  const newest = detail && detail.versions[0];
  if (!newest || newest.score == null) return html`<a href=${href("probes", probe.id)}>version ${probe.version}</a>`;
  return html`<a href=${href("probes", probe.id)}>${score(newest.score)}</a> ${newest.interval && html`<span class="soft">(${score(newest.interval[0])} to ${score(newest.interval[1])})</span>`} <span class="soft">${plural(newest.count, "label")}</span>`;
}

// A model card: headings, paragraphs, lists and tables of Markdown as elements; never as HTML.
function Markdown({ text }) {
  const body = text.replace(/^---\n[\s\S]*?\n---\n/, "");
  return html`<div class="markdown">${body.split(/\n{2,}/).map((block) => {
    const lines = block.trim().split("\n");
    if (/^```/.test(lines[0])) return html`<pre class="snippet" tabindex="0">${lines.filter((line) => !/^```/.test(line)).join("\n")}</pre>`;
    if (/^#+ /.test(lines[0])) return html`<h3>${lines[0].replace(/^#+ /, "")}</h3>${lines.length > 1 && html`<p><${Text} text=${lines.slice(1).join(" ")} /></p>`}`;
    if (lines[0].startsWith("|")) {
      const cells = lines.filter((line) => !/^\|[\s:|-]+\|$/.test(line)).map((line) => line.slice(1, -1).split("|").map((cell) => cell.trim()));
      return html`<div class="scroll"><table><thead><tr>${cells[0].map((cell) => html`<th scope="col">${cell}</th>`)}</tr></thead><tbody>${cells.slice(1).map((row) => html`<tr>${row.map((cell) => html`<td><${Text} text=${cell} /></td>`)}</tr>`)}</tbody></table></div>`;
    }
    if (/^[-*] /.test(lines[0])) return html`<ul>${block.trim().split(/\n(?=[-*] )/).map((line) => html`<li><${Text} text=${line.replace(/^[-*] /, "").replaceAll("**", "")} /></li>`)}</ul>`;
    return html`<p><${Text} text=${lines.join(" ").replaceAll("**", "")} /></p>`;
  })}</div>`;
}
