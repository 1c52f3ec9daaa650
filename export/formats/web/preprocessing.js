// Converts an image to the network's input like keras_resnet/data/preprocessing.py:
// resizes it with antialiasing until it just covers the size `cover`, then crops the
// centre. This script does not resize by a canvas, because the result would differ
// between browsers and from the resizing in training.

const KERNELS = {
  bilinear: { reach: 1, weigh: (x) => Math.max(0, 1 - x) },
  // Kernel with a = -1/2 from Keys (1981), "Cubic convolution interpolation".
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

// Number of image rows that are read as RGBA at a time. All rows of a photograph from a
// phone would take 200 MB.
const STRIP_ROWS = 256;

/**
 * Returns which image pixels contribute to each pixel of the crop along one axis, and
 * the weights of these image pixels.
 *
 * @param {number} length - Length of the image, in pixels.
 * @param {number} resized - Length of the resized image.
 * @param {number} size - Length of the crop.
 * @param {object} kernel - A value of KERNELS.
 * @returns {object[]} First and last image index, and weights, for each crop pixel.
 */
function computeTaps(length, resized, size, kernel) {
  const scale = resized / length;
  const margin = resized - size;
  // Half of the margin, rounded half to even as in Python.
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
  for (let i = 0, j = 0; j < row.length; i += 4, j += channels) {
    const [r, g, b] = [rgba[i], rgba[i + 1], rgba[i + 2]];
    if (channels === 3) {
      row[j] = r;
      row[j + 1] = g;
      row[j + 2] = b;
    } else {
      // Luma of ITU-R 601, rounded like tf.image.rgb_to_grayscale.
      row[j] = Math.floor((0.2989 * r + 0.587 * g + 0.114 * b) * (255.5 / 255));
    }
  }
}

/**
 * Resizes an image and crops its centre.
 *
 * @param {ImageBitmap} image - Image of any size.
 * @param {object} config - Content of model.json.
 * @returns {Uint8Array} Pixels, (height, width, channels).
 */
export function preprocess(image, { height, width, channels, cover, interpolation }) {
  const kernel = KERNELS[interpolation];
  const ratio = Math.max(cover[0] / image.height, cover[1] / image.width);
  const resize = (side) => Math.floor(side * ratio + 1e-6);
  const rowTaps = computeTaps(image.height, resize(image.height), height, kernel);
  const columnTaps = computeTaps(image.width, resize(image.width), width, kernel);

  // Only the pixels that contribute to the crop are read.
  const left = columnTaps[0].first;
  const columns = columnTaps.at(-1).last + 1 - left;
  const end = rowTaps.at(-1).last + 1;
  const canvas = new OffscreenCanvas(columns, STRIP_ROWS);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  const row = new Float32Array(columns * channels);
  const resizedRow = new Float32Array(width * channels);
  const sums = new Float32Array(height * width * channels);
  for (let top = rowTaps[0].first; top < end; top += STRIP_ROWS) {
    const rows = Math.min(STRIP_ROWS, end - top);
    context.clearRect(0, 0, columns, STRIP_ROWS);
    context.drawImage(image, left, top, columns, rows, 0, 0, columns, rows);
    const strip = context.getImageData(0, 0, columns, rows).data;
    for (let y = top; y < top + rows; y++) {
      const start = (y - top) * columns * 4;
      convertRow(strip.subarray(start, start + columns * 4), channels, row);
      for (let x = 0, index = 0; x < width; x++) {
        const { first, weights } = columnTaps[x];
        for (let channel = 0; channel < channels; channel++, index++) {
          let source = (first - left) * channels + channel;
          let sum = 0;
          for (let j = 0; j < weights.length; j++, source += channels) {
            sum += weights[j] * row[source];
          }
          resizedRow[index] = sum;
        }
      }
      for (let i = 0; i < height; i++) {
        if (y < rowTaps[i].first || y > rowTaps[i].last) continue;
        const weight = rowTaps[i].weights[y - rowTaps[i].first];
        const offset = i * resizedRow.length;
        for (let j = 0; j < resizedRow.length; j++) {
          sums[offset + j] += weight * resizedRow[j];
        }
      }
    }
  }
  // The cubic kernel overshoots, so sums are clipped. Uint8Array truncates, so adding
  // 0.5 rounds the sums.
  return Uint8Array.from(sums, (sum) => Math.min(255, Math.max(0, sum)) + 0.5);
}
