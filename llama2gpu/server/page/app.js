// The page: a conversation, its settings, and what the keys do.

import { make, markdown } from "./markdown.js";
import { answer, model } from "./stream.js";

const byId = (id) => document.getElementById(id);
const list = byId("messages"), scroll = byId("scroll"), text = byId("text"), dialog = byId("settings");
const DEFAULTS = { system: "", temperature: 0.8, top_p: 1, max_tokens: 512, seed: "" };

let messages = stored("messages", []);
let settings = { ...DEFAULTS, ...stored("settings", {}) };
let running = null; // what stops the answer under way

/** What this browser kept, or else the other. */
function stored(name, other) {
  try {
    return JSON.parse(localStorage.getItem(`llama2gpu.${name}`)) ?? other;
  } catch {
    return other;
  }
}

function keep() {
  try {
    localStorage.setItem("llama2gpu.messages", JSON.stringify(messages));
    localStorage.setItem("llama2gpu.settings", JSON.stringify(settings));
  } catch {
    // a browser that keeps nothing still chats
  }
}

const key = () => sessionStorage.getItem("llama2gpu.key") ?? "";

/** Keeps the end in sight, unless somebody has scrolled up to read. */
function follow(change) {
  const below = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight;
  change();
  if (below < 80) scroll.scrollTop = scroll.scrollHeight;
}

/** A message on the page; an answer's text is Markdown. */
function show({ role, content, note }) {
  const body = make("div", { class: "body" });
  const item = make("li", { class: `message ${role}` }, body);
  if (role === "assistant") {
    body.append(...markdown(content));
    item.append(make("footer", {}, ...controls(item, content), make("span", { class: "dim note" }, note ?? "")));
  } else body.append(content);
  follow(() => list.append(item));
  return item;
}

function controls(item, content) {
  if (!content) return [];
  const copy = make("button", { type: "button", class: "copy" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(content);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1200);
  });
  const again = make("button", { type: "button", class: "again" }, "Again");
  again.addEventListener("click", () => {
    if (running) return;
    messages = messages.slice(0, [...list.children].indexOf(item));
    redraw();
    ask();
  });
  return [copy, again];
}

function redraw() {
  list.replaceChildren();
  messages.forEach(show);
  scroll.scrollTop = scroll.scrollHeight;
}

/** The request to the server: empty settings are left to it. */
function request() {
  const { system, ...rest } = settings;
  const asked = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== "" && value !== null));
  const before = system.trim() ? [{ role: "system", content: system }] : [];
  const said = messages.map(({ role, content }) => ({ role, content }));
  return { model: byId("model").textContent || "default", messages: [...before, ...said], ...asked };
}

/** "42 tok/s · 128 tokens · first after 0.2 s" */
function measured({ tokens, first, rest, end }) {
  const parts = tokens > 1 && rest > 0 ? [`${((tokens - 1) / rest).toFixed(1)} tok/s`] : [];
  if (tokens) parts.push(`${tokens} tokens`);
  if (first) parts.push(`first after ${first.toFixed(2)} s`);
  if (end === "length") parts.push("cut at the limit of tokens");
  return parts.join(" · ");
}

/** Asks for the answer to the conversation and shows it as it comes. */
async function ask() {
  running = new AbortController();
  byId("send").hidden = !(byId("stop").hidden = false);
  const item = show({ role: "assistant", content: "" }), body = item.querySelector(".body");
  let latest = "", drawn = true, note = "", wrong = false;
  const draw = () => {
    drawn = true;
    follow(() => body.replaceChildren(...markdown(latest)));
  };
  item.classList.add("busy");
  try {
    const found = await answer(request(), key(), running.signal, (all) => {
      latest = all;
      if (drawn) requestAnimationFrame(draw);
      drawn = false;
    });
    note = measured(found);
  } catch (error) {
    wrong = error.name !== "AbortError";
    note = wrong ? error.message : "stopped";
  }
  running = null;
  byId("stop").hidden = !(byId("send").hidden = false);
  item.remove();
  if (wrong && !latest) {
    show({ role: "assistant", content: note }).classList.add("wrong");
  } else {
    messages.push({ role: "assistant", content: latest, note });
    show(messages.at(-1));
  }
  keep();
  text.focus();
}

function send() {
  const content = text.value.trim();
  if (!content || running) return;
  text.value = "";
  list.querySelector(".wrong")?.remove();
  if (messages.at(-1)?.role === "user") messages.pop(), list.lastElementChild.remove(); // had no answer
  messages.push({ role: "user", content });
  show(messages.at(-1));
  keep();
  ask();
}

function restart() {
  running?.abort();
  messages = [];
  redraw();
  keep();
  text.focus();
}

function openSettings() {
  const fields = dialog.querySelector("form").elements;
  for (const [name, value] of Object.entries({ ...settings, key: key() })) fields[name].value = value;
  dialog.showModal();
}

dialog.addEventListener("close", () => {
  const { key: secret, ...found } = Object.fromEntries(new FormData(dialog.querySelector("form")));
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) found[name] = found[name] === "" ? "" : Number(found[name]);
  settings = { ...DEFAULTS, ...found };
  sessionStorage.setItem("llama2gpu.key", secret);
  keep();
  greet();
});

/** Tells which model is served. */
async function greet() {
  try {
    byId("model").textContent = await model(key());
  } catch {
    byId("model").textContent = "";
  }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", restart);
byId("open-settings").addEventListener("click", openSettings);
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !dialog.open) running?.abort();
  if (event.altKey && event.key === "n") restart();
  if (event.altKey && event.key === "s" && !dialog.open) openSettings();
});
redraw();
greet();
