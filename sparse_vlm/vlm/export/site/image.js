// Image -> pixel values, as sparse_vlm/encoder/preprocessing.py computes them. The resizing is that of Pillow, bit for
// bit: antialiased, the weights of each output pixel rounded to 22 bits, first along rows and then along columns.

const BITS = 22;
const ONE = 2 ** BITS;
const LONGEST_SIDE = 16; // an image whose sides have a larger ratio is cropped before resizing
const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: cubic },
};

function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// Decode a file to RGBA, upright, with transparency on white and without colour management.
export async function decode(blob) {
  const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(blob, options);
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

// {data: RGBA, width, height} -> {data: Float32Array, dims: [1, 3, H, W]}, normalised.
export function preprocess(rgba, { preprocessing, aspect }) {
  const { resize: side, crop, mean, std, interpolation, resize_mode: mode } = preprocessing;
  let image = toRgb(rgba);
  if (aspect === "native") {
    const scale = crop / Math.max(image.width, image.height);
    const [width, height] = [image.width, image.height].map((length) => Math.max(1, round(length * scale)));
    return normalise(resize(image, width, height, interpolation), mean, std);
  }
  if (mode === "squash") {
    image = resize(image, side, side, interpolation);
  } else {
    image = cutLongSide(image);
    const short = Math.min(image.width, image.height);
    const [width, height] = [image.width, image.height].map((length) => Math.floor((side * length) / short));
    image = resize(image, width, height, interpolation);
  }
  const left = round((image.width - crop) / 2);
  const top = round((image.height - crop) / 2);
  return normalise(cut(image, left, top, crop, crop), mean, std);
}

// Round half to even, as Python does.
function round(value) {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

function toRgb({ data, width, height }) {
  const rgb = new Uint8Array(3 * width * height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let channel = 0; channel < 3; channel++) rgb[3 * pixel + channel] = data[4 * pixel + channel];
  }
  return { data: rgb, width, height };
}

function cutLongSide(image) {
  const longest = LONGEST_SIDE * Math.min(image.width, image.height);
  if (Math.max(image.width, image.height) <= longest) return image;
  const left = Math.floor(Math.max(0, image.width - longest) / 2);
  const top = Math.floor(Math.max(0, image.height - longest) / 2);
  return cut(image, left, top, image.width - 2 * left, image.height - 2 * top);
}

function cut(image, left, top, width, height) {
  const data = new Uint8Array(3 * width * height);
  for (let row = 0; row < height; row++) {
    const start = 3 * ((top + row) * image.width + left);
    data.set(image.data.subarray(start, start + 3 * width), 3 * row * width);
  }
  return { data, width, height };
}

function resize(image, width, height, interpolation) {
  const wide = image.width === width ? image : resample(image, width, image.height, interpolation, true);
  return wide.height === height ? wide : resample(wide, width, height, interpolation, false);
}

// Resize along rows or along columns; the other side stays.
function resample(image, width, height, interpolation, alongRows) {
  const weights = alongRows
    ? outputWeights(image.width, width, interpolation)
    : outputWeights(image.height, height, interpolation);
  const step = alongRows ? 3 : 3 * image.width;
  const data = new Uint8ClampedArray(3 * width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const { first, values } = weights[alongRows ? x : y];
      const start = 3 * (alongRows ? y * image.width + first : first * image.width + x);
      for (let channel = 0; channel < 3; channel++) {
        let sum = ONE / 2;
        for (let k = 0; k < values.length; k++) sum += image.data[start + channel + k * step] * values[k];
        data[3 * (y * width + x) + channel] = Math.floor(sum / ONE);
      }
    }
  }
  return { data, width, height };
}

// For each output pixel, the first input pixel and the weights of those from there on, as integers.
function outputWeights(from, to, interpolation) {
  const filter = FILTERS[interpolation];
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  return Array.from({ length: to }, (_, place) => {
    const center = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(from, Math.trunc(center + support + 0.5));
    const values = [];
    for (let x = first; x < end; x++) values.push(filter.weight((x - center + 0.5) / stretch));
    const total = values.reduce((sum, value) => sum + value, 0);
    return { first, values: values.map((value) => integer((value / total) * ONE)) };
  });
}

function integer(value) {
  return Math.trunc(value < 0 ? value - 0.5 : value + 0.5);
}

function normalise({ data, width, height }, mean, std) {
  const area = width * height;
  const scale = Math.fround(1 / 255);
  const values = new Float32Array(3 * area); // each step is rounded to float32
  for (let channel = 0; channel < 3; channel++) {
    for (let pixel = 0; pixel < area; pixel++) {
      const value = Math.fround(Math.fround(data[3 * pixel + channel] * scale) - Math.fround(mean[channel]));
      values[channel * area + pixel] = value / Math.fround(std[channel]);
    }
  }
  return { data: values, dims: [1, 3, height, width] };
}
