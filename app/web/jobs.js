// Jobs: what runs, how long it takes, why it failed, and what to do then.
import { duration, html, setQuery, route, when } from "./core.js";
import { isActive, jobName, useData } from "./api.js";
import { Card, Choice, Dialog, Empty, Facts, JobLine, Problem, Script, Show, STATE_WORDS, Tag } from "./ui.js";

const STATES = [["", "all"], ["queued", "waiting"], ["running", "running"], ["succeeded", "done"], ["failed", "failed"], ["dead", "gave up"], ["cancelled", "cancelled"]];

// The view where the result of a job is.
export function resultLink(job) {
  const [, , kind, id] = (job.result || "").split("/");
  if (kind === "probes") return html`<a href="#/probes/${id}">Open the probe</a>`;
  if (kind === "archives") return html`<a href="#/archives/${id}/map">Open the archive</a>`;
  return null;
}

export function Jobs() {
  const { query } = route.value;
  const state = query.get("state") || "";
  const list = useData(`/v1/jobs?limit=100${state ? `&state=${state}` : ""}`, { every: 2000 });
  const open = query.get("job");
  return html`<div class="view"><div class="view-head"><div><h1 tabindex="-1">Jobs</h1>
      <p class="lead">Long work goes on when you close this page, and after a restart of the service.</p></div>
      <div class="actions"><${Choice} label="Show" value=${state} options=${STATES} onChange=${(value) => setQuery("state", value)} /></div></div>
    <${Show} of=${list} what="the jobs">${({ jobs }) => {
      if (!jobs.length) return html`<${Empty} title=${state ? "No job is in this state" : "No job yet"}><p>Embedding an archive, training a probe and applying it to an archive are jobs.</p><//>`;
      const active = jobs.filter(isActive);
      const ended = jobs.filter((job) => !isActive(job));
      return html`
        ${active.length > 0 && html`<${Card} title="Now">${active.map((job) => html`<${JobLine} key=${job.id} job=${job} />`)}<//>`}
        ${ended.length > 0 && html`<${Card} title="Ended"><div class="scroll"><table>
          <thead><tr><th scope="col">Job</th><th scope="col">State</th><th scope="col">Started</th><th scope="col" class="number">Took</th><th scope="col">Result</th></tr></thead>
          <tbody>${ended.map((job) => html`<tr key=${job.id}>
            <td><button class="plain" style="padding:0;color:var(--accent)" onClick=${() => setQuery("job", job.id)}>${jobName(job)}</button></td>
            <td><${Tag} kind=${job.state}>${STATE_WORDS[job.state] || job.state}<//></td><td>${when(job.started || job.created)}</td>
            <td class="number">${job.started && job.finished ? duration((new Date(job.finished) - new Date(job.started)) / 1000) : ""}</td>
            <td>${job.state === "dead" ? html`<${JobLine} job=${job} />` : job.error ? html`${job.error.detail} <span class="soft">${job.error.remedy}</span>` : resultLink(job)}</td></tr>`)}</tbody></table></div><//>`}
        ${open && html`<${JobDialog} id=${open} />`}`;
    }}<//>
    <${Script} calls=${[{ title: "List the jobs", path: `/v1/jobs?limit=100`, python: `for job in service.jobs():\n    print(job.kind, job.state, job.progress)` },
      { title: "Cancel one", method: "DELETE", path: "/v1/jobs/JOB_ID", python: `service.cancel("JOB_ID")` },
      { title: "Queue one again that gave up", method: "POST", path: "/v1/jobs/JOB_ID/retry", python: `service.retry("JOB_ID")` }]} />
  </div>`;
}

function JobDialog({ id }) {
  const job = useData(`/v1/jobs/${id}`);
  return html`<${Dialog} title="Job" onClose=${() => setQuery("job", null)}>
    <${Show} of=${job} what="the job">${(found) => html`<div class="stack">
      <${Facts} rows=${[["Kind", jobName(found)], ["State", STATE_WORDS[found.state]], ["Id", html`<span class="mono">${found.id}</span>`], ["Accepted", when(found.created)], ["Started", when(found.started)], ["Ended", when(found.finished)], ["Starts", found.attempts], ["Result", resultLink(found)]]} />
      <${Problem} problem=${found.error} />
      <div><h3>Log</h3>${found.events.length ? html`<ul class="small">${found.events.map((event) => html`<li><span class="soft">${when(event.at)}</span> ${event.message}</li>`)}</ul>` : html`<p class="soft">Empty.</p>`}</div></div>`}<//>
  <//>`;
}
