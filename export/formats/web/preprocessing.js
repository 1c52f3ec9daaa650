// Converts an image to the network's input like keras_resnet/data/preprocessing.py:
// resizes it with antialiasing until it just covers the size `cover`, then crops the
// centre. The resizing of a canvas is not used, because it differs between browsers and
// from the resizing in training.

const KERNELS = {
  bilinear: { reach: 1, weigh: (x) => Math.max(0, 1 - x) },
  // Keys 1981, "Cubic convolution interpolation", a = -1/2.
  bicubic: {
    reach: 2,
    weigh: (x) =>
      x < 1
        ? (1.5 * x - 2.5) * x * x + 1
        : x < 2
          ? ((-0.5 * x + 2.5) * x - 4) * x + 2
          : 0,
  },
};

// Number of rows that are read as RGBA at a time. All rows of a phone's photograph would
// take 200 MB.
const STRIP = 256;

/**
 * Returns the weights of the image's pixels in each pixel of the crop, along one axis.
 *
 * @param {number} length - Length of the image, in pixels.
 * @param {number} resized - Length of the resized image.
 * @param {number} size - Length of the crop.
 * @param {object} kernel - A value of KERNELS.
 * @returns {object[]} First and last index into the image, and weights, for each pixel.
 */
function computeTaps(length, resized, size, kernel) {
  const scale = resized / length;
  const margin = resized - size;
  // Rounds half to even, as Python does.
  const corner = margin % 4 === 3 ? (margin + 1) / 2 : Math.floor(margin / 2);
  // When an image shrinks, antialiasing widens the kernel by the same factor.
  const stretch = Math.max(1, 1 / scale);
  return Array.from({ length: size }, (_, i) => {
    const middle = (i + corner + 0.5) / scale;
    const reach = kernel.reach * stretch;
    const first = Math.max(0, Math.ceil(middle - reach - 0.5));
    const last = Math.min(length - 1, Math.floor(middle + reach - 0.5));
    const weights = Float32Array.from({ length: last - first + 1 }, (_, j) =>
      kernel.weigh(Math.abs(first + j + 0.5 - middle) / stretch),
    );
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, last, weights: weights.map((weight) => weight / sum) };
  });
}

/** Converts a row of RGBA pixels to the network's channels, and stores them in `row`. */
function convertRow(rgba, channels, row) {
  for (let from = 0, to = 0; to < row.length; from += 4, to += channels) {
    const [r, g, b] = [rgba[from], rgba[from + 1], rgba[from + 2]];
    if (channels === 3) {
      row[to] = r;
      row[to + 1] = g;
      row[to + 2] = b;
    } else {
      // ITU-R 601 weights with the rounding of tf.image.rgb_to_grayscale.
      row[to] = Math.floor((0.2989 * r + 0.587 * g + 0.114 * b) * (255.5 / 255));
    }
  }
}

/**
 * Resizes an image and crops its centre.
 *
 * @param {ImageBitmap} image - Image of any size.
 * @param {object} net - Content of model.json.
 * @returns {Uint8Array} Pixels, (height, width, channels).
 */
export function preprocess(image, { height, width, channels, cover, interpolation }) {
  const kernel = KERNELS[interpolation];
  const ratio = Math.max(cover[0] / image.height, cover[1] / image.width);
  const resize = (side) => Math.floor(side * ratio + 1e-6);
  const down = computeTaps(image.height, resize(image.height), height, kernel);
  const across = computeTaps(image.width, resize(image.width), width, kernel);

  // Only the pixels that contribute to the crop are read.
  const left = across[0].first;
  const columns = across.at(-1).last + 1 - left;
  const end = down.at(-1).last + 1;
  const canvas = new OffscreenCanvas(columns, STRIP);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  const row = new Float32Array(columns * channels);
  const narrow = new Float32Array(width * channels);
  const sums = new Float32Array(height * width * channels);
  for (let top = down[0].first; top < end; top += STRIP) {
    const rows = Math.min(STRIP, end - top);
    context.clearRect(0, 0, columns, STRIP);
    context.drawImage(image, left, top, columns, rows, 0, 0, columns, rows);
    const strip = context.getImageData(0, 0, columns, rows).data;
    for (let y = top; y < top + rows; y++) {
      const start = (y - top) * columns * 4;
      convertRow(strip.subarray(start, start + columns * 4), channels, row);
      for (let x = 0, at = 0; x < width; x++) {
        const { first, weights } = across[x];
        for (let channel = 0; channel < channels; channel++, at++) {
          let from = (first - left) * channels + channel;
          let sum = 0;
          for (let j = 0; j < weights.length; j++, from += channels) {
            sum += weights[j] * row[from];
          }
          narrow[at] = sum;
        }
      }
      for (let i = 0; i < height; i++) {
        if (y < down[i].first || y > down[i].last) continue;
        const weight = down[i].weights[y - down[i].first];
        const at = i * narrow.length;
        for (let j = 0; j < narrow.length; j++) sums[at + j] += weight * narrow[j];
      }
    }
  }
  // The cubic kernel overshoots, so values are clipped. Adding 0.5 rounds them.
  return Uint8Array.from(sums, (sum) => Math.min(255, Math.max(0, sum)) + 0.5);
}
