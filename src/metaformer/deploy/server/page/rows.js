// The list beside the image: one button for each class or object.

import { make, named } from "./dom.js";

const SHOWN = 12; // rows before "Show all"

/**
 * A list of rows {key, name, share, value, color, tick, strong, note, index, box}.
 *
 * `light(key | null)` is called as the pointer or the focus comes and goes, `choose(row)` on a click.
 */
export class Rows {
  constructor(rows, { light, choose, shown = SHOWN, hint }) {
    this.light = light;
    this.choose = choose;
    this.hint = hint;
    this.list = make("ol", { class: "rows" });
    this.more = make("button", { type: "button", class: "link more", on: { click: () => this.showAll() } });
    this.element = make("div", {}, this.list, this.more);
    this.shown = shown;
    this.buttons = new Map();
    this.update(rows);
  }

  /** Show other rows; those that stay keep their elements, and so the focus. */
  update(rows) {
    const visible = rows.slice(0, this.shown);
    const items = visible.map((row) => this.buttons.get(row.key)?.parentElement ?? this.item(row));
    const same = items.length === this.list.children.length && items.every((item, at) => item === this.list.children[at]);
    if (!same) this.list.replaceChildren(...items);
    this.rows = rows;
    this.more.hidden = rows.length <= this.shown;
    this.more.textContent = `Show all ${rows.length.toLocaleString("en")}`;
  }

  showAll() {
    const first = this.shown;
    this.shown = Infinity;
    this.update(this.rows);
    this.buttons.get(this.rows[first].key).focus();
  }

  item(row) {
    const chip = row.color ? make("span", { class: "chip", "aria-hidden": "true" }) : null;
    if (chip) chip.style.backgroundColor = row.color;
    const fill = make("span", { class: "fill" });
    fill.style.setProperty("--share", row.share);
    const track = make("span", { class: "track", "aria-hidden": "true" }, fill);
    if (row.tick !== undefined) {
      const tick = make("span", { class: "tick", title: row.tickTitle });
      tick.style.setProperty("--tick", row.tick);
      track.append(tick);
    }
    const button = make(
      "button",
      {
        type: "button",
        class: row.strong ? "row strong" : "row",
        "aria-pressed": "false",
        title: this.hint ?? null,
        on: {
          pointerenter: () => this.light(row.key),
          pointerleave: () => this.light(null),
          focus: () => this.light(row.key),
          blur: () => this.light(null),
          click: () => this.choose(row),
        },
      },
      make("span", { class: "name" }, chip, named(row.name, { title: row.name })),
      make("span", { class: "value", text: row.value }),
      track,
      row.note ? make("span", { class: "hidden", text: row.note }) : null,
    );
    this.buttons.set(row.key, button);
    return make("li", {}, button);
  }

  /** Mark what is under the pointer and what is explained. */
  mark(lit, chosen) {
    for (const [key, button] of this.buttons) {
      button.classList.toggle("lit", key === lit);
      button.setAttribute("aria-pressed", String(key === chosen));
    }
  }
}
