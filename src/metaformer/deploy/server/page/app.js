// The page: takes an image, asks the server, and shows what it answers.

import * as api from "./api.js";
import { byId, bytes, make, milliseconds, plural } from "./dom.js";
import { drawScale, heatImage, setScale } from "./heat.js";
import { Stage } from "./stage.js";
import { VIEWS } from "./views.js";

const LATE = 200; // milliseconds before a running request shows
const KNOWN = 60; // class names of the introduction
const PARTS = [
  ["decode", "Decode"],
  ["queue", "Queue"],
  ["network", "Network"],
  ["encode", "Encode"],
];

const stage = new Stage(byId("canvas"), byId("well"));
let served = { models: [], max_upload: Infinity, max_pixels: Infinity };
let model = null; // one of served.models
let image = null; // the File or Blob that is shown
let shown = null; // {answer, roundTrip, view} of it
let running = null; // the AbortController of the request for it
let lit = null; // key of the row under the pointer
let heat = { key: null, images: new Map(), running: null }; // of the row that is chosen

// Models

async function start() {
  listen();
  await loadModels();
}

async function loadModels() {
  try {
    served = await api.models(waiting());
  } catch (error) {
    say(sentence(error.message), loadModels);
    return;
  }
  say("");
  setScale(served.heat_colors);
  drawScale(byId("scale"));
  const options = served.models.map(({ name, title }) => make("option", { value: name, text: `${name} · ${title}` }));
  byId("model").replaceChildren(...options);
  const wanted = model ? address(model) : location.hash;
  chooseModel(served.models.find((other) => address(other) === wanted) ?? served.models[0]);
}

/** The part of the page's address that chooses a model. */
const address = ({ name }) => `#${encodeURIComponent(name)}`;

function chooseModel(next) {
  model = next ?? null;
  if (!model) {
    say("The server has no model.");
    return;
  }
  const several = served.models.length > 1;
  byId("model").value = model.name;
  for (const id of ["model", "model-label"]) byId(id).hidden = !several;
  byId("only-model").textContent = several ? "" : model.name;
  byId("task").textContent = several ? "" : model.title;
  document.title = `${model.name} · metaformer`;
  introduce();
  if (image) predict();
}

/** What the chosen network knows, until there is a result. */
function introduce() {
  const { classes, title } = model;
  byId("intro-text").textContent =
    `${title[0].toUpperCase()}${title.slice(1)} with ${model.name}, a network that knows ` +
    `${plural(classes.length, "class", "classes")}. Give it an image, or begin with an example.`;
  const names = classes.slice(0, KNOWN).map((name) => make("bdi", { text: name }));
  if (classes.length > KNOWN) names.push(make("span", { text: `and ${(classes.length - KNOWN).toLocaleString("en")} more` }));
  byId("knows").replaceChildren(...names);
  byId("knows").hidden = false;
}

// Images

/** Show a file and ask what it holds. */
async function open(file) {
  running?.abort();
  image = file;
  clear();
  if (file.size > served.max_upload) {
    stage.show(null, null);
    refuse(`This file has ${bytes(file.size)}; the server takes up to ${bytes(served.max_upload)}.`);
    image = null;
    return;
  }
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => null);
  if (image !== file) return;
  byId("empty").hidden = true;
  stage.show(bitmap, bitmap && [bitmap.width, bitmap.height]);
  about(bitmap && [bitmap.width, bitmap.height]);
  await predict();
}

function about(size) {
  const parts = [size && `${size[0].toLocaleString("en")} × ${size[1].toLocaleString("en")} pixels`, bytes(image.size)];
  byId("about").replaceChildren(make("bdi", { text: image.name || "pasted image" }), ` · ${parts.filter(Boolean).join(" · ")}`);
}

/** Forget the result that is shown. */
function clear() {
  shown = null;
  lit = null;
  heat.running?.abort();
  heat = { key: null, images: new Map(), running: null };
  byId("result").hidden = true;
  byId("intro").hidden = false;
  byId("heat").hidden = true;
  byId("tip").hidden = true;
  byId("controls").replaceChildren();
  byId("hint").hidden = stage.size !== undefined && stage.size !== null;
  byId("canvas").setAttribute("aria-label", "The image");
  say("");
}

/** Say why there is no result; without an image that can be drawn the invitation comes back. */
function refuse(text, again) {
  clear();
  if (!stage.image) {
    byId("empty").hidden = byId("hint").hidden = false;
    stage.show(null, null);
    byId("about").replaceChildren();
  } else {
    stage.paint(() => {});
  }
  say(text, again, image.name ?? "");
}

async function predict() {
  if (!model || !image) return;
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const [asked, file] = [model, image];
  clear();
  const done = working();
  try {
    const result = await api.predict(asked.name, file, signal, waiting());
    const view = await VIEWS[result.answer.task].create(asked, result.answer, { light, choose, changed, hint: hint(asked) });
    if (signal.aborted) return;
    present(result, view);
  } catch (error) {
    if (signal.aborted) return;
    refuse(sentence(error.message), retry(error, predict));
  } finally {
    done();
  }
}

/** Another try where that may help: not where the image is at fault. */
const retry = (error, again) => (error.status >= 400 && error.status < 500 ? null : again);

const hint = (asked) => (asked.explain ? "Show where the network looked" : null);

function present(result, view) {
  const { image: size, prediction } = result.answer;
  shown = { ...result, view };
  stage.show(stage.image, [size.width, size.height]);
  about([size.width, size.height]);
  if (!stage.image) say("This browser cannot show files of this kind; the result is the server's.");
  for (const id of ["empty", "hint", "intro"]) byId(id).hidden = true;
  byId("result").hidden = false;
  byId("panel").replaceChildren(view.panel);
  byId("controls").replaceChildren(...(view.controls ? [view.controls] : []));
  byId("canvas").classList.toggle("live", Boolean(prediction.objects ?? prediction.labels));
  warm(false);
  times(result);
  changed();
}

/** Draw anew, after a slider has moved, the pointer has, or a result has come. */
function changed() {
  const { view } = shown;
  byId("headline").textContent = view.headline;
  byId("detail").textContent = view.detail;
  byId("canvas").setAttribute("aria-label", view.summary);
  view.rows.mark(lit, heat.key);
  const drawn = heat.images.get(heat.key) ?? null;
  stage.paint((context, scale, unit, size) => {
    if (drawn) {
      context.globalAlpha = Math.min(2 * (view.opacity ?? 1), 1);
      context.drawImage(drawn, 0, 0, size.width, size.height);
      context.globalAlpha = 1;
    }
    view.paint(context, scale, unit, size, lit ?? heat.key, Boolean(drawn));
  });
}

// Pointer, keys

function light(key) {
  if (lit === key || !shown) return;
  lit = key;
  changed();
}

function point(event) {
  if (!shown) return;
  const row = event.type === "pointerleave" ? null : shown.view.at(...stage.pixel(event));
  light(row?.key ?? null);
  const tip = byId("tip");
  tip.hidden = !row;
  if (!row) return;
  tip.replaceChildren(make("bdi", { text: row.name }), ` ${row.value}`);
  const frame = byId("well").getBoundingClientRect();
  tip.style.setProperty("--x", `${event.clientX - frame.left}px`);
  tip.style.setProperty("--y", `${event.clientY - frame.top}px`);
  tip.classList.toggle("before", event.clientX - frame.left > frame.width / 2);
}

// What is chosen, and where the network looked for it

async function choose(row) {
  const again = heat.key === row.key;
  cool();
  if (again) return;
  heat.key = row.key;
  changed();
  if (!model.explain) return;
  heat.running = new AbortController();
  const { signal } = heat.running;
  if (!heat.images.has(row.key)) {
    const done = working();
    try {
      const blob = await api.explain(model.name, image, row, signal, waiting());
      heat.images.set(row.key, await heatImage(blob));
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 501) model.explain = false;
      cool();
      say(sentence(error.message), retry(error, () => choose(row)));
    } finally {
      done();
    }
    if (signal.aborted || heat.key !== row.key) return;
  }
  heat.running = null;
  warm(true);
  byId("heat-text").replaceChildren("Where the network looked for ", make("bdi", { text: row.name }));
  changed();
}

/** Take the heat away. */
function cool() {
  if (heat.running) {
    heat.running.abort();
    heat.running = null;
    say("");
  }
  heat.key = null;
  warm(false);
  if (shown) changed();
}

/** Show the scale of the heat, or how to get it. */
function warm(on) {
  byId("heat").hidden = !on;
  byId("hint-explain").hidden = on || !model?.explain || !shown?.view.list.length;
}

// Messages

/** Show a message, about a file if one is named, with a button for another try. */
function say(text, again = null, name = "") {
  byId("message-name").textContent = name;
  byId("message-text").textContent = text;
  byId("message").hidden = !text;
  byId("again").hidden = !again;
  byId("again").onclick = again && (() => again());
}

/** Says what is waited for. */
function waiting() {
  const said = {
    busy: ({ text, seconds }) => `${sentence(text)} Trying again in ${seconds} s …`,
    loading: () => "The server is loading its networks …",
    away: () => "The server does not answer. As soon as it is back, this goes on by itself.",
    back: () => "The server is back.",
  };
  let before = null;
  return (state) => {
    if (state || before) say(state ? said[state.kind](state) : "");
    before = state;
  };
}

/** A server's line as a sentence of the page. */
const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");

/** Show that a request runs, if it takes long; returns what ends it. */
let active = 0;
function working() {
  active += 1;
  const timer = setTimeout(() => {
    byId("progress").hidden = false;
  }, LATE);
  return () => {
    clearTimeout(timer);
    active -= 1;
    if (!active) byId("progress").hidden = true;
  };
}

/** How long each part took, as a bar and as a table. */
function times({ answer, roundTrip }) {
  const spent = answer.milliseconds;
  const rows = PARTS.filter(([key]) => spent[key] !== undefined).map(([key, title]) => [key, title, spent[key]]);
  rows.push(["transfer", "Transfer", Math.max(roundTrip - spent.total, 0)]);
  const whole = rows.reduce((sum, [, , value]) => sum + value, 0) || 1;
  const bar = make("div", { class: "parts", "aria-hidden": "true" });
  const list = make("dl");
  for (const [key, title, value] of rows) {
    const part = make("span", { class: `part ${key}` });
    part.style.setProperty("--share", value / whole);
    bar.append(part);
    const swatch = make("span", { class: `swatch ${key}`, "aria-hidden": "true" });
    list.append(make("div", {}, make("dt", {}, swatch, title), make("dd", { text: milliseconds(value) })));
  }
  list.append(make("div", { class: "whole" }, make("dt", { text: "Round trip" }), make("dd", { text: milliseconds(roundTrip) })));
  byId("times").replaceChildren(make("h2", { text: "Time" }), bar, list);
}

// Files

function save(blob, suffix) {
  const url = URL.createObjectURL(blob);
  const stem = (image.name || "image").replace(/\.[^.]*$/, "");
  const link = make("a", { href: url, download: `${stem}-${model.task}${suffix}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** The answer with line breaks, lists of numbers in one line each. */
function readable({ answer }) {
  const lists = /\[\n\s*([-\d.eE+,\s]+?)\n\s*\]/g; // no text of JSON has a bare line break
  return JSON.stringify(answer, null, 2).replace(lists, (_, list) => `[${list.replace(/\s+/g, " ")}]`);
}

async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = make("textarea", { class: "hidden" }); // plain HTTP from another machine has no clipboard
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

function flash(button, text) {
  const before = button.dataset.label ?? button.textContent;
  button.dataset.label = before;
  button.textContent = text;
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => {
    button.textContent = before;
  }, 1600);
}

// Listeners

function listen() {
  const picker = byId("file");
  for (const id of ["pick", "open"]) byId(id).addEventListener("click", () => picker.click());
  picker.addEventListener("change", () => {
    if (picker.files.length) open(picker.files[0]);
    picker.value = "";
  });
  for (const button of document.querySelectorAll("[data-example]")) {
    button.addEventListener("click", () => example(button.dataset.example));
  }
  byId("model").addEventListener("change", (event) => {
    const next = served.models.find(({ name }) => name === event.target.value);
    history.replaceState(null, "", address(next));
    chooseModel(next);
  });
  byId("theme").addEventListener("click", toggleTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  showTheme();
  drops();
  document.addEventListener("paste", (event) => take(event.clipboardData));
  const canvas = byId("canvas");
  for (const kind of ["pointermove", "pointerleave"]) canvas.addEventListener(kind, point);
  canvas.addEventListener("click", (event) => {
    const row = shown?.view.at(...stage.pixel(event));
    if (row) choose(row);
    else cool();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cool();
  });
  byId("cool").addEventListener("click", () => {
    const button = shown.view.rows.buttons.get(heat.key);
    cool();
    button?.focus();
  });
  byId("save-image").addEventListener("click", async () => save(await stage.file(shown.view.lines), ".png"));
  byId("save-json").addEventListener("click", () => save(new Blob([readable(shown)], { type: "application/json" }), ".json"));
  byId("copy-json").addEventListener("click", async (event) => {
    await copy(readable(shown));
    flash(event.target, "Copied");
  });
}

async function example(name) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  try {
    const { response } = await api.request(`static/examples/${name}`, { signal }, waiting());
    const blob = await response.blob();
    await open(new File([blob], `example-${name}`, { type: blob.type }));
  } catch (error) {
    if (signal.aborted) return;
    say(sentence(error.message), () => example(name));
  }
}

/** The first file of a drop or of the clipboard. */
function take(data) {
  const [file] = data?.files ?? [];
  if (file) open(file);
  else if (data?.types.includes("text/uri-list")) say("That is the address of an image: save the image and drop the file.");
}

function drops() {
  const root = document.documentElement;
  let depth = 0;
  const over = (by) => {
    depth = by ? depth + by : 0;
    root.classList.toggle("dragging", depth > 0);
  };
  document.addEventListener("dragenter", () => over(1));
  document.addEventListener("dragleave", () => over(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(0);
    take(event.dataTransfer);
  });
}

// Colors of the page

const isDark = () => {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

function showTheme() {
  byId("theme").setAttribute("aria-pressed", String(isDark()));
}

function toggleTheme() {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("theme", next);
  } catch {
    // storage is switched off: the choice lasts as long as the page
  }
  showTheme();
}

start();
