// The frame of the page: navigation, the prompt for a key, and the view that the address names.
import { href, html, render, route, useEffect, useRef, useState } from "./core.js";
import { announcement, isActive, jobs, key, keyWanted, setKey, watchJobs } from "./api.js";
import { Problem, theme } from "./ui.js";
import { Archives, NewArchive } from "./archives.js";
import { Encoder, Encoders } from "./encoders.js";
import { DropFile } from "./file.js";
import { Jobs } from "./jobs.js";
import { Keys } from "./keys.js";
import { ProbeView, Probes } from "./probes.js";
import { Start } from "./start.js";
import { Workspace } from "./workspace.js";

const icon = (path) => html`<svg viewBox="0 0 24 24" aria-hidden="true"><path d=${path} /></svg>`;
const PLACES = [
  ["", "Start", "M4 11.5 12 5l8 6.5V19a1 1 0 0 1-1 1h-4.5v-5h-5v5H5a1 1 0 0 1-1-1z"],
  ["archives", "Archives", "M4 5h6v6H4zM14 5h6v6h-6zM4 14h6v6H4zM14 14h6v6h-6z"],
  ["file", "Drop a file", "M12 4v11m0 0 4-4m-4 4-4-4M5 16v3a1 1 0 0 0 1 1h12a1 1 0 0 0 1-1v-3"],
  ["probes", "Probes", "M4 19h16M6 16V9M11 16V5M16 16v-5M20 16V8"],
  ["encoders", "Encoders", "M12 4 4 8l8 4 8-4zM4 12l8 4 8-4M4 16l8 4 8-4"],
  ["jobs", "Jobs", "M12 7v5l3.5 2M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16z"],
  ["keys", "Keys", "M14 10a4 4 0 1 1-3.5-4A4 4 0 0 1 14 10zm0 0 6 6v3h-3v-2h-2v-2l-2-2"],
];

function view({ parts: [place, name, tab] }) {
  if (!place) return html`<${Start} />`;
  if (place === "archives" && !name) return html`<${Archives} />`;
  if (place === "archives") return html`<${Workspace} key=${name} name=${name} tab=${tab || "map"} />`;
  if (place === "embed") return html`<${NewArchive} />`;
  if (place === "file") return html`<${DropFile} />`;
  if (place === "encoders") return name ? html`<${Encoder} key=${name} id=${name} />` : html`<${Encoders} />`;
  if (place === "probes") return name ? html`<${ProbeView} key=${name} id=${name} />` : html`<${Probes} />`;
  if (place === "jobs") return html`<${Jobs} />`;
  if (place === "keys") return html`<${Keys} />`;
  return html`<div class="view"><h1 tabindex="-1">There is no such view</h1><p><a href="#/">Go to the start</a></p></div>`;
}

function Page() {
  const { parts } = route.value;
  const active = (jobs.value || []).filter(isActive).length;
  const main = useRef(null);
  const place = parts.slice(0, 2).join("/");
  useEffect(() => {
    // a new view begins at its heading, for the eye and for the screen reader
    const heading = main.current.querySelector("h1");
    if (heading) {
      document.title = `${heading.textContent} · lejepa-med`;
      if (document.activeElement !== document.body) heading.focus({ preventScroll: true });
    }
    main.current.scrollTop = 0;
  }, [place]);
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>Skip to the content</a>
    <div class="frame">
      <div class="side">
        <a class="brand" href="#/"><img src="/web/icon.svg" alt="" />lejepa-med</a>
        <nav aria-label="Views">${PLACES.map(([name, text, path]) => html`<a href=${href(...(name ? [name] : []))}
          aria-current=${(parts[0] || "") === name ? "page" : undefined}>${icon(path)}${text}${name === "jobs" && active > 0 && html`<span class="badge" aria-label=${`${active} active`}>${active}</span>`}</a>`)}</nav>
        <div class="side-foot">
          <label class="choice">Theme <select value=${theme.value} onChange=${(event) => (theme.value = event.target.value)}>
            ${["auto", "light", "dark"].map((one) => html`<option value=${one} selected=${theme.value === one}>${one}</option>`)}</select></label>
          ${key.value && html`<button class="small" onClick=${() => setKey(null)}>Forget my key</button>`}
          <div class="links"><a href="/docs">Routes</a><a href="/openapi.json">OpenAPI</a></div>
        </div>
      </div>
      <main id="main" tabindex="-1" ref=${main}>${keyWanted.value ? html`<${KeyPrompt} problem=${keyWanted.value} />` : view(route.value)}</main>
    </div>
    <${Toast} />`;
}

function Toast() {
  const text = announcement.value;
  useEffect(() => {
    if (!text) return undefined;
    const timer = setTimeout(() => (announcement.value = ""), 4000);
    return () => clearTimeout(timer);
  }, [text]);
  return html`<div class="toast" role="status">${text}</div>`;
}

function KeyPrompt({ problem }) {
  const [value, setValue] = useState("");
  const submit = (event) => {
    event.preventDefault();
    setKey(value.trim()); // the view asks again, and a wrong key brings this prompt back
  };
  const isWrong = /(invalid|revoked|expired)-key$/.test(problem.type || "");
  return html`<div class="view"><div class="view-head"><div><h1 tabindex="-1">This service asks for a key</h1>
      <p class="lead">Keys are made by the person who runs the service. The page keeps yours in this tab only.</p></div></div>
    <section class="card"><form class="form" onSubmit=${submit}>
      <div class="field"><label class="field-label" for="key">API key</label>
        <input id="key" type="password" required autocomplete="off" spellcheck=${false} placeholder="lj_…" value=${value} onInput=${(event) => setValue(event.target.value)} />
        <span class="hint">It begins with <code>lj_</code>. The operator makes one with <code>lejepa-med key create NAME --scopes embed,probe</code>.</span></div>
      <div><button class="primary">Use this key</button></div>
    </form>
    ${isWrong && html`<${Problem} problem=${{ ...problem, remedy: "Copy the whole key again, or ask the operator for a new one." }} />`}
    </section></div>`;
}

render(html`<${Page} />`, document.getElementById("page"));
watchJobs();
