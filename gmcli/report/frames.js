// Frames and masks of a video: parsed when first shown, a few videos kept.

const INNER = [255, 106, 26, 128];
const EDGE = [255, 236, 220, 255];
const KEPT = 24;
const parsed = new Map();
const pictures = new Map();

// The video's frames and masks, null where there are none, undefined while the browser still reads the page.
function framesOf(video) {
  if (parsed.has(video)) return parsed.get(video);
  const element = byId(`v${video}`);
  if (!element || (document.readyState === "loading" && !element.nextSibling)) return undefined;
  const value = JSON.parse(element.textContent);
  keep(parsed, video, value);
  return value;
}

function keep(cache, key, value) {
  cache.set(key, value);
  if (cache.size > KEPT) cache.delete(cache.keys().next().value);
}

// Promises the picture of a frame, null where there is none.
function pictureOf(video, position) {
  const frames = framesOf(video);
  if (!frames || !frames.j[position]) return Promise.resolve(null);
  const key = `${video}/${position}`;
  if (!pictures.has(key)) {
    const picture = new Image();
    picture.src = `data:image/jpeg;base64,${frames.j[position]}`;
    keep(pictures, key, picture.decode().then(() => picture, () => null));
  }
  return pictures.get(key);
}

// The mask as a canvas of its own size: a tint with a firm edge. Null for an empty one.
function maskOf(frames, question, position) {
  const counts = frames.m[question]?.[position];
  if (!counts) return null;
  const { w, h } = frames;
  const mask = decodeRle(counts, w, h);
  const canvas = make("canvas", { width: w, height: h });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(w, h);
  for (let y = 0, at = 0; y < h; y++) {
    for (let x = 0; x < w; x++, at++) {
      if (!mask[at]) continue;
      const inner =
        x > 0 && y > 0 && x < w - 1 && y < h - 1 && mask[at - 1] && mask[at + 1] && mask[at - w] && mask[at + w];
      pixels.data.set(inner ? INNER : EDGE, 4 * at);
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Draws a frame onto a canvas as wide as `width` device pixels; `still` says whether it is still wanted once decoded.
async function paint(canvas, row, position, width, withMask, still = () => true) {
  const frames = framesOf(row.v);
  if (!frames || !frames.w) return;
  const picture = await pictureOf(row.v, position);
  if (!still()) return;
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round((width * frames.h) / frames.w));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  if (picture) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  else {
    context.fillStyle = "#3a3d42";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  const mask = withMask ? maskOf(frames, row.i, position) : null;
  if (mask) context.drawImage(mask, 0, 0, canvas.width, canvas.height);
}
