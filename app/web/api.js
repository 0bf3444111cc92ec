// Requests to the service. A refusal becomes a `Refused` that carries the RFC 9457 problem with its remedy.
import { batch, signal, useEffect, useRef, useState } from "./core.js";

const KEY = "lejepa-med-key";

// The key lives in this tab only: it is gone when the tab closes, and no other site can read it.
export const key = signal(sessionStorage.getItem(KEY));
export const keyWanted = signal(null); // the problem of a 401: the page then asks for a key
export const jobs = signal(null); // newest jobs, kept fresh by `watchJobs`
export const finished = signal(0); // counts jobs that ended, so that lists which they change are read again
export const announcement = signal(""); // read out by screen readers, and shown for a moment

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  batch(() => {
    key.value = value || null;
    keyWanted.value = null;
    finished.value += 1;
  });
}

function askForKey(problem) {
  sessionStorage.removeItem(KEY);
  batch(() => {
    key.value = null;
    keyWanted.value = problem;
  });
}

export function announce(text) {
  announcement.value = "";
  setTimeout(() => (announcement.value = text), 30);
}

export class Refused extends Error {
  constructor(problem) {
    super(problem.detail || problem.title || "The service refused the request.");
    this.problem = problem;
  }
  get kind() {
    return (this.problem.type || "").split(":").pop();
  }
}

const UNREACHABLE = { status: 0, detail: "The service does not answer.", remedy: "Check that `lejepa-med serve` still runs on this address; the page tries again by itself." };

async function problemOf(answer) {
  try {
    return { status: answer.status, ...(await answer.json()) };
  } catch {
    return { status: answer.status, detail: `The service answered with status ${answer.status}.`, remedy: "Reload the page. If it happens again, the service's log names the cause." };
  }
}

function headersOf(given) {
  return key.value ? { ...given, Authorization: `Bearer ${key.value}` } : { ...given };
}

// Returns the Response; throws Refused for every status from 400.
export async function request(method, path, { json, form, headers, signal } = {}) {
  const sent = headersOf(headers);
  if (json !== undefined) sent["Content-Type"] = "application/json";
  const asked = key.value;
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, body: json !== undefined ? JSON.stringify(json) : form, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(UNREACHABLE);
  }
  if (answer.ok) return answer;
  const problem = await problemOf(answer);
  // an answer to an older key must not ask for the key once more
  if (answer.status === 401 && asked === key.value) askForKey(problem);
  throw new Refused(problem);
}

export async function get(path, options) {
  return (await request("GET", path, options)).json();
}
export async function post(path, json, options) {
  const answer = await request("POST", path, { json, ...options });
  return answer.status === 204 ? null : answer.json();
}
export async function remove(path) {
  await request("DELETE", path);
}

// A form with files, and the share of it that was sent so far. XMLHttpRequest, since fetch reports no upload progress.
export function sendForm(path, form, onProgress = () => {}) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", path);
    for (const [name, value] of Object.entries(headersOf({}))) sending.setRequestHeader(name, value);
    sending.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    sending.onerror = () => reject(new Refused(UNREACHABLE));
    sending.onload = () => {
      let answer = null;
      try {
        answer = JSON.parse(sending.responseText);
      } catch {
        answer = { detail: `The service answered with status ${sending.status}.`, remedy: "Try again." };
      }
      if (sending.status < 400) return resolve(answer);
      if (sending.status === 401) askForKey(answer);
      reject(new Refused({ status: sending.status, ...answer }));
    };
    sending.send(form);
  });
}

// A file of the service, saved by the browser; a plain link could not carry the key.
export async function download(path, name, headers) {
  const blob = await (await request("GET", path, { headers })).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// { data, problem, reload }: data of a GET, read again after `every` milliseconds and when a job ends. `path` may be null.
export function useData(path, { every = 0 } = {}) {
  const [state, setState] = useState({ path: null, data: null, problem: null });
  const [round, setRound] = useState(0);
  const ended = finished.value;
  useEffect(() => {
    if (path == null) return undefined;
    const stop = new AbortController();
    let timer = 0;
    const read = async () => {
      let wait = every;
      try {
        const data = await get(path, { signal: stop.signal });
        setState({ path, data, problem: null });
      } catch (error) {
        if (error.name === "AbortError") return;
        const problem = error instanceof Refused ? error.problem : { detail: String(error), remedy: "Reload the page." };
        setState((before) => ({ path, data: before.path === path ? before.data : null, problem }));
        if (problem.status === 0 || problem.status === 503) wait = wait || 3000; // it may come back
      }
      if (wait) timer = setTimeout(read, wait);
    };
    read();
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [path, round, ended, every]);
  const isNow = state.path === path;
  return { data: isNow ? state.data : null, problem: isNow ? state.problem : null, reload: () => setRound((n) => n + 1) };
}

// All pages of a list that links to its next page.
export async function getAll(path, name) {
  const found = [];
  for (let next = path; next; ) {
    const page = await get(next);
    found.push(...page[name]);
    next = page.next;
  }
  return found;
}

export const isActive = (job) => job.state === "queued" || job.state === "running";

// Keeps `jobs` fresh: every second while one is active, else every five.
export function watchJobs() {
  let known = new Map();
  const look = async () => {
    let wait = 5000;
    if (!keyWanted.value && !document.hidden) {
      try {
        const found = (await get("/v1/jobs?limit=50")).jobs;
        const ended = found.filter((job) => !isActive(job) && known.get(job.id) === true);
        known = new Map(found.map((job) => [job.id, isActive(job)]));
        batch(() => {
          jobs.value = found;
          if (ended.length) finished.value += 1;
        });
        for (const job of ended) announce(`${jobName(job)}: ${job.state}`);
        if (found.some(isActive)) wait = 1000;
      } catch {
        wait = 3000; // the views show the problem
      }
    }
    setTimeout(look, wait);
  };
  look();
}

const KINDS = {
  "train-probe": "Train a probe",
  "import-upload": "Read an upload",
  "embed-archive": "Embed an archive",
  "apply-probe": "Apply a probe",
  "map-archive": "Arrange the map",
  "check-archive": "Check for confounders",
  "find-outliers": "Find odd images",
};
export const jobName = (job) => KINDS[job.kind] || job.kind.replaceAll("-", " ");

// The job with the id as it moves; null before the first answer.
export function useJob(id) {
  const [job, setJob] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    setJob(null);
    setProblem(null);
    if (!id) return undefined;
    const stop = new AbortController();
    let timer = 0;
    const look = async (wait) => {
      try {
        const found = await get(`/v1/jobs/${id}?wait=${wait}`, { signal: stop.signal });
        setJob(found);
        if (isActive(found)) timer = setTimeout(look, 150, 1);
        else finished.value += 1;
      } catch (error) {
        if (error.name === "AbortError") return;
        if (error.problem && error.problem.status === 0) timer = setTimeout(look, 2000, 0);
        else setProblem(error.problem);
      }
    };
    look(0);
    return () => {
      stop.abort();
      clearTimeout(timer);
    };
  }, [id]);
  return { job, problem };
}

// A function that runs an action: { run, isBusy, problem, clear }. A second click while it runs does nothing.
export function useAction(action) {
  const [state, setState] = useState({ isBusy: false, problem: null });
  const busy = useRef(false);
  const run = async (...given) => {
    if (busy.current) return undefined;
    busy.current = true;
    setState({ isBusy: true, problem: null });
    try {
      const result = await action(...given);
      setState({ isBusy: false, problem: null });
      return result;
    } catch (error) {
      if (!(error instanceof Refused)) console.error(error);
      setState({ isBusy: false, problem: error.problem || { detail: error.message, remedy: "Reload the page, and try again." } });
      return undefined;
    } finally {
      busy.current = false;
    }
  };
  return { ...state, run, clear: () => setState({ isBusy: false, problem: null }) };
}
