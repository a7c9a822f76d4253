// Detected objects: masks decoded, boxes and masks drawn, and asked what is where.

import { shortened } from "./stage.js";

const OVERLAP = 0.5; // IoU above which the worse of two boxes is hidden
const SCREEN = 1600; // longest side of a decoded mask, in pixels
const LABEL = { size: 12, pad: 5, height: 19 };

/** The part of a run-length encoded mask inside a box, as a canvas in a color. */
function decodeMask({ size: [height, width], counts }, box, color) {
  const left = Math.max(Math.floor(box[0]) - 1, 0);
  const top = Math.max(Math.floor(box[1]) - 1, 0);
  const right = Math.min(Math.ceil(box[2]) + 1, width);
  const bottom = Math.min(Math.ceil(box[3]) + 1, height);
  if (right <= left || bottom <= top) return null;
  const step = Math.ceil(Math.max(right - left, bottom - top) / SCREEN);
  const [across, down] = [Math.ceil((right - left) / step), Math.ceil((bottom - top) / step)];
  const drawn = new ImageData(across, down);
  const pixels = new Uint32Array(drawn.data.buffer);
  const number = parseInt(color.slice(1), 16);
  const value = (0xff000000 | ((number & 255) << 16) | (number & 0xff00) | (number >> 16)) >>> 0;
  let at = 0;
  counts.forEach((count, turn) => {
    const end = at + count;
    while (turn % 2 && at < end) {
      const x = Math.floor(at / height);
      const last = Math.min(end, (x + 1) * height); // of this column
      if (x >= left && x < right && (x - left) % step === 0) {
        const first = Math.max(at - x * height, top);
        for (let y = first; y < Math.min(last - x * height, bottom); y += 1) {
          if ((y - top) % step === 0) pixels[((y - top) / step) * across + (x - left) / step] = value;
        }
      }
      at = last;
    }
    at = end;
  });
  const canvas = new OffscreenCanvas(across, down);
  canvas.getContext("2d").putImageData(drawn, 0, 0);
  return { canvas, pixels, left, top, step, across, down };
}

/** Intersection over union of two boxes. */
function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

/** Black or white, whichever differs more from a color. */
function ink(color) {
  const number = parseInt(color.slice(1), 16);
  const [red, green, blue] = [number >> 16, (number >> 8) & 255, number & 255].map((x) => (x / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#000" : "#fff";
}

export class Objects {
  constructor(objects, image) {
    this.objects = objects;
    this.image = image;
    this.masks = new Map();
  }

  /** The decoded mask of a row, made when it is first seen; null without masks. */
  mask(row) {
    if (!this.masks.has(row.at)) {
      const { mask, box, color } = this.objects[row.at];
      this.masks.set(row.at, mask ? decodeMask(mask, box, color) : null);
    }
    return this.masks.get(row.at);
  }

  /** Of rows in order of their scores, those that overlap no better one. */
  distinct(rows) {
    const kept = [];
    for (const row of rows) {
      if (kept.every((better) => overlap(better.box, row.box) <= OVERLAP)) kept.push(row);
    }
    return kept;
  }

  /** The row under a pixel: by mask, else the smallest box. */
  at(rows, x, y) {
    const inside = rows.filter(({ box }) => x >= box[0] && x < box[2] && y >= box[1] && y < box[3]);
    const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
    inside.sort((a, b) => area(a) - area(b));
    return inside.find((row) => this.covers(row, x, y)) ?? inside[0] ?? null;
  }

  covers(row, x, y) {
    const mask = this.mask(row);
    if (!mask) return false;
    const column = Math.floor((x - mask.left) / mask.step);
    const line = Math.floor((y - mask.top) / mask.step);
    return column >= 0 && line >= 0 && column < mask.across && line < mask.down && mask.pixels[line * mask.across + column] !== 0;
  }

  /** Draw worst first; `lit` stands out; `quiet` leaves masks and labels of the others out. */
  paint(context, rows, scale, unit, lit, quiet) {
    const order = [...rows].reverse().sort((a, b) => (a.key === lit) - (b.key === lit));
    const some = rows.some((row) => row.key === lit);
    for (const row of order) {
      const strong = row.key === lit;
      const faint = some && !strong;
      if (!quiet) this.paintMask(context, row, scale, strong ? 0.62 : faint ? 0.14 : 0.42);
      context.globalAlpha = faint ? 0.35 : 1;
      paintBox(context, row, scale, unit, strong);
    }
    const labeled = order.filter((row) => !quiet || row.key === lit).reverse();
    for (const label of placeLabels(context, labeled, scale, unit).reverse()) {
      context.globalAlpha = some && label.row.key !== lit ? 0.35 : 1;
      paintLabel(context, label, unit);
    }
    context.globalAlpha = 1;
  }

  paintMask(context, row, scale, opacity) {
    const mask = this.mask(row);
    if (!mask) return;
    context.globalAlpha = opacity;
    const { canvas, left, top, step, across, down } = mask;
    context.drawImage(canvas, left * scale, top * scale, across * step * scale, down * step * scale);
  }
}

function paintBox(context, { box, color }, scale, unit, strong) {
  const [left, top, right, bottom] = box.map((value) => value * scale);
  context.lineJoin = "round";
  context.strokeStyle = ink(color);
  context.lineWidth = (strong ? 5 : 3.4) * unit;
  context.strokeRect(left, top, right - left, bottom - top);
  context.strokeStyle = color;
  context.lineWidth = (strong ? 3 : 1.8) * unit;
  context.strokeRect(left, top, right - left, bottom - top);
}

/** Where the labels of rows go, the most important first: above their boxes, else where no other one is. */
function placeLabels(context, rows, scale, unit) {
  const { width, height: bottom } = context.canvas;
  const [pad, height] = [LABEL.pad * unit, LABEL.height * unit];
  const placed = [];
  for (const row of rows) {
    const score = `${Math.round(100 * row.share)}%`;
    context.font = font(400, unit);
    const scoreWidth = context.measureText(score).width;
    context.font = font(600, unit);
    const text = shortened(context, row.name, Math.max(width * 0.6 - scoreWidth, 40 * unit));
    const textWidth = context.measureText(text).width;
    const across = textWidth + scoreWidth + 3 * pad;
    const box = row.box.map((value) => value * scale);
    const left = Math.max(Math.min(box[0] - unit, width - across), 0);
    const tops = [box[1] - height, box[1], box[3], box[3] - height].filter((top) => top >= 0 && top + height <= bottom);
    const free = tops.find((top) => placed.every((other) => (
      left >= other.left + other.across || other.left >= left + across || Math.abs(top - other.top) >= height
    )));
    placed.push({ row, text, textWidth, score, left, top: free ?? tops[0] ?? 0, across });
  }
  return placed;
}

const font = (weight, unit) => `${weight} ${LABEL.size * unit}px system-ui, sans-serif`;

function paintLabel(context, { row, text, textWidth, score, left, top, across }, unit) {
  const [pad, height] = [LABEL.pad * unit, LABEL.height * unit];
  context.textBaseline = "middle";
  context.textAlign = "left";
  context.fillStyle = row.color;
  context.beginPath();
  context.roundRect(left, top, across, height, 3 * unit);
  context.fill();
  context.fillStyle = ink(row.color);
  context.font = font(600, unit);
  context.fillText(text, left + pad, top + height / 2 + 0.5 * unit);
  context.font = font(400, unit);
  context.fillText(score, left + 2 * pad + textWidth, top + height / 2 + 0.5 * unit);
}
