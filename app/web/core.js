// The few functions of Preact, htm and signals that the page uses, and the address of the view.
import { Fragment, h, render } from "./vendor/preact.js";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.js";
import htm from "./vendor/htm.js";
import { batch, computed, effect, signal } from "./vendor/signals-core.js";
import "./vendor/signals.js"; // components that read a signal's value are drawn again when it changes

export const html = htm.bind(h);
export { Fragment, batch, computed, effect, render, signal, useEffect, useLayoutEffect, useMemo, useRef, useState };

// The address is #/part/part?name=value, so a view can be linked to and the Back button works.
function readRoute() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query) };
}
export const route = signal(readRoute());
addEventListener("hashchange", () => (route.value = readRoute()));

export function href(...parts) {
  return "#/" + parts.map(encodeURIComponent).join("/");
}

// Change one value of the query without a new entry in the browser's history.
export function setQuery(name, value) {
  const { parts, query } = readRoute();
  if (value == null || value === "") query.delete(name);
  else query.set(name, value);
  const text = query.toString();
  history.replaceState(null, "", href(...parts) + (text ? `?${text}` : ""));
  route.value = readRoute();
}

// Numbers and times as the page prints them.
export const count = (value) => (value == null ? "" : value.toLocaleString("en"));
export const score = (value) => (value == null ? "–" : value.toFixed(2));
export const share = (value) => `${Math.round(100 * value)} %`;
export const plural = (number, one, many = one + "s") => `${count(number)} ${number === 1 ? one : many}`;
export const short = (id) => id.slice(0, 8);
export const when = (text) =>
  text == null ? "" : new Date(text).toLocaleString("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
export function duration(seconds) {
  if (seconds == null) return "";
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
export function bytes(number) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (number < 1000 || unit === "GB") return `${number < 10 && unit !== "B" ? number.toFixed(1) : Math.round(number)} ${unit}`;
    number /= 1000;
  }
}
