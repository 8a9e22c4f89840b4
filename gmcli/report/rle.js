// COCO compressed RLE to a mask. Source: rleFrString and rleDecode in maskApi.c of cocodataset/cocoapi.

// Returns Uint8Array [height * width], row by row, 1 inside; throws where the counts do not describe such a mask.
function decodeRle(counts, width, height) {
  const mask = new Uint8Array(width * height);
  const runs = [];
  let at = 0;
  let pixel = 0;
  while (at < counts.length) {
    let value = 0;
    let shift = 0;
    let code = 0;
    do {
      if (at >= counts.length || shift > 25) throw new RangeError("bad RLE");
      code = counts.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    if (value < 0 || pixel + value > mask.length) throw new RangeError("bad RLE");
    // Runs go down the columns; every second one is foreground.
    if (runs.length % 2) {
      for (let p = pixel; p < pixel + value; p++) mask[(p % height) * width + Math.floor(p / height)] = 1;
    }
    pixel += value;
    runs.push(value);
  }
  if (pixel !== mask.length) throw new RangeError("bad RLE");
  return mask;
}
