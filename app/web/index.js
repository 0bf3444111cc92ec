// Fills the overview from the API. Text goes in through textContent only, so no name can become markup.
"use strict";

const short = (text) => text.slice(0, 8);
const when = (text) => new Date(text).toLocaleDateString();

const tables = {
  encoders: {
    empty: "None yet. `lejepa-med pretrain` writes one into the runs directory.",
    head: ["Id", "Modality", "Vectors", "State"],
    row: (e) => [link(`/v1/encoders/${e.id}`, e.id), e.modality, { text: e.vectors, wide: true }, state(e.available ? "yes" : "no", e.available ? "available" : "damaged")],
  },
  archives: {
    empty: "None yet. POST files to /v1/uploads, or `lejepa-med embed` writes one into the runs directory.",
    head: ["Name", "Items", "Encoder"],
    row: (a) => [link(`/v1/archives/${a.name}`, a.name), a.count.toLocaleString(), a.encoder || `not here (${short(a.fingerprint)})`],
  },
  probes: {
    empty: "None yet. POST labelled files or ids to /v1/probes.",
    head: ["Name", "Version", "Answers", "Examples", "Trained"],
    row: (p) => [
      link(`/v1/probes/${p.id}`, p.name),
      p.version,
      { text: p.kind === "regression" ? "a number" : p.labels.join(", "), wide: true },
      p.count.toLocaleString(),
      when(p.created),
    ],
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
// A link carries no key, so where one is needed the name stands without it.
const link = (href, text) => (key() ? element("span", text) : element("a", text, { href: encodeURI(href) }));
const state = (kind, text) => element("span", text, { class: kind });
const bar = (value) => element("progress", "", { value, max: 1, title: `${Math.round(100 * value)} %` });

function draw(name, rows, next) {
  const { empty, head, row } = tables[name];
  document.getElementById(`${name}-count`).textContent = next ? `newest ${rows.length}` : rows.length || "";
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
    for (const text of item.cautions ?? []) {
      const note = table.insertRow().insertCell();
      note.colSpan = head.length;
      note.className = "caution";
      note.textContent = `${text}.`;
    }
  }
  place.replaceChildren(table);
}

// For this tab only: gone when it is closed, and no other site's page can read it.
const key = () => sessionStorage.getItem("lejepa-med-key");

async function get(path) {
  const answer = await fetch(path, key() ? { headers: { Authorization: `Bearer ${key()}` } } : {});
  if (answer.status === 401) throw new Unauthorized((await answer.json()).detail);
  if (!answer.ok) throw new Error(`${path} answers ${answer.status}`);
  return answer.json();
}
class Unauthorized extends Error {}

const form = document.getElementById("key");
form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("lejepa-med-key", form.elements[0].value.trim());
  form.elements[0].value = "";
  form.hidden = true;
  refresh();
});

async function refresh() {
  let busy = false;
  try {
    const names = Object.keys(tables);
    // one first: without a right key it is one refusal and not four
    const answers = [await get(`/v1/${names[0]}`), ...(await Promise.all(names.slice(1).map((name) => get(`/v1/${name}`))))];
    names.forEach((name, i) => draw(name, answers[i][name], answers[i].next));
    busy = answers[names.indexOf("jobs")].jobs.some((job) => ["queued", "running"].includes(job.state));
    document.getElementById("notice").textContent = "";
  } catch (error) {
    if (error instanceof Unauthorized) {
      sessionStorage.removeItem("lejepa-med-key");
      document.getElementById("notice").textContent = error.message;
      form.hidden = false;
      return; // asked again when a key was given
    }
    document.getElementById("notice").textContent = `The service does not answer as it should: ${error.message}`;
  }
  setTimeout(refresh, busy ? 1000 : 5000);
}
refresh();
