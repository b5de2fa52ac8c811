// The page: a conversation, its settings, and what the keys do.

import { make, markdown } from "./markdown.js";
import { answer, model } from "./stream.js";

const byId = (id) => document.getElementById(id);
const list = byId("messages"), scroll = byId("scroll"), text = byId("text"), dialog = byId("settings");
const DEFAULTS = { system: "", temperature: 0.8, top_p: 1, max_tokens: 512, seed: "" };

let messages = conversation();
let settings = { ...DEFAULTS, ...stored(localStorage, "settings") };
let running = null; // what stops the answer under way

/** What was kept there, if anything. */
function stored(place, name) {
  try {
    return JSON.parse(place.getItem(`llama2gpu.${name}`));
  } catch {
    return null;
  }
}

function keep(place, name, value) {
  try {
    place.setItem(`llama2gpu.${name}`, JSON.stringify(value));
  } catch {
    // a browser that keeps nothing still chats
  }
}

/** This tab's own; a new tab goes on with the latest of any. */
function conversation() {
  const found = stored(sessionStorage, "messages") ?? stored(localStorage, "messages");
  return Array.isArray(found) ? found.filter((message) => typeof message?.content === "string") : [];
}

function keepConversation() {
  for (const place of [sessionStorage, localStorage]) keep(place, "messages", messages);
}

const key = () => stored(sessionStorage, "key") ?? "";

/** Keeps the end in sight, unless somebody has scrolled up to read. */
function follow(change) {
  const below = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight;
  change();
  if (below < 80) scroll.scrollTop = scroll.scrollHeight;
}

/** A message for the page; an answer's text is Markdown. */
function made({ role, content, note }) {
  const body = make("div", { class: "body" });
  const item = make("li", { class: `message ${role}`, "aria-label": role === "user" ? "You" : "Answer" }, body);
  if (role === "assistant") {
    body.append(...markdown(content));
    item.append(make("footer", {}, ...controls(item, content), make("span", { class: "dim note" }, note ?? "")));
  } else body.append(content);
  return item;
}

function show(message) {
  const item = made(message);
  follow(() => list.append(item));
  return item;
}

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

/** To the clipboard, which browsers give to pages of https and of this machine alone. */
async function copied(content) {
  if (navigator.clipboard) return navigator.clipboard.writeText(content);
  const field = make("textarea", { readonly: "" }), focused = document.activeElement;
  field.value = content;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  if (!done) throw new Error("refused");
}

function controls(item, content) {
  if (!content) return [];
  const copy = make("button", { type: "button", class: "copy" }, "Copy");
  copy.addEventListener("click", async () => {
    copy.textContent = await copied(content).then(() => "Copied", () => "Can't copy");
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
  toEnd();
}

/** The request to the server: its one model, and what settings are empty, are left to it. */
function request(first) {
  const { system, ...rest } = settings;
  const asked = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== "" && value !== null));
  const before = system.trim() ? [{ role: "system", content: system }] : [];
  const said = messages.slice(first).map(({ role, content }) => ({ role, content }));
  return { messages: [...before, ...said], ...asked };
}

/** "42 tok/s · 128 tokens · first after 0.2 s" */
function measured({ tokens, first, rest, end, dropped }) {
  const parts = tokens > 1 && rest > 0 ? [`${((tokens - 1) / rest).toFixed(1)} tok/s`] : [];
  if (tokens) parts.push(tokens === 1 ? "1 token" : `${tokens} tokens`);
  if (first) parts.push(`first after ${first.toFixed(2)} s`);
  if (end === "length") parts.push("cut at the limit of tokens");
  if (dropped) parts.push("the oldest turns no longer fit and were left out");
  return parts.join(" · ");
}

/** The answer to the conversation; where that is too long for the context, without its oldest turns. */
async function fitting(signal, told) {
  for (let first = 0; ; ) {
    try {
      return { ...(await answer(request(first), key(), signal, told)), dropped: first > 0 };
    } catch (error) {
      first = messages.findIndex(({ role }, at) => at > first && role === "user");
      if (error.code !== "context_length_exceeded" || first < 0) throw error;
    }
  }
}

/** Asks for the answer to the conversation and shows it as it comes. */
async function ask() {
  const talk = messages;
  running = new AbortController();
  byId("send").hidden = !(byId("stop").hidden = false);
  list.ariaBusy = "true"; // a screen reader reads the answer once it is whole
  const item = show({ role: "assistant", content: "" }), body = item.querySelector(".body");
  toEnd();
  let latest = "", drawn = true, note = "", error = null;
  const draw = () => {
    drawn = true;
    follow(() => body.replaceChildren(...markdown(latest)));
  };
  item.classList.add("busy");
  try {
    const found = await fitting(running.signal, (all) => {
      latest = all;
      if (drawn) requestAnimationFrame(draw);
      drawn = false;
    });
    note = measured(found);
  } catch (caught) {
    error = caught;
    note = error.name === "AbortError" ? "stopped" : error.message;
  }
  running = null;
  byId("stop").hidden = !(byId("send").hidden = false);
  list.ariaBusy = "false";
  if (messages === talk) end(item, latest, note, error); // else a new conversation has begun
  if (document.activeElement === document.body) text.focus();
}

/** Puts the whole answer where it streamed, or what went wrong where there is none. */
function end(item, content, note, error) {
  const none = error && !content;
  const said = none ? { role: "assistant", content: note } : { role: "assistant", content, note };
  const whole = made(said);
  if (none) whole.classList.add("unanswered");
  if (error && note !== "stopped") whole.classList.add("wrong");
  follow(() => item.replaceWith(whole));
  if (!none) messages.push(said);
  keepConversation();
  if (error?.status === 401) openSettings("key");
}

function send() {
  const content = text.value.trim();
  if (!content || running) return;
  text.value = "";
  list.querySelector(".unanswered")?.remove();
  if (messages.at(-1)?.role === "user") messages.pop(), list.lastElementChild.remove(); // had no answer
  messages.push({ role: "user", content });
  show(messages.at(-1));
  keepConversation();
  ask();
}

function restart() {
  running?.abort();
  messages = [];
  redraw();
  keepConversation();
  text.focus();
}

/** Asks for the settings, with the focus on one of them. */
function openSettings(name = "system") {
  if (dialog.open) return;
  const fields = dialog.querySelector("form").elements;
  for (const [field, value] of Object.entries({ ...settings, key: key() })) if (fields[field]) fields[field].value = value;
  dialog.returnValue = "";
  dialog.showModal();
  fields[name].focus();
}

dialog.addEventListener("close", () => {
  if (dialog.returnValue !== "save") return; // Escape leaves all as it was
  const { key: secret, ...found } = Object.fromEntries(new FormData(dialog.querySelector("form")));
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) found[name] = found[name] === "" ? "" : Number(found[name]);
  settings = { ...DEFAULTS, ...found };
  keep(sessionStorage, "key", secret);
  keep(localStorage, "settings", settings);
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
byId("open-settings").addEventListener("click", () => openSettings());
window.addEventListener("storage", () => (settings = { ...DEFAULTS, ...stored(localStorage, "settings") })); // another tab's
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  const pressed = (letter) => event.altKey && (event.key === letter || event.code === `Key${letter.toUpperCase()}`);
  if (event.key === "Escape" && !dialog.open && !event.isComposing) running?.abort();
  if (!pressed("n") && !pressed("s")) return;
  event.preventDefault(); // Option makes other letters of them
  if (!dialog.open) pressed("n") ? restart() : openSettings();
});
redraw();
greet();
