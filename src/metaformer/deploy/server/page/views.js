// What is shown of a prediction: one class for each task.
//
// A view has `panel` and `controls` (elements or null), `headline`, `detail`, `summary` (for screen readers), `lines`
// (below a saved image), `at(x, y)` (the row under the pointer) and `paint`. Rows are what can be explained.

import { make, percent, plural, slider } from "./dom.js";
import { decodeLabels, LabelMap } from "./labels.js";
import { Objects } from "./objects.js";
import { Rows } from "./rows.js";

const IN_FILE = 5; // rows below a saved image of a classification

/** Classes as bars, best first. */
class Classification {
  static async create(model, { prediction }, hooks) {
    return new Classification(model, prediction, hooks);
  }

  constructor(model, prediction, hooks) {
    this.list = prediction.classes.map(({ name, index, score }, rank) => ({
      key: `class ${index}`, index, name, share: score, value: percent(score), strong: rank === 0,
    }));
    const [best] = this.list;
    this.headline = best?.name ?? "no class";
    this.detail = best ? `${best.value} sure, of ${plural(model.classes.length, "class", "classes")}` : "";
    this.summary = `Predicted ${this.headline}, ${best?.value ?? ""}`;
    this.rows = new Rows(this.list, hooks);
    this.panel = this.rows.element;
    this.controls = null;
  }

  get lines() {
    return this.list.slice(0, IN_FILE);
  }

  at() {
    return null;
  }

  paint() {}
}

/** Every class with its score and its threshold; those that pass first. */
class Multilabel {
  static async create(model, { prediction }, hooks) {
    return new Multilabel(model, prediction, hooks);
  }

  constructor(model, prediction, hooks) {
    this.list = prediction.classes.map(({ name, index, score, threshold }) => {
      const passes = score >= threshold;
      return {
        key: `class ${index}`, index, name, share: score, value: percent(score), strong: passes, tick: threshold,
        tickTitle: `threshold ${percent(threshold)}`,
        note: `${passes ? "predicted" : "not predicted"}, threshold ${percent(threshold)}`,
      };
    });
    this.list.sort((a, b) => b.strong - a.strong || b.share - a.share);
    const passing = this.list.filter((row) => row.strong);
    this.headline = passing.length ? passing.map((row) => `\u2068${row.name}\u2069`).join(", ") : "none";
    this.detail = `${passing.length} of ${plural(this.list.length, "class", "classes")} pass, each by its own threshold`;
    this.summary = `Predicted: ${this.headline}`;
    this.rows = new Rows(this.list, { ...hooks, shown: Math.max(12, passing.length) });
    const sample = make("span", { class: "sample", "aria-hidden": "true" });
    this.panel = make("div", {}, this.rows.element, make("p", { class: "note" }, sample, "threshold of the class"));
    this.controls = null;
  }

  get lines() {
    return this.list.slice(0, Math.max(IN_FILE, this.list.filter((row) => row.strong).length));
  }

  at() {
    return null;
  }

  paint() {}
}

/** The class of each pixel as a veil over the image. */
class Segmentation {
  static async create(model, { prediction, image }, hooks) {
    const labels = await decodeLabels(prediction.labels, model.classes.length > 256);
    return new Segmentation(model, prediction, image, labels, hooks);
  }

  constructor(model, prediction, image, labels, hooks) {
    this.list = prediction.classes.map(({ name, index, color, share }) => ({
      key: `class ${index}`, index, name, share, value: percent(share), color, strong: true,
    }));
    this.byIndex = new Map(this.list.map((row) => [row.index, row]));
    this.map = new LabelMap(labels, new Map(this.list.map((row) => [row.index, row.color])), image);
    this.opacity = 0.6;
    this.headline = plural(this.list.length, "class", "classes");
    this.detail = `of ${model.classes.length.toLocaleString("en")} that the network knows, by their share of the image`;
    this.summary = `Segments: ${this.list.map((row) => `${row.name} ${row.value}`).join(", ")}`;
    this.rows = new Rows(this.list, hooks);
    this.panel = this.rows.element;
    this.controls = slider("Opacity", this.opacity, (value) => `${Math.round(100 * value)}%`, (value) => {
      this.opacity = value;
      hooks.changed();
    });
  }

  get lines() {
    return this.list.slice(0, 12);
  }

  at(x, y) {
    return this.byIndex.get(this.map.at(x, y)) ?? null;
  }

  paint(context, scale, unit, { width, height }, lit, hot) {
    const row = this.list.find(({ key }) => key === lit);
    this.map.paint(context, width, height, unit, hot ? 0 : this.opacity, row?.index ?? null);
  }
}

/** Objects as boxes and masks. */
class Detection {
  static async create(model, { prediction, image }, hooks) {
    return new Detection(model, prediction, image, hooks);
  }

  constructor(model, prediction, image, hooks) {
    this.hooks = hooks;
    this.objects = new Objects(prediction.objects, image);
    this.list = prediction.objects.map(({ name, index, score, box, color }, at) => ({
      key: `object ${at}`, at, index, box, name, share: score, value: percent(score), color, strong: true,
    }));
    this.score = model.draw_score ?? 0.5;
    this.overlapping = false;
    this.rows = new Rows([], { ...hooks, shown: 20 });
    this.panel = this.rows.element;
    const all = make("input", { type: "checkbox", on: { change: () => this.filter({ overlapping: all.checked }) } });
    this.controls = make(
      "div", {},
      slider("Score", this.score, (value) => value.toFixed(2), (value) => this.filter({ score: value })),
      make("label", { class: "check" }, all, make("span", { text: "Show overlapping boxes" })),
    );
    this.select();
  }

  filter(change) {
    Object.assign(this, change);
    this.select();
    this.hooks.changed();
  }

  /** The objects of the score and more; of two that overlap, the better one. */
  select() {
    const enough = this.list.filter((row) => row.share >= this.score);
    this.visible = this.overlapping ? enough : this.objects.distinct(enough);
    this.rows.update(this.visible);
    const counts = new Map();
    for (const { name } of this.visible) counts.set(name, (counts.get(name) ?? 0) + 1);
    this.headline = plural(this.visible.length, "object", "objects");
    this.detail = [...counts].map(([name, count]) => `\u2068${name}\u2069${count > 1 ? ` × ${count}` : ""}`).join(" · ");
    if (!this.visible.length) {
      this.detail = this.list.length
        ? `The best score is ${this.list[0].share.toFixed(2)}: lower the slider to see it.`
        : "Nothing here that the network knows, at any score.";
    }
    this.summary = `${this.headline}: ${this.detail}`;
  }

  get lines() {
    return [];
  }

  at(x, y) {
    return this.objects.at(this.visible, x, y);
  }

  paint(context, scale, unit, size, lit, hot) {
    this.objects.paint(context, this.visible, scale, unit, lit, hot);
  }
}

/** The view of each task. */
export const VIEWS = { classify: Classification, multilabel: Multilabel, segment: Segmentation, detect: Detection };
