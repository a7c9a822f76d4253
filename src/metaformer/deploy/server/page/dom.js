// Elements from text. Names come from a server: they only ever become text nodes and attributes.

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/** An element; `text` is its text, `on` its listeners, other properties are attributes (false: left out). */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, listen] of Object.entries(value)) element.addEventListener(event, listen);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A class name, isolated from the direction of the text around it. */
export const named = (name, properties = {}) => make("bdi", { ...properties, text: name });

/** 0.987 as "98.7%". */
export const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** Milliseconds with three digits. */
export function milliseconds(value) {
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ms`;
}

/** Bytes as people read them. */
export function bytes(count) {
  if (count < 1000) return `${count} bytes`;
  return count < 1e6 ? `${(count / 1e3).toFixed(0)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

/** One noun or several: plural(2, "class", "classes") is "2 classes". */
export const plural = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** A slider with a label and its value as text. */
export function slider(label, value, format, change) {
  const output = make("output", { text: format(value) });
  const input = make("input", { type: "range", min: 0, max: 1, step: 0.01, value, "aria-valuetext": format(value) });
  input.style.setProperty("--at", value);
  input.addEventListener("input", () => {
    const now = Number(input.value);
    output.textContent = format(now);
    input.setAttribute("aria-valuetext", format(now));
    input.style.setProperty("--at", now);
    change(now);
  });
  return make("label", { class: "slider" }, make("span", { text: label }), input, output);
}
