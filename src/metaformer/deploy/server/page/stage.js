// The image and what is drawn on it, on the screen and as a file.

const LARGEST = 8; // times that small images are enlarged
const FILE_SIDES = [1024, 4096]; // longest side of a saved image: between these
const DESIGN_SIDE = 640; // longest side of the image for which lines and text have their size
const BAR = { row: 30, margin: 18, height: 6 };

/** A canvas that fits its frame, and the pointer in pixels of the image. */
export class Stage {
  constructor(canvas, frame) {
    this.canvas = canvas;
    this.frame = frame;
    this.image = null;
    new ResizeObserver(() => this.fit()).observe(frame);
  }

  /** Show an image, an ImageBitmap or null, in the frame of a size [width, height]. */
  show(image, size) {
    this.image = image;
    this.size = size;
    this.canvas.hidden = !size;
    this.layers = () => {};
    this.fit();
  }

  /** Draw on the image: `layers(context, scale, unit)` with pixels of the canvas for one of the image and of the design. */
  paint(layers) {
    this.layers = layers;
    this.draw();
  }

  fit() {
    if (!this.size) return;
    const [width, height] = this.size;
    const style = getComputedStyle(this.frame);
    const room = {
      width: this.frame.clientWidth - 2 * parseFloat(style.paddingLeft),
      height: this.frame.clientHeight - 2 * parseFloat(style.paddingTop),
    };
    const scale = Math.min(room.width / width, room.height / height, LARGEST);
    this.canvas.style.width = `${Math.max(Math.round(width * scale), 1)}px`;
    this.canvas.style.height = `${Math.max(Math.round(height * scale), 1)}px`;
    this.density = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(Math.round(width * scale * this.density), 1);
    this.canvas.height = Math.max(Math.round(height * scale * this.density), 1);
    this.draw();
  }

  draw() {
    if (!this.size) return;
    const context = this.canvas.getContext("2d");
    this.compose(context, this.canvas.width, this.canvas.height, this.density);
  }

  compose(context, width, height, unit) {
    context.imageSmoothingQuality = "high";
    context.fillStyle = "#888";
    context.fillRect(0, 0, width, height);
    if (this.image) context.drawImage(this.image, 0, 0, width, height);
    context.save();
    this.layers(context, width / this.size[0], unit, { width, height });
    context.restore();
  }

  /** The pixel of the image under a pointer event. */
  pixel(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.size[0];
    const y = ((event.clientY - box.top) / box.height) * this.size[1];
    return [Math.min(Math.max(x, 0), this.size[0] - 1e-3), Math.min(Math.max(y, 0), this.size[1] - 1e-3)];
  }

  /** The drawn image as a PNG, with rows {name, value, share, color, tick, strong} below it. */
  async file(rows) {
    const [width, height] = this.size;
    const longest = Math.max(width, height);
    const scale = Math.min(Math.max(longest, FILE_SIDES[0]), FILE_SIDES[1]) / longest;
    const [across, down] = [Math.round(width * scale), Math.round(height * scale)];
    const unit = (longest * scale) / DESIGN_SIDE;
    const below = rows.length ? (rows.length * BAR.row + 2 * BAR.margin) * unit : 0;
    const canvas = new OffscreenCanvas(across, Math.round(down + below));
    const context = canvas.getContext("2d");
    this.compose(context, across, down, unit);
    if (rows.length) {
      context.fillStyle = "#fff";
      context.fillRect(0, down, across, below + 1);
      context.translate(0, down);
      context.scale(unit, unit);
      rows.forEach((row, at) => drawRow(context, row, BAR.margin + at * BAR.row, across / unit));
    }
    return canvas.convertToBlob({ type: "image/png" });
  }
}

function drawRow(context, row, top, width) {
  const [left, right] = [BAR.margin, width - BAR.margin];
  context.font = `${row.strong ? 600 : 400} 13px system-ui, sans-serif`;
  context.textBaseline = "alphabetic";
  context.fillStyle = "#1d2129";
  context.textAlign = "right";
  context.fillText(row.value, right, top + 13);
  context.textAlign = "left";
  context.fillText(shortened(context, row.name, right - left - 80), left, top + 13);
  context.fillStyle = "#e7e8ec";
  context.fillRect(left, top + 18, right - left, BAR.height);
  context.fillStyle = row.color ?? (row.strong ? "#2956c8" : "#9aa3b5");
  context.fillRect(left, top + 18, (right - left) * row.share, BAR.height);
  if (row.tick === undefined) return;
  context.fillStyle = "#1d2129";
  context.fillRect(left + (right - left) * row.tick - 0.75, top + 15, 1.5, BAR.height + 6);
}

/** A text cut to a width in pixels of the context. */
export function shortened(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const letters = [...text];
  let [fits, long] = [0, letters.length];
  while (long - fits > 1) {
    const middle = (fits + long) >> 1;
    if (context.measureText(`${letters.slice(0, middle).join("")}…`).width <= width) fits = middle;
    else long = middle;
  }
  return `${letters.slice(0, fits).join("")}…`;
}
