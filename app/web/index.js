// Fills the overview from the API. Text goes in through textContent only, so no name can become markup.
"use strict";

const short = (text) => text.slice(0, 8);
const when = (text) => new Date(text).toLocaleString();

const tables = {
  encoders: {
    empty: "None yet. `lejepa-med pretrain` writes one into the runs directory.",
    head: ["Id", "Modality", "State"],
    row: (e) => [link(`/v1/encoders/${e.id}`, e.id), e.modality, state(e.available ? "yes" : "no", e.available ? "available" : "damaged")],
  },
  archives: {
    empty: "None yet. POST files to /v1/uploads, or `lejepa-med embed` writes one into the runs directory.",
    head: ["Name", "Items", "Encoder"],
    row: (a) => [link(`/v1/archives/${a.name}`, a.name), a.count.toLocaleString(), a.encoder || `not here (${short(a.fingerprint)})`],
  },
  probes: {
    empty: "None yet. POST labelled files or ids to /v1/probes.",
    head: ["Name", "Classes", "Examples", "Trained"],
    row: (p) => [link(`/v1/probes/${p.id}`, p.name), { text: p.labels.join(", "), wide: true }, p.count.toLocaleString(), when(p.created)],
  },
  jobs: {
    empty: "None yet.",
    head: ["Job", "Kind", "State", "Progress", "To go"],
    row: (j) => [
      link(`/v1/jobs/${j.id}`, short(j.id)),
      j.kind.replaceAll("-", " "),
      state(j.state, j.state + (j.state === "running" && j.stage ? `: ${j.stage}` : "")),
      j.error ? { text: j.error.detail, wide: true } : bar(j.progress),
      j.eta_seconds == null ? "" : `${Math.ceil(j.eta_seconds)} s`,
    ],
  },
};

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text ?? "";
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
const link = (href, text) => element("a", text, { href: encodeURI(href) });
const state = (kind, text) => element("span", text, { class: kind });
const bar = (value) => element("progress", "", { value, max: 1, title: `${Math.round(100 * value)} %` });

function draw(name, rows) {
  const { empty, head, row } = tables[name];
  document.getElementById(`${name}-count`).textContent = rows.length || "";
  const place = document.getElementById(name);
  if (!rows.length) {
    place.replaceChildren(element("p", empty, { class: "empty" }));
    return;
  }
  const table = document.createElement("table");
  const top = table.insertRow();
  for (const title of head) top.append(element("th", title, { scope: "col" }));
  for (const item of rows) {
    const line = table.insertRow();
    for (const value of row(item)) {
      const cell = line.insertCell();
      if (value instanceof Node) cell.append(value);
      else if (typeof value === "object") { cell.textContent = value.text; cell.className = "wide"; }
      else cell.textContent = value;
    }
  }
  place.replaceChildren(table);
}

async function refresh() {
  let busy = false;
  try {
    const names = Object.keys(tables);
    const answers = await Promise.all(names.map(async (name) => {
      const answer = await fetch(`/v1/${name}`);
      if (!answer.ok) throw new Error(`/v1/${name} answers ${answer.status}`);
      return answer.json();
    }));
    names.forEach((name, i) => draw(name, answers[i][name]));
    busy = answers[names.indexOf("jobs")].jobs.some((job) => ["queued", "running"].includes(job.state));
    document.getElementById("notice").textContent = "";
  } catch (error) {
    document.getElementById("notice").textContent = `The service does not answer as it should: ${error.message}`;
  }
  setTimeout(refresh, busy ? 1000 : 5000);
}
refresh();
