// API keys and the audit trail, for administrators; others see why they see nothing.
import { html, useState, when } from "./core.js";
import { announce, key, post, remove, useAction, useData } from "./api.js";
import { Card, Confirm, Empty, Field, Problem, Script, Show, Tag } from "./ui.js";

const SCOPES = [["embed", "send files, embed archives"], ["probe", "label, train and apply probes"], ["admin", "everything, and make keys"]];

export function Keys() {
  const list = useData("/v1/keys");
  const audit = useData("/v1/audit?limit=50");
  const closed = list.problem && (list.problem.type || "").endsWith("first-key");
  return html`<div class="view"><div class="view-head"><div><h1 tabindex="-1">Keys</h1>
      <p class="lead">From the first key on, every request needs one. A key can do what its scopes allow.</p></div></div>
    ${closed
      ? html`<${Empty} title="This service asks nobody for a key"><p>That is right while only this machine reaches it. Before others do, the operator makes the first key on the service's machine:</p>
          <p><code>lejepa-med key create NAME --scopes admin</code></p><//>`
      : html`<${Show} of=${list} what="the keys">${({ keys }) => html`<${KeyTable} keys=${keys} reload=${list.reload} /><${NewKey} reload=${list.reload} />`}<//>
        ${audit.data && html`<${Audit} lines=${audit.data.lines} />`}`}
    <${Script} calls=${[{ title: "Make a key", method: "POST", path: "/v1/keys", json: { name: "pacs-gateway", scopes: ["embed"] } }, { title: "Revoke one", method: "DELETE", path: "/v1/keys/KEY_ID" }]} />
  </div>`;
}

function KeyTable({ keys, reload }) {
  const revoke = useAction(async (id) => {
    await remove(`/v1/keys/${id}`);
    reload();
  });
  return html`<${Card} title="Keys"><div class="scroll"><table>
    <thead><tr><th scope="col">Name</th><th scope="col">Scopes</th><th scope="col">Made</th><th scope="col">Expires</th><th scope="col">Last used</th><th scope="col"><span class="hidden">Action</span></th></tr></thead>
    <tbody>${keys.map((one) => html`<tr key=${one.id}><td>${one.name} <span class="soft mono">${one.id}</span></td><td>${one.scopes.map((scope) => html`<${Tag}>${scope}<//> `)}</td>
      <td>${when(one.created)}</td><td>${one.expires ? when(one.expires) : "never"}</td><td>${when(one.last_used) || "never"}</td>
      <td>${one.revoked ? html`<${Tag} kind="bad">revoked<//>` : key.value && key.value.startsWith(`lj_${one.id}`) ? html`<${Tag} kind="accent">yours<//>` : html`<${Confirm} label="Revoke" question=${`Revoke ${one.name}?`} isBusy=${revoke.isBusy} onYes=${() => revoke.run(one.id)} />`}</td></tr>`)}</tbody>
  </table></div><${Problem} problem=${revoke.problem} /><//>`;
}

function NewKey({ reload }) {
  const [name, setName] = useState("");
  const [scopes, setScopes] = useState(["embed", "probe"]);
  const [days, setDays] = useState("365");
  const [made, setMade] = useState(null);
  const make = useAction(async (event) => {
    setMade(await post("/v1/keys", { name, scopes, expires_days: days ? Number(days) : null }));
    setName("");
    reload();
  });
  return html`<${Card} title="Make a key"><form class="form" onSubmit=${(event) => { event.preventDefault(); make.run(); }}>
    <${Field} label="Whose key is it?"><input required maxlength="120" value=${name} onInput=${(event) => setName(event.target.value)} placeholder="reading room 2" /><//>
    <fieldset class="field" style="border:0;padding:0;margin:0"><legend class="field-label">What may it do?</legend>${SCOPES.map(([scope, text]) => html`<label><input type="checkbox" checked=${scopes.includes(scope)}
      onChange=${(event) => setScopes(event.target.checked ? [...scopes, scope] : scopes.filter((one) => one !== scope))} /> <strong>${scope}</strong> <span class="soft">${text}</span></label>`)}</fieldset>
    <${Field} label="Days until it expires" hint="Leave empty for a key that never expires."><input type="number" min="1" max="36500" value=${days} onInput=${(event) => setDays(event.target.value)} /><//>
    <div><button class="primary" disabled=${make.isBusy || !scopes.length}>Make the key</button></div></form>
    <${Problem} problem=${make.problem} />
    ${made && html`<div class="caution"><p class="state-title">Copy this key now. It is shown this once.</p><p><code>${made.key}</code> <button class="small" onClick=${() => navigator.clipboard.writeText(made.key).then(() => announce("Key copied"), () => announce("Select the key and copy it by hand"))}>Copy</button></p></div>`}<//>`;
}

function Audit({ lines }) {
  return html`<${Card} title="Who did what" aside=${html`<span class="soft small">newest 50</span>`}>${lines.length ? html`<div class="scroll"><table>
    <thead><tr><th scope="col">When</th><th scope="col">Key</th><th scope="col">Action</th><th scope="col">Target</th><th scope="col" class="number">Status</th></tr></thead>
    <tbody>${lines.map((line) => html`<tr key=${line.id}><td>${when(line.at)}</td><td class="mono">${line.key_id || "none"}</td><td class="mono">${line.action}</td><td class="mono">${line.target || ""}</td><td class="number">${line.status || ""}</td></tr>`)}</tbody></table></div>` : html`<p class="soft">Nothing yet.</p>`}<//>`;
}
