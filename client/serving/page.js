"use strict";
const at = id => document.getElementById(id);
const KINDS = {
  "liked together": "k0", "words": "k1", "text": "k2", "text as trained together": "k2", "taste": "k3",
  "taste as summed together": "k3", "popularity": "k4", "popularity elsewhere": "k4", "friends": "k5", "not in the release": "k5",
};
const TITLES = { own: "own", global: "global", fused: "fused" };
const state = { token: "", who: "user", user: "", likes: [], model: "", models: [], asked: 0 };

function make(name, text, kind) {
  const one = document.createElement(name);
  if (text !== undefined) one.textContent = text;
  if (kind) one.className = kind;
  return one;
}

async function ask(path, body) {
  const headers = state.token ? { authorization: `Bearer ${state.token}` } : {};
  const options = body === undefined ? { headers } : { method: "POST", headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, { ...options, cache: "no-store", credentials: "omit" });
  const values = await answer.json();
  if (!answer.ok) throw Object.assign(new Error([values.found, values.do].filter(Boolean).join(": ")), { status: answer.status });
  return values;
}

const digits = (value, count) => value.toFixed(count).replace("-", "\u2212");

function bar(parts, whole, label) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  fill(svg, parts, whole, label);
  return svg;
}

function fill(svg, parts, whole, label) {
  svg.setAttribute("viewBox", "0 0 100 6");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  let x = 0;
  for (const [name, value] of parts) {
    const width = whole > 0 ? Math.max(0, 100 * value / whole) : 0;
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, one] of Object.entries({ x, y: 0, width, height: 6, class: KINDS[name] || "k5" })) rect.setAttribute(key, one);
    svg.append(rect);
    x += width;
  }
}

function account(caption, rows, total) {
  const table = make("table");
  table.append(make("caption", caption));
  const body = table.createTBody();
  for (const [name, value, kind] of rows) {
    const row = body.insertRow();
    const head = make("th");
    head.scope = "row";
    if (kind) head.append(make("span", undefined, `dot ${kind}`));
    head.append(name);
    row.append(head, make("td", digits(value, 6)));
  }
  const foot = table.createTFoot().insertRow();
  const head = make("th", "score");
  head.scope = "row";
  foot.append(head, make("td", digits(total, 6)));
  return table;
}

function because(text) {
  const line = make("p", undefined, "because");
  if (!text) return line;
  const liked = "you liked ";
  if (text.startsWith(liked)) line.append("Because you liked ", make("b", text.slice(liked.length)));
  else line.append(text[0].toUpperCase() + text.slice(1));
  return line;
}

function card(one, most, only) {
  const node = at("item").content.firstElementChild.cloneNode(true);
  const part = name => node.querySelector(name);
  part(".rank").textContent = one.rank;
  part(".title").textContent = one.title;
  part(".because").replaceWith(because(one.because));
  const parts = Object.entries(one.parts);
  fill(part("svg.parts"), parts, most, parts.map(([name, value]) => `${name} ${value.toFixed(4)}`).join(", ") || "no score");
  if (only) {
    node.classList.add("alone-here");
    part(".tags").append(make("li", "only here", "here"));
  }
  for (const [name, value] of Object.entries(one.attributes).slice(0, 3)) part(".tags").append(make("li", name === "category" ? value : `${name}: ${value}`));
  const history = one.from_history.map(share => [share.title, share.adds]);
  if (one.further_history) history.push(["further items of the history", one.further_history]);
  if (one.besides_history) history.push(["not from the history", one.besides_history]);
  part(".accounts").append(
    account("by its parts", parts.map(([name, value]) => [name, value, KINDS[name] || "k5"]), one.score),
    account("by what they liked", history, one.score),
  );
  part(".more").setAttribute("aria-label", `More like ${one.title}`);
  part(".more").addEventListener("click", () => alike(one));
  part(".met").setAttribute("aria-label", `They like ${one.title}`);
  part(".met").addEventListener("click", () => liked(one));
  return node;
}

function showLists(answers) {
  const lists = at("lists");
  lists.replaceChildren();
  lists.classList.toggle("alone", answers.length === 1);
  const times = new Map();
  for (const answer of answers) for (const one of answer.items) times.set(one.item, (times.get(one.item) || 0) + 1);
  for (const answer of answers) {
    const box = make("div", undefined, "list");
    const head = make("div", undefined, "head");
    const alone = answers.length > 1 ? answer.items.filter(one => times.get(one.item) === 1).length : 0;
    const words = `${answer.items.length} items, ${(100 * answer.unlikeness).toFixed(0)} % unlike each other${alone ? `, ${alone} only here` : ""}`;
    head.append(make("h2", TITLES[answer.model]), make("span", words, "muted"));
    const list = make("ol");
    const sums = answer.items.map(one => Object.values(one.parts).reduce((sum, value) => sum + Math.max(0, value), 0));
    const most = Math.max(...sums, 0);
    for (const one of answer.items) list.append(card(one, most, answers.length > 1 && times.get(one.item) === 1));
    box.append(head, list);
    if (!answer.items.length) box.append(make("p", "Nothing is left by these choices.", "muted"));
    lists.append(box);
  }
}

function showSources(answers) {
  const box = at("source-bars");
  box.replaceChildren();
  for (const answer of answers) {
    const one = make("div", undefined, "card");
    if (answers.length > 1) one.append(make("h3", TITLES[answer.model]));
    const most = Math.max(...answer.sources.map(source => source.adds), 0);
    for (const source of [...answer.sources].sort((a, b) => b.adds - a.adds)) {
      const row = make("div", undefined, "bar");
      const name = make("span");
      name.append(make("span", undefined, `dot ${KINDS[source.name] || "k5"}`), source.name);
      row.append(name, bar([[source.name, source.adds]], most, `${source.name} adds ${source.adds.toFixed(4)}`),
        make("span", `${digits(source.adds, 4)}, brings ${source.brings}`, "n"));
      one.append(row);
    }
    box.append(one);
  }
  at("sources").hidden = !answers.length;
}

function showHistory(items) {
  const chips = state.who === "like" ? state.likes : items;
  at("h-history").textContent = state.who === "like" ? "Likes" : "Liked, the newest first";
  at("history").replaceChildren(...chips.map(one => {
    const chip = make("li", one.title);
    if (state.who === "like") {
      const away = make("button", "×");
      away.type = "button";
      away.setAttribute("aria-label", `Without ${one.title}`);
      away.addEventListener("click", () => { state.likes = state.likes.filter(other => other.item !== one.item); show(); });
      chip.append(away);
    }
    return chip;
  }));
  at("history-box").hidden = !chips.length;
}

function say(text, where = "wrong") { at(where).textContent = text; }

async function show() {
  const turn = ++state.asked;
  const somebody = state.who === "user" ? state.user : state.likes.length;
  say("");
  showHistory([]);
  if (!somebody) { at("lists").replaceChildren(); at("sources").hidden = true; at("note").hidden = true; return; }
  const body = { top: 10, diversity: Number(at("diversity").value), seen: at("seen").checked, sources: true, history: true };
  if (state.who === "user") body.user = state.user; else body.like = state.likes.map(one => one.item);
  if (at("attribute").value && at("value").value) body.filters = [{ attribute: at("attribute").value, any_of: [at("value").value] }];
  if (at("cap").value) { const [name, most] = JSON.parse(at("cap").value); body.caps = { [name]: most }; }
  const models = state.model === "compare" ? state.models : [state.model];
  at("lists").classList.add("waits");
  try {
    const answers = await Promise.all(models.map(model => ask("/recommend", { ...body, model })));
    if (turn !== state.asked) return;
    showLists(answers);
    showSources(answers);
    showHistory(answers[0].history);
    const note = answers.find(answer => answer.note);
    at("note").hidden = !note;
    say(note ? note.note[0].toUpperCase() + note.note.slice(1) + "." : "", "note");
  } catch (error) {
    if (turn === state.asked) problem(error);
  } finally {
    if (turn === state.asked) at("lists").classList.remove("waits");
  }
}

function problem(error) {
  if (error.status === 401) lock("That token is not the one."); else say(error.message);
}

async function alike(one) {
  try {
    const model = state.model === "compare" ? state.models[0] : state.model;
    const answer = await ask("/similar", { item: one.item, model, top: 8 });
    at("h-alike").textContent = `Like ${one.title}`;
    at("alike-list").replaceChildren(...answer.items.map(other => {
      const row = make("li", other.title);
      row.append(make("span", Object.keys(other.parts).join(", ")));
      return row;
    }));
    at("alike").showModal();
  } catch (error) { problem(error); }
}

async function liked(one) {
  try {
    if (state.who === "user") await ask("/events", { events: [{ user: state.user, item: one.item, liked: true }] });
    else state.likes.unshift({ item: one.item, title: one.title });
    await show();
  } catch (error) { problem(error); }
}

async function another() {
  try {
    const { users } = await ask("/users");
    state.user = at("user").value = users.find(user => user !== state.user) || "";
    await show();
  } catch (error) { problem(error); }
}

let typed = 0;
async function find() {
  const turn = ++typed, text = at("find").value.trim();
  if (!text) { at("found").replaceChildren(); return; }
  try {
    const { items } = await ask("/items", { text, top: 6 });
    if (turn !== typed) return;
    at("found").replaceChildren(...items.map(one => {
      const row = make("li"), pick = make("button", one.title);
      pick.type = "button";
      pick.addEventListener("click", () => {
        if (!state.likes.some(other => other.item === one.item)) state.likes.unshift(one);
        at("find").value = "";
        at("found").replaceChildren();
        at("find").focus();
        show();
      });
      row.append(pick);
      return row;
    }));
  } catch (error) { problem(error); }
}

function option(value, text) { const one = make("option", text); one.value = value; return one; }

function pressed(group, chosen) {
  for (const one of group.querySelectorAll("button")) one.setAttribute("aria-pressed", String(one === chosen));
}

function lock(text) {
  sessionStorage.removeItem("token");
  at("bench").hidden = true;
  at("unlock").hidden = false;
  say(text, "unlock-wrong");
  at("token").focus();
}

async function open() {
  let platform;
  try { platform = await ask("/platform"); } catch (error) {
    if (error.status === 401) lock(state.token ? "That token is not the one." : ""); else say(error.message);
    return;
  }
  if (state.token) sessionStorage.setItem("token", state.token);
  at("unlock").hidden = true;
  at("bench").hidden = false;
  at("where").textContent = `Fedfuse · ${platform.platform}`;
  at("about").textContent = `${platform.items.toLocaleString("en")} items. Lists for one person, and why each item is in them. Nothing leaves this machine.`;
  state.models = platform.models;
  state.model = platform.models.at(-1);
  at("same").hidden = !platform.same_as_own;
  const choices = platform.models.length > 1 ? [...platform.models, "compare"] : platform.models;
  at("models").replaceChildren(...choices.map(name => {
    const one = make("button", name === "compare" ? "Side by side" : name[0].toUpperCase() + name.slice(1));
    one.type = "button";
    one.setAttribute("aria-pressed", String(name === state.model));
    one.addEventListener("click", () => { state.model = name; pressed(at("models"), one); show(); });
    return one;
  }));
  at("attribute").replaceChildren(option("", "all"), ...platform.attributes.map(one => option(one.name, one.name)));
  at("cap").replaceChildren(option("", "not bounded"), ...platform.attributes.flatMap(one => [1, 2, 3].map(most => option(JSON.stringify([one.name, most]), `${most} of one ${one.name}`))));
  at("attribute").onchange = () => {
    const one = platform.attributes.find(other => other.name === at("attribute").value);
    at("value").replaceChildren(...(one ? one.values : []).map(value => option(value, value)));
    at("value").disabled = !one;
    show();
  };
  await another();
}

for (const one of document.querySelectorAll("[data-who]")) one.addEventListener("click", () => {
  state.who = one.dataset.who;
  pressed(one.parentElement, one);
  at("who-user").hidden = state.who !== "user";
  at("who-like").hidden = state.who !== "like";
  show();
});
at("who-user").addEventListener("submit", event => { event.preventDefault(); state.user = at("user").value.trim(); show(); });
at("another").addEventListener("click", another);
at("find").addEventListener("input", find);
at("value").addEventListener("change", show);
at("cap").addEventListener("change", show);
at("seen").addEventListener("change", show);
at("diversity").addEventListener("input", () => {
  const value = Number(at("diversity").value);
  say(value ? value.toFixed(1) : "not asked for", "diversity-value");
});
at("diversity").addEventListener("change", show);
at("unlock").addEventListener("submit", event => { event.preventDefault(); state.token = at("token").value.trim(); open(); });

// The token may come behind the #, which no server sees; it is taken out of the address at once.
state.token = decodeURIComponent(location.hash.slice(1)) || sessionStorage.getItem("token") || "";
if (location.hash) history.replaceState(null, "", location.pathname);
open();
