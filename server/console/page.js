"use strict";
const at = id => document.getElementById(id);
const EVERY = 2000;
const state = { token: "", shown: {}, open: new Set(), insides: new Map(), timer: 0, failures: 0 };
const TONES = { running: "live", queued: "hollow", finished: "good", incomplete: "open", failed: "bad", aborted: "open", stopped: "hollow" };
const PAST = {
  begin: "began the log of", adopt: "took over", "add-operator": "made an operator of", "remove-operator": "removed the operator", invite: "invited",
  approve: "approved", revoke: "revoked", run: "started run", "dry-run": "asked what it would cost: run", resume: "resumed run", abort: "aborted run",
  publish: "published the model of",
};

function make(name, text, kind) {
  const one = document.createElement(name);
  if (text !== undefined && text !== null) one.textContent = text;
  if (kind) one.className = kind;
  return one;
}

function within(name, kind, ...parts) {
  const one = make(name, undefined, kind);
  one.append(...parts.filter(part => part !== null && part !== undefined && part !== ""));
  return one;
}

function drawn(name, attributes, text) {
  const one = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) one.setAttribute(key, value);
  if (text !== undefined) one.textContent = text;
  return one;
}

async function ask(path) {
  const headers = state.token ? { authorization: `Bearer ${state.token}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store", credentials: "omit" });
  const values = await answer.json();
  if (!answer.ok) throw Object.assign(new Error([values.found, values.do].filter(Boolean).join(": ")), { status: answer.status });
  return values;
}

const two = value => String(value).padStart(2, "0");
const day = seconds => { const d = new Date(seconds * 1000); return `${d.getUTCFullYear()}-${two(d.getUTCMonth() + 1)}-${two(d.getUTCDate())}`; };
const clock = seconds => { const d = new Date(seconds * 1000); return `${two(d.getUTCHours())}:${two(d.getUTCMinutes())}:${two(d.getUTCSeconds())}`; };
const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
const epsilon = value => value === null || value === undefined ? "–" : value === "inf" ? "∞" : String(Number(value.toPrecision(3)));
const seconds = value => value < 90 ? `${value.toFixed(value < 10 ? 1 : 0)} s` : value < 5400 ? `${(value / 60).toFixed(0)} min` : `${(value / 3600).toFixed(1)} h`;

function bar(share, label, kind = "") {
  const svg = drawn("svg", { class: `bar ${kind}`, viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img", "aria-label": label });
  svg.append(drawn("rect", { x: 0, y: 0, height: 6, width: Math.max(0, Math.min(1, share)) * 100, class: `fill ${share > 1 ? "over" : ""}` }));
  return svg;
}

// What stands between backticks is a command or a name.
function told(text) {
  const one = make("span");
  text.split("`").forEach((part, place) => { if (part) one.append(place % 2 ? make("code", part) : part); });
  return one;
}

function stateOf(word, tone, title) { const one = make("span", word, `state ${tone}`); if (title) one.title = title; return one; }

// A part of the page is drawn again only where what it shows has changed, and whoever has the focus in it keeps it.
function part(name, values, draw) {
  const text = JSON.stringify(values);
  if (state.shown[name] === text) return;
  state.shown[name] = text;
  const focused = document.activeElement?.id;
  draw(values);
  if (focused && document.activeElement?.id !== focused) at(focused)?.focus({ preventScroll: true });
}

function tile(name, big, small) {
  return within("li", "tile", make("span", name, "name"), make("span", big, "big"), make("span", small, "small"));
}

function drawTiles(values) {
  const approved = values.platforms.filter(one => one.standing === "approved");
  const online = approved.filter(one => one.connection === "online").length;
  const running = values.runs.filter(one => one.state === "running"), queued = values.runs.filter(one => one.state === "queued");
  const newest = values.models.versions[0];
  at("tiles").replaceChildren(
    tile("Server", values.server === null ? "unknown" : values.server ? "up" : "down",
      values.server === false ? "fedfuse server start" : `certificate: ${count(values.certificate_days ?? 0, "day")}`),
    tile("Platforms online", values.server ? `${online} of ${approved.length}` : `– of ${approved.length}`, `${count(approved.length, "platform")} approved`),
    tile("At work", running.length ? running[0].run : "nothing", queued.length ? `${count(queued.length, "run")} in line` : running.length ? "no other in line" : "no run in line"),
    tile("Newest model", newest ? `version ${newest.version}` : "none", newest ? newest.name : values.models.registry ? "the registry is empty" : "no registry is named"),
  );
}

function drawProblems(problems) {
  at("problems").replaceChildren(...problems.map(text => make("p", text, "problem")));
}

function drawPlatforms({ platforms, strangers, server }) {
  const approved = platforms.filter(one => one.standing === "approved").length;
  at("platforms-said").textContent = platforms.length ? `${approved} approved${platforms.length > approved ? `, ${platforms.length - approved} shut out` : ""}` : "";
  const cards = platforms.map(one => {
    const out = one.standing !== "approved";
    const tone = out ? "hollow" : one.connection === "online" ? "good" : one.connection === "unknown" ? "hollow" : "open";
    const node = within("li", `platform ${out ? "out" : ""}`,
      within("div", "head", make("h3", one.name), stateOf(out ? "revoked" : one.connection === "unknown" ? "server down" : one.connection, tone)));
    const seen = [one.ago, one.version && `Fedfuse ${one.version}`].filter(Boolean).join(" · ");
    node.append(make("p", seen || (out ? "lets nothing through" : "has not been here since the server started")));
    if (one.spent !== null) {
      const share = one.budget === "inf" || !one.budget ? 0 : one.spent / one.budget;
      node.append(within("p", "budget", make("span", `ε ${epsilon(one.spent)} of ${epsilon(one.budget)} spent`),
        make("span", one.left === null ? "" : `${epsilon(one.left)} left`)),
        bar(share, `${epsilon(one.spent)} of an epsilon of ${epsilon(one.budget)} is spent`, "thin"));
    } else if (!out) node.append(make("p", "No budget is shown yet: it comes with the first answer of a run."));
    if (one.trust) node.append(make("p", one.trust === "left out" ? "Left out of the last run" : `In the last run${one.rounds ? `, in ${count(one.rounds, "round")}` : ""}`));
    const trouble = one.trust_why || one.trouble;
    if (trouble) node.append(within("p", "trouble", told(trouble)));
    const more = within("details", "", make("summary", "Fingerprint"), within("dl", "", make("dt", "to compare with its people"), within("dd", "", make("code", one.fingerprint))));
    more.open = state.open.has(`platform ${one.name}`);
    more.addEventListener("toggle", () => state.open[more.open ? "add" : "delete"](`platform ${one.name}`));
    more.firstChild.id = `more-${one.name}`;
    node.append(more);
    return node;
  });
  at("platform-list").replaceChildren(...(cards.length ? cards : [within("li", "none", "No platform is approved yet: ", make("code", "fedfuse invite NAME"), ", then ", make("code", "fedfuse approve"), ".")]));
  const refused = Object.entries(strangers);
  at("strangers").replaceChildren(...(refused.length ? [within("details", "", make("summary", `${count(refused.length, "stranger")} refused`),
    within("ul", "events", ...refused.map(([name, why]) => within("li", "", make("code", name), make("span", why)))))] : []));
}

function cell(name, content, kind = "") {
  const empty = content === "–" || content === "";
  const one = within("span", `${kind} ${empty ? "empty" : ""}`, content);
  if (name) one.dataset.name = name;
  return one;
}

function roundsOf(one) {
  if (!one.rounds) return cell("", "–", "rounds");
  return within("span", "rounds", make("span", `${one.round} of ${one.rounds} rounds`),
    bar(one.round / one.rounds, `${one.round} of ${one.rounds} rounds are done`, "thin"));
}

function names(...texts) { return within("div", `line names ${texts[0]}`, ...texts.slice(1).map(text => make("span", text, text.startsWith("ε") || text === "Version" || text === "Size" ? "n" : ""))); }

function drawRuns({ runs, more_runs: more }) {
  at("runs-said").textContent = runs.length ? count(runs.length + more, "run") : "";
  if (!runs.length) {
    at("run-list").replaceChildren(within("p", "none", "There is no run yet: ", make("code", "fedfuse run"), "."));
    return;
  }
  const table = within("div", "table", names("runs-names", "Run", "State", "Rounds", "Strategy", "ε planned", "ε spent", "By", "Began"));
  table.firstChild.setAttribute("aria-hidden", "true");
  for (const one of runs) {
    const planned = one.planned === null ? `${Math.round(100 * one.share)} % of rest` : epsilon(one.planned);
    const node = make("details", undefined, "run");
    const head = within("summary", "", within("div", "line", make("span", one.run, "strong"), stateOf(one.state, TONES[one.state] || "hollow"), roundsOf(one),
      cell("strategy", one.strategy), cell("ε planned", planned, "n"), cell("ε spent", epsilon(one.spent), "n"), cell("by", one.operator || "–"), cell("began", day(one.began))));
    head.id = `run-${one.run}`;
    if (one.planned === null) head.querySelector('[data-name="ε planned"]').title = "of what each platform has left";
    const inside = state.insides.get(one.run) || make("div", undefined, "inside");
    state.insides.set(one.run, inside);
    node.append(head, inside);
    node.addEventListener("toggle", () => { state.open[node.open ? "add" : "delete"](one.run); if (node.open) showRun(one, inside); });
    node.open = state.open.has(one.run);
    table.append(node);
  }
  at("run-list").replaceChildren(table, ...(more ? [make("p", `and ${count(more, "older one")}: fedfuse runs --last 0`, "muted")] : []));
}

function eventLine(one) {
  const time = make("time", clock(one.time));
  time.dateTime = new Date(one.time * 1000).toISOString();
  time.title = day(one.time);
  return within("li", "", time, told(one.text));
}

async function showRun(one, inside) {
  const about = [one.platforms.length ? `Platforms: ${one.platforms.join(", ")}.` : "", one.version ? `Published as version ${one.version}.` : "",
    one.planned === null ? `It may spend ${Math.round(100 * one.share)} % of what each platform has left.` : ""].filter(Boolean).join(" ");
  const parts = [make("p", about, "muted")];
  if (one.why) parts.push(within("p", "", told(one.why)));
  try {
    const found = await ask(`/events?run=${encodeURIComponent(one.run)}`);
    parts.push(within("ol", "events", ...found.events.map(eventLine)));
    if (!found.events.length) parts.push(make("p", "Nothing is written down of it.", "muted"));
  } catch (error) { parts.push(make("p", error.message, "wrong")); }
  inside.replaceChildren(...parts);
}

function roundChart(rounds) {
  const width = 520, height = 132, low = 18, left = 38, most = Math.max(...rounds.map(one => one.seconds), 0.1);
  const step = (width - left) / Math.max(rounds.length, 8), wide = Math.min(step * 0.72, 34);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${count(rounds.length, "round")}; the last took ${seconds(rounds.at(-1).seconds)}, the longest ${seconds(most)}` });
  for (const share of [0, 0.5, 1]) {
    const y = height - low - share * (height - low - 12);
    svg.append(drawn("line", { x1: left, x2: width, y1: y, y2: y, class: "axis" }), drawn("text", { x: left - 6, y: y + 4, "text-anchor": "end", class: "tick" }, share ? seconds(share * most) : "0"));
  }
  rounds.forEach((one, place) => {
    const tall = (height - low - 12) * one.seconds / most, x = left + place * step + (step - wide) / 2;
    const rect = drawn("rect", { x, y: height - low - tall, width: wide, height: tall, rx: Math.min(3, wide / 3), class: `fill ${one.lost ? "lost" : ""}` });
    rect.append(drawn("title", {}, `round ${one.round}: ${seconds(one.seconds)}${one.lost ? ", lost" : ""}`));
    svg.append(rect);
    if (rounds.length <= 12 || place === 0 || place === rounds.length - 1) svg.append(drawn("text", { x: x + wide / 2, y: height - 3, "text-anchor": "middle", class: "tick" }, one.round));
  });
  return svg;
}

async function drawNow(run, queued) {
  at("now").hidden = !run && !queued.length;
  if (at("now").hidden) return;
  const shown = run || queued[0];
  at("h-now").textContent = run ? "At work" : "In line";
  part("now", [run, queued.map(one => one.run)], () => {
    at("now-state").replaceChildren(stateOf(shown.state, TONES[shown.state]));
    const left = run && run.rounds ? `, ${run.round} of ${count(run.rounds, "round")} done` : "";
    at("now-line").replaceChildren(within("span", "", make("b", shown.run), `${left}${shown.platforms.length ? `, with ${shown.platforms.join(", ")}` : ""}.`
      + (run && queued.length ? ` In line: ${queued.map(one => one.run).join(", ")}.` : "")));
    at("now-progress").replaceChildren(...(run && run.rounds ? [bar(run.round / run.rounds, `${run.round} of ${run.rounds} rounds are done`)] : []));
  });
  try {
    const found = await ask(`/events?run=${encodeURIComponent(shown.run)}`);
    part("now-events", found, () => {
      at("now-events").replaceChildren(...found.events.slice(0, 8).map(eventLine));
      at("now-rounds").hidden = !found.rounds.length;
      at("now-rounds").querySelector("svg")?.remove();
      if (found.rounds.length) at("now-rounds").append(roundChart(found.rounds));
    });
  } catch (error) { if (error.status === 401) throw error; }
}

function drawModels({ registry, versions, problem }) {
  at("models-said").textContent = registry;
  const shown = [];
  if (problem) shown.push(make("p", problem, "problem"));
  if (versions.length) {
    const table = within("div", "table", names("models-names", "Version", "Name", "Strategy", "Rounds", "Platforms", "Size", "Trained"));
    table.firstChild.setAttribute("aria-hidden", "true");
    for (const one of versions) {
      table.append(within("div", "model", within("div", "line", cell("version", String(one.version), "n strong"), make("span", one.name, "strong"), cell("strategy", one.strategy),
        cell("rounds", one.rounds ? String(one.rounds) : "–"), cell("platforms", one.platforms.join(", ")), cell("size", `${Math.max(1, Math.round(one.bytes / 1024)).toLocaleString("en")} KiB`, "n"),
        cell("trained", one.created.slice(0, 10)))));
    }
    shown.push(table);
  } else if (!problem) {
    shown.push(registry ? make("p", "Nothing is published yet.", "none") : within("p", "none", "No registry is named in ", make("code", "server.toml"), ": models stay in the folders of their runs."));
  }
  at("model-list").replaceChildren(...shown);
}

function drawOperators(operators) {
  const current = operators.filter(one => !one.removed).length;
  at("operators-said").textContent = operators.length ? `${current} may act` : "";
  at("operator-list").replaceChildren(...operators.map(one => within("li", one.removed ? "gone" : "", make("b", one.name),
    make("span", one.removed ? `removed ${one.removed.slice(0, 10)}` : one.all ? "may all" : `may ${one.may.split(",").join(", ")}`))));
}

function drawLog(log) {
  if (!log) { at("log-list").replaceChildren(make("li", "The log does not hold.")); at("log-head").textContent = ""; return; }
  at("log-list").replaceChildren(...log.actions.map(one => {
    const details = Object.entries(one.details).map(([name, text]) => `${name} ${text.length > 60 ? `${text.slice(0, 12)}…` : text}`).join(" · ");
    const time = make("time", one.time.replace("T", " ").replace("Z", ""));
    time.dateTime = one.time;
    const said = within("span", "", make("b", one.operator), ` ${PAST[one.verb] || one.verb} `, make("b", one.of));
    if (details) said.append(make("small", details));
    return within("li", "", time, said);
  }));
  at("log-head").replaceChildren(`${count(log.count, "signed action")}, each by somebody who had the right to it. Write the head down, and a cut end cannot hide: `, make("code", log.head));
}

async function look() {
  clearTimeout(state.timer);
  try {
    const values = await ask("/overview");
    if (state.token) sessionStorage.setItem("token", state.token);
    at("unlock").hidden = true;
    at("board").hidden = false;
    state.failures = 0;
    at("where").textContent = `Fedfuse · coordinator · ${values.address}`;
    at("title").textContent = values.federation;
    document.title = `${values.federation}: Fedfuse`;
    part("tiles", [values.server, values.certificate_days, values.platforms, values.runs, values.models], () => drawTiles(values));
    part("problems", values.problems, drawProblems);
    part("platforms", { platforms: values.platforms, strangers: values.strangers, server: values.server }, drawPlatforms);
    part("runs", { runs: values.runs, more_runs: values.more_runs }, drawRuns);
    part("models", values.models, drawModels);
    part("operators", values.operators, drawOperators);
    part("log", values.log, drawLog);
    at("foot").textContent = `Times are UTC; as of ${clock(values.made)}. Fedfuse ${values.version}. This page asks no other server for anything.`;
    await drawNow(values.runs.find(one => one.state === "running"), values.runs.filter(one => one.state === "queued"));
  } catch (error) {
    if (error.status === 401) { lock(state.token ? "That token is not the one." : ""); return; }
    state.failures += 1;
    if (state.failures > 1) part("problems", ["fedfuse server ui does not answer; what is shown is what it said last"], drawProblems);
  }
  if (!document.hidden) state.timer = setTimeout(look, EVERY);
}

function lock(text) {
  sessionStorage.removeItem("token");
  at("board").hidden = true;
  at("unlock").hidden = false;
  at("unlock-wrong").textContent = text;
  at("token").focus();
}

document.addEventListener("visibilitychange", () => { if (!document.hidden && at("unlock").hidden) look(); });
at("unlock").addEventListener("submit", event => { event.preventDefault(); state.token = at("token").value.trim(); look(); });

// The token may come behind the #, which no server sees; it is taken out of the address at once.
state.token = decodeURIComponent(location.hash.slice(1)) || sessionStorage.getItem("token") || "";
if (location.hash) history.replaceState(null, "", location.pathname);
look();
