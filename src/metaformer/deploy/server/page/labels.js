// Label maps: decoded, drawn as a veil of colors, and asked what is where.

const SCREEN = 1280; // longest side of the veil, in pixels
const BLACK = "#000000"; // the color of what overlays leave out, the background
const DIM = 0.22; // opacity of the other classes while one is lit

const MIDDLES = [[0, -0.5], [0.5, 0], [0, 0.5], [-0.5, 0]]; // of the sides between four centers: top, right, bottom, left
// Lines between the sides, by which of the centers are inside: bits for top left, top right, bottom right, bottom left.
const SEGMENTS = [
  [], [[3, 0]], [[0, 1]], [[3, 1]], [[1, 2]], [[3, 0], [1, 2]], [[0, 2]], [[3, 2]],
  [[2, 3]], [[0, 2]], [[0, 1], [2, 3]], [[1, 2]], [[1, 3]], [[0, 1]], [[0, 3]], [],
];

/** The classes of a PNG in a data URL: {width, height, classes}; `wide` where red and green are one number. */
export async function decodeLabels(url, wide) {
  const binary = atob(url.slice(url.indexOf(",") + 1));
  const blob = new Blob([Uint8Array.from(binary, (letter) => letter.charCodeAt(0))], { type: "image/png" });
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const classes = new Uint16Array(width * height);
  for (let at = 0; at < classes.length; at += 1) {
    classes[at] = wide ? 256 * pixels[4 * at] + pixels[4 * at + 1] : pixels[4 * at];
  }
  return { width, height, classes };
}

/** Every `step`-th pixel, so that the veil is no larger than a screen. */
function reduced({ width, height, classes }) {
  const step = Math.ceil(Math.max(width, height) / SCREEN);
  if (step === 1) return { width, height, classes };
  const [across, down] = [Math.ceil(width / step), Math.ceil(height / step)];
  const small = new Uint16Array(across * down);
  for (let y = 0; y < down; y += 1) {
    for (let x = 0; x < across; x += 1) small[y * across + x] = classes[y * step * width + x * step];
  }
  return { width: across, height: down, classes: small };
}

export class LabelMap {
  constructor(labels, colors, image) {
    this.labels = labels;
    this.small = reduced(labels);
    this.image = image;
    this.colors = new Map([...colors].map(([index, color]) => [index, parse(color)]));
    this.canvas = new OffscreenCanvas(this.small.width, this.small.height);
    this.drawn = null;
    this.outlines = new Map();
  }

  /** The class at a pixel of the image. */
  at(x, y) {
    const { width, height, classes } = this.labels;
    const column = Math.floor((x / this.image.width) * width);
    return classes[Math.floor((y / this.image.height) * height) * width + column];
  }

  /** Draw the veil; `lit` is a class that stands out, or null. */
  paint(context, width, height, unit, opacity, lit) {
    this.veil(opacity, lit);
    context.drawImage(this.canvas, 0, 0, width, height);
    if (lit === null) return;
    context.strokeStyle = "rgb(0 0 0 / 0.55)";
    context.lineWidth = 3.5 * unit;
    context.lineJoin = context.lineCap = "round";
    const border = new Path2D();
    border.addPath(this.outline(lit), new DOMMatrix([width / this.small.width, 0, 0, height / this.small.height, 0, 0]));
    context.stroke(border);
    context.strokeStyle = "#fff";
    context.lineWidth = 1.5 * unit;
    context.stroke(border);
  }

  /** Color the pixels, if anything has changed. */
  veil(opacity, lit) {
    const state = `${opacity} ${lit}`;
    if (state === this.drawn) return;
    this.drawn = state;
    const table = new Map();
    for (const [index, { rgb, black }] of this.colors) {
      const shown = lit === null ? opacity : index === lit ? opacity && Math.max(opacity, 0.35) : opacity * DIM;
      table.set(index, (Math.round(255 * (black ? 0 : shown)) << 24) | rgb);
    }
    const { width, height, classes } = this.small;
    const drawn = new ImageData(width, height);
    const pixels = new Uint32Array(drawn.data.buffer);
    let [last, value] = [-1, 0];
    for (let at = 0; at < pixels.length; at += 1) {
      if (classes[at] !== last) {
        last = classes[at];
        value = table.get(last) ?? 0;
      }
      pixels[at] = value;
    }
    this.canvas.getContext("2d").putImageData(drawn, 0, 0);
  }

  /** The outline of a class in pixels of the veil, made when it is first seen. */
  outline(index) {
    if (!this.outlines.has(index)) this.outlines.set(index, this.march(index));
    return this.outlines.get(index);
  }

  /** Marching squares between the centers of pixels. */
  march(index) {
    const { width, height, classes } = this.small;
    const path = new Path2D();
    const inside = (x, y) => Number(x >= 0 && y >= 0 && x < width && y < height && classes[y * width + x] === index);
    for (let y = 0; y <= height; y += 1) {
      for (let x = 0; x <= width; x += 1) {
        const corners = inside(x - 1, y - 1) | (inside(x, y - 1) << 1) | (inside(x, y) << 2) | (inside(x - 1, y) << 3);
        for (const [from, to] of SEGMENTS[corners]) {
          path.moveTo(x + MIDDLES[from][0], y + MIDDLES[from][1]);
          path.lineTo(x + MIDDLES[to][0], y + MIDDLES[to][1]);
        }
      }
    }
    return path;
  }
}

/** "#rrggbb" as a number whose bytes are red, green and blue in memory. */
function parse(color) {
  const number = parseInt(color.slice(1), 16);
  return { rgb: ((number & 255) << 16) | (number & 0xff00) | (number >> 16), black: color === BLACK };
}
