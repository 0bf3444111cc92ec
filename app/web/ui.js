// The parts that all views are made of.
import { duration, effect, html, share, signal, useEffect, useRef, useState } from "./core.js";
import { announce, jobName, key, keyWanted, remove, post, request, useAction } from "./api.js";

// --- states: loading, empty, refused ----------------------------------------------------------------------------------

export function Loading({ what = "data" }) {
  const [seconds, setSeconds] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => setSeconds((s) => s + 0.3), 300);
    return () => clearInterval(timer);
  }, []);
  if (seconds < 0.3) return null; // a fast answer must not flicker
  return html`<p class="state" role="status"><span class="spinner" aria-hidden="true"></span>
    ${seconds < 6 ? `Reading ${what} …` : `Still reading ${what}. The service is busy, or the archive is large.`}</p>`;
}

export function Empty({ title, children }) {
  return html`<div class="state empty"><p class="state-title">${title}</p>${children}</div>`;
}

// A problem in its own words: what happened, and what to do about it.
export function Problem({ problem, onRetry }) {
  if (!problem) return null;
  const isScope = problem.status === 403;
  return html`<div class=${isScope ? "problem scope" : "problem"} role="alert">
    <p><strong>${isScope ? "Your key does not allow this. " : ""}</strong>${problem.detail}</p>
    ${problem.remedy && html`<p class="remedy"><${Text} text=${problem.remedy} /></p>`}
    ${problem.errors && html`<ul>${problem.errors.map((one) => html`<li>${Object.values(one).join(": ")}</li>`)}</ul>`}
    ${problem.reference && html`<p class="soft small">Request ${problem.reference}</p>`}
    ${onRetry && html`<button onClick=${onRetry}>Try again</button>`}
  </div>`;
}

// Data of `useData`: the view of it, or the state that it is in.
export function Show({ of, what, children }) {
  if (of.data != null) return html`${of.problem && html`<${Problem} problem=${of.problem} />`}${children(of.data)}`;
  if (of.problem) return html`<${Problem} problem=${of.problem} onRetry=${of.reload} />`;
  return html`<${Loading} what=${what} />`;
}

export function Cautions({ list, title = "Before you use this" }) {
  if (!list || !list.length) return null;
  return html`<div class="caution"><p class="state-title">${title}</p><ul>${list.map((text) => html`<li>${text}</li>`)}</ul></div>`;
}

// Text with `code` between backticks.
export function Text({ text }) {
  return text.split("`").map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));
}

// --- small parts ------------------------------------------------------------------------------------------------------

export function Card({ title, aside, children, ...rest }) {
  return html`<section class=${`card ${rest.class || ""}`}>
    ${title && html`<header class="card-head"><h2>${title}</h2>${aside}</header>`}${children}
  </section>`;
}

export function Facts({ rows }) {
  const known = rows.filter(([, value]) => value != null && value !== "" && value !== false);
  return html`<dl class="facts">${known.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

export function Tag({ kind = "", children }) {
  return html`<span class=${`tag ${kind}`}>${children}</span>`;
}

export function Bar({ value, label }) {
  const width = value == null ? "" : `${Math.round(100 * value)}%`;
  return html`<div class=${value == null ? "bar unknown" : "bar"} role="progressbar" aria-label=${label} aria-valuemin="0" aria-valuemax="100"
    aria-valuenow=${value == null ? undefined : Math.round(100 * value)}><span style=${{ width }}></span></div>`;
}

export function Field({ label, hint, children }) {
  return html`<div class="field"><label class="field"><span class="field-label">${label}</span>${children}</label>${hint && html`<span class="hint">${hint}</span>`}</div>`;
}

export function Choice({ label, value, options, onChange, ...rest }) {
  return html`<label class=${`choice ${rest.class || ""}`}><span>${label}</span><select value=${value} onChange=${(event) => onChange(event.target.value)}>
    ${options.map(([given, text]) => html`<option value=${given} selected=${given === value}>${text}</option>`)}
  </select></label>`;
}

export function Dialog({ title, onClose, children, ...rest }) {
  const box = useRef(null);
  useEffect(() => {
    box.current.showModal();
  }, []);
  return html`<dialog ref=${box} class=${rest.class} aria-label=${title} onClose=${onClose} onClick=${(event) => event.target === box.current && onClose()}>
    <div class="dialog-body"><header class="card-head"><h2>${title}</h2><button class="plain" aria-label="Close" onClick=${onClose}>✕</button></header>${children}</div>
  </dialog>`;
}

// A click that removes something asks once more, in place.
export function Confirm({ label, question, onYes, isBusy }) {
  const [asking, setAsking] = useState(false);
  if (!asking) return html`<button class="danger" disabled=${isBusy} onClick=${() => setAsking(true)}>${label}</button>`;
  return html`<span class="confirm" role="group" aria-label=${question}><span>${question}</span>
    <button class="danger" ref=${(one) => one && one.focus()} onClick=${() => { setAsking(false); onYes(); }}>Yes</button>
    <button onClick=${() => setAsking(false)}>No</button></span>`;
}

// --- jobs -------------------------------------------------------------------------------------------------------------

export const STATE_WORDS = { queued: "waiting", running: "running", succeeded: "done", failed: "failed", cancelled: "cancelled", dead: "gave up" };

export function JobLine({ job, onDone }) {
  const cancel = useAction(() => remove(`/v1/jobs/${job.id}`));
  const retry = useAction(() => post(`/v1/jobs/${job.id}/retry`));
  const active = job.state === "queued" || job.state === "running";
  return html`<div class="job">
    <div class="job-head"><strong>${jobName(job)}</strong><${Tag} kind=${job.state}>${STATE_WORDS[job.state] || job.state}<//>
      <span class="soft">${job.state === "queued" ? "for the jobs before it" : active ? job.stage : ""}</span><span class="job-eta soft">${active && job.eta_seconds != null ? `about ${duration(job.eta_seconds)} left` : ""}</span>
      ${active && html`<button class="small" disabled=${cancel.isBusy} onClick=${cancel.run}>Cancel</button>`}
      ${job.state === "dead" && html`<button class="small" disabled=${retry.isBusy} onClick=${retry.run}>Try again</button>`}
      ${job.state === "succeeded" && onDone}
    </div>
    ${active && html`<${Bar} value=${job.state === "queued" ? null : job.progress} label=${`${jobName(job)}, ${share(job.progress)}`} />`}
    <${Problem} problem=${job.error} /><${Problem} problem=${cancel.problem || retry.problem} />
  </div>`;
}

// --- the same from a script -------------------------------------------------------------------------------------------

const quote = (text) => `'${String(text).replaceAll("'", `'\\''`)}'`;

export function curlOf({ method = "GET", path, json, form, headers, out }) {
  const parts = [`curl ${quote(location.origin + path)}`];
  if (method !== "GET" && !(method === "POST" && (json !== undefined || form))) parts.push(`-X ${method}`);
  if (key.value) parts.push(`-H "Authorization: Bearer $KEY"`);
  for (const [name, value] of Object.entries(headers || {})) parts.push(`-H ${quote(`${name}: ${value}`)}`);
  if (json !== undefined) parts.push(`-H 'Content-Type: application/json'`, `-d ${quote(JSON.stringify(json))}`);
  for (const [name, value] of form || []) parts.push(`-F ${quote(`${name}=${value}`)}`);
  if (out) parts.push(`-o ${quote(out)}`);
  return parts.join(" \\\n  ");
}

export function pythonOf(lines) {
  const opened = `with Client("${location.origin}"${key.value ? `, key=os.environ["KEY"]` : ""}) as service:`;
  const first = key.value ? ["import os", "", "from lejepa_med.client import Client"] : ["from lejepa_med.client import Client"];
  return [...first, "", opened, ...lines.split("\n").map((line) => `    ${line}`)].join("\n");
}

// `calls`: [{ title, python, method, path, json | form, headers, out }]
export function Script({ calls }) {
  return html`<details class="script"><summary>Do this from a script</summary>
    ${calls.map((call) => html`<div class="script-call">${call.title && html`<p class="field-label">${call.title}</p>`}
      <${Snippet} name="curl" text=${curlOf(call)} />
      ${call.python && html`<${Snippet} name="Python" text=${pythonOf(call.python)} />`}</div>`)}
  </details>`;
}

function Snippet({ name, text }) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      announce(`${name} call copied`);
    } catch {
      announce("The browser does not allow copying here. Select the text and copy it by hand."); // without TLS on a foreign host
    }
  };
  return html`<div class="snippet"><div class="snippet-head"><span>${name}</span><button class="small" onClick=${copy}>Copy<span class="hidden"> the ${name} call</span></button></div>
    <pre tabindex="0" aria-label=${`${name} call`}>${text}</pre></div>`;
}

// --- thumbnails -------------------------------------------------------------------------------------------------------

// With a key an <img> cannot load by itself, so every thumbnail is fetched here and kept for as long as it is among the newest.
const KEPT = 3000;
const MOST_AT_ONCE = 8;
const pictures = new Map(); // path -> Promise of an object URL, oldest first
const waiting = [];
let loading = 0;
effect(() => {
  key.value; // another key may see other things
  pictures.clear();
});

export function pictureOf(path) {
  const known = pictures.get(path);
  if (known) return known;
  const made = new Promise((resolve, reject) => waiting.push({ path, resolve, reject }));
  made.catch(() => pictures.delete(path));
  pictures.set(path, made);
  if (pictures.size > KEPT) {
    const [oldest, url] = pictures.entries().next().value;
    pictures.delete(oldest);
    url.then(URL.revokeObjectURL, () => {});
  }
  loadNext();
  return made;
}

async function loadNext() {
  if (loading >= MOST_AT_ONCE || !waiting.length) return;
  loading += 1;
  const { path, resolve, reject } = waiting.pop(); // the newest first: that is what the user looks at now
  try {
    resolve(URL.createObjectURL(await (await request("GET", path)).blob()));
  } catch (error) {
    reject(error);
  } finally {
    loading -= 1;
    loadNext();
  }
}

export const thumbnailPath = (archive, id) => `/v1/archives/${encodeURIComponent(archive)}/thumbnails/${id}`;

export function Thumbnail({ archive, id, alt = "" }) {
  const [shown, setShown] = useState({ url: null, isMissing: false });
  const place = useRef(null);
  useEffect(() => {
    let isGone = false;
    setShown({ url: null, isMissing: false });
    // only what comes near the window is asked for
    const watch = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      pictureOf(thumbnailPath(archive, id)).then(
        (url) => isGone || setShown({ url, isMissing: false }),
        () => isGone || setShown({ url: null, isMissing: true }),
      );
    }, { rootMargin: "200px" });
    watch.observe(place.current);
    return () => {
      isGone = true;
      watch.disconnect();
    };
  }, [archive, id]);
  return html`<span class="thumbnail" ref=${place}>${shown.url ? html`<img src=${shown.url} alt=${alt} draggable=${false} />` : shown.isMissing ? html`<span class="no-picture">no picture</span>` : null}</span>`;
}

// --- theme ------------------------------------------------------------------------------------------------------------

export const theme = signal(localStorage.getItem("lejepa-med-theme") || "auto");
effect(() => {
  document.documentElement.dataset.theme = theme.value;
  localStorage.setItem("lejepa-med-theme", theme.value);
});

// Nine colours that people with colour blindness tell apart (after Okabe and Ito), for both grounds.
export const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc4c9b", "#56b4e9", "#d55e00", "#8a63d2", "#7a8b00", "#8c564b"];
export const colourOf = (index) => COLOURS[index % COLOURS.length];

export { keyWanted };
