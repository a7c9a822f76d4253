// Heat maps: a color scale that is even to the eye, and the picture of a map in it.

const LEVELS = 256;
const SCREEN = 1280; // longest side of a picture, in pixels

/** OKLCH to linear red, green and blue; values outside 0 … 1 are no colors of a screen. */
function linear(lightness, chroma, hue) {
  const a = chroma * Math.cos(hue);
  const b = chroma * Math.sin(hue);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
}

const encoded = (x) => Math.round(255 * (x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055));

/** Violet to red to yellow; lightness grows evenly, chroma is as strong as the screen has it. */
function color(level) {
  const lightness = 0.2 + 0.76 * level;
  const hue = ((290 + 175 * level) * Math.PI) / 180;
  let chroma = 0.21;
  let rgb = linear(lightness, chroma, hue);
  while (chroma > 0 && rgb.some((x) => x < 0 || x > 1)) {
    chroma -= 0.004;
    rgb = linear(lightness, Math.max(chroma, 0), hue);
  }
  return rgb.map((x) => encoded(Math.min(Math.max(x, 0), 1)));
}

/** The 256 colors of the scale. */
export const SCALE = Array.from({ length: LEVELS }, (_, level) => color(level / (LEVELS - 1)));

/** How much of the image a level hides: cold regions are dimmed, hot ones tinted. */
const alpha = (level) => Math.round(255 * (0.56 + 0.16 * (level / (LEVELS - 1))));

/** A canvas with the map in the colors of the scale, no larger than a screen. */
export async function heatPicture(blob) {
  const gray = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const scale = Math.min(SCREEN / Math.max(gray.width, gray.height), 1);
  const [width, height] = [gray.width, gray.height].map((side) => Math.max(Math.round(side * scale), 1));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(gray, 0, 0, width, height);
  const picture = context.getImageData(0, 0, width, height);
  const pixels = picture.data;
  for (let at = 0; at < pixels.length; at += 4) {
    const level = pixels[at];
    const [red, green, blue] = SCALE[level];
    pixels[at] = red;
    pixels[at + 1] = green;
    pixels[at + 2] = blue;
    pixels[at + 3] = alpha(level);
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

/** Draw the scale into a canvas one pixel high. */
export function drawScale(canvas) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(LEVELS, 1);
  SCALE.forEach((rgb, level) => picture.data.set([...rgb, 255], 4 * level));
  context.putImageData(picture, 0, 0);
}
