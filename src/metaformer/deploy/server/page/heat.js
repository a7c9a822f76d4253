// Heat maps: the image of a map in the colors that the server draws such maps in.

const LEVELS = 256;
const SCREEN = 1280; // longest side of an image, in pixels

let scale = []; // red, green and blue of each level

/** Set the colors of the scale, from 0 to 1 in equal steps, as "#rrggbb"; those between are mixed. */
export function setScale(colors) {
  const known = colors.map((text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)));
  scale = Array.from({ length: LEVELS }, (_, level) => {
    const place = (level / (LEVELS - 1)) * (known.length - 1);
    const low = Math.min(Math.floor(place), known.length - 2);
    return known[low].map((value, channel) => Math.round(value + (place - low) * (known[low + 1][channel] - value)));
  });
}

/** How much of the image a level hides: cold regions are dimmed, hot ones tinted. */
const alpha = (level) => Math.round(255 * (0.56 + 0.16 * (level / (LEVELS - 1))));

/** A canvas with the map in the colors of the scale, no larger than a screen. */
export async function heatImage(blob) {
  const gray = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const reduced = Math.min(SCREEN / Math.max(gray.width, gray.height), 1);
  const [width, height] = [gray.width, gray.height].map((side) => Math.max(Math.round(side * reduced), 1));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(gray, 0, 0, width, height);
  const found = context.getImageData(0, 0, width, height);
  const pixels = found.data;
  for (let at = 0; at < pixels.length; at += 4) {
    const level = pixels[at];
    const [red, green, blue] = scale[level];
    pixels[at] = red;
    pixels[at + 1] = green;
    pixels[at + 2] = blue;
    pixels[at + 3] = alpha(level);
  }
  context.putImageData(found, 0, 0);
  return canvas;
}

/** Draw the scale into a canvas one pixel high. */
export function drawScale(canvas) {
  const context = canvas.getContext("2d");
  const colors = context.createImageData(LEVELS, 1);
  scale.forEach((rgb, level) => colors.data.set([...rgb, 255], 4 * level));
  context.putImageData(colors, 0, 0);
}
