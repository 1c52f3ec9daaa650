// From a picture to a network's input, as keras_resnet/data/preprocessing.py does it:
// resized with antialiasing until it just covers `cover`, then the centre. A
// canvas' own resizing differs from browser to browser, and from every network's
// training.

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

// Rows of a picture that are held as RGBA at a time: of one from a phone, all
// would be 200 MB.
const STRIP = 256;

/** What each pixel of the crop, along one axis, takes of the picture's pixels. */
function taps(length, resized, size, kernel) {
  const scale = resized / length;
  const spare = resized - size;
  // Half to even, as in Python.
  const corner = spare % 4 === 3 ? (spare + 1) / 2 : Math.floor(spare / 2);
  const stretch = Math.max(1, 1 / scale); // Antialiasing.
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

/** Pixels of one row of RGBA, as the network's channels. */
function channelsOf(rgba, channels, row) {
  for (let from = 0, to = 0; to < row.length; from += 4, to += channels) {
    const [r, g, b] = [rgba[from], rgba[from + 1], rgba[from + 2]];
    if (channels === 3) {
      row[to] = r;
      row[to + 1] = g;
      row[to + 2] = b;
    } else {
      // ITU-R 601 with the rounding of tf.image.rgb_to_grayscale.
      row[to] = Math.floor((0.2989 * r + 0.587 * g + 0.114 * b) * (255.5 / 255));
    }
  }
}

/**
 * The central crop of a picture: what the network sees of it.
 *
 * @param {ImageBitmap} picture of any size.
 * @param {object} net with height, width, channels, cover and interpolation.
 * @returns {Uint8Array} pixels (height, width, channels).
 */
export function view(picture, { height, width, channels, cover, interpolation }) {
  const kernel = KERNELS[interpolation];
  const ratio = Math.max(cover[0] / picture.height, cover[1] / picture.width);
  const resize = (side) => Math.floor(side * ratio + 1e-6);
  const down = taps(picture.height, resize(picture.height), height, kernel);
  const across = taps(picture.width, resize(picture.width), width, kernel);

  // Only what lies under the crop is read.
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
    context.drawImage(picture, left, top, columns, rows, 0, 0, columns, rows);
    const strip = context.getImageData(0, 0, columns, rows).data;
    for (let y = top; y < top + rows; y++) {
      const start = (y - top) * columns * 4;
      channelsOf(strip.subarray(start, start + columns * 4), channels, row);
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
  // The cubic kernel overshoots.
  return Uint8Array.from(sums, (sum) => Math.min(255, Math.max(0, sum)) + 0.5);
}
