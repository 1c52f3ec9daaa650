// Runs the network in a worker thread, so that the page stays responsive.
//
// Requests: {id, load, config} loads a network, where `load` is an entry of "models" in
// model.json and `config` is all of model.json. {id, image} classifies an ImageBitmap.
// Replies: {id, ...} with the result, or {id, error}. While a network loads, the worker
// also sends {progress}, a fraction from 0 to 1.

import { loadAndCompile, loadLiteRt, supportsFeature, Tensor } from "@litertjs/core";

import { preprocess } from "./preprocessing.js";

let config; // Content of model.json.
let model; // Compiled network.
let runtime; // Promise of the number of threads; resolves when LiteRT is loaded.

/** Downloads a file. Reports the progress if `bytes`, its size, is known. */
async function download(url, bytes) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  const chunks = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    loaded += value.length;
    if (bytes) postMessage({ progress: Math.min(1, loaded / bytes) });
  }
  return new Blob(chunks);
}

/** Loads the fastest build of LiteRT that the browser supports. */
async function startRuntime() {
  const relaxed = await supportsFeature("relaxedSimd");
  // Threads need shared memory. Browsers allow it only if the server sends the headers
  // Cross-Origin-Opener-Policy: same-origin and
  // Cross-Origin-Embedder-Policy: require-corp.
  const threads = relaxed && self.crossOriginIsolated;
  const build = threads ? "threaded_" : relaxed ? "" : "compat_";
  const script = new URL(`litert/litert_wasm_${build}internal.js`, self.location).href;
  const compressed = await download(script.replace(/js$/, "wasm.gzip"));
  const binary = compressed.stream().pipeThrough(new DecompressionStream("gzip"));
  self.Module = {
    wasmBinary: await new Response(binary).arrayBuffer(),
    mainScriptUrlOrBlob: script, // Script that the threads of LiteRT run.
  };
  await loadLiteRt(script);
  return threads ? navigator.hardwareConcurrency : 1;
}

/** Loads a network. `entry` is an element of "models" in model.json. */
async function loadModel(entry) {
  runtime ??= startRuntime();
  runtime.catch(() => (runtime = undefined)); // The next load starts LiteRT again.
  const file = await download(entry.file, entry.bytes);
  const threads = await runtime;
  model?.delete();
  model = undefined; // If loading fails, the deleted model must not be used.
  model = await loadAndCompile(new Uint8Array(await file.arrayBuffer()), {
    accelerator: "wasm",
    cpuOptions: { numThreads: threads },
  });
  // The first run is slow. Running an empty image now makes the first result faster.
  await runModel(new Uint8Array(config.height * config.width * config.channels));
  return { threads };
}

/** Runs the network on the pixels of one image. */
async function runModel(pixels) {
  const image = new Tensor(pixels, [1, config.height, config.width, config.channels]);
  const start = performance.now();
  const { probabilities } = await model.run({ image });
  const values = Float32Array.from(await probabilities.data());
  const milliseconds = performance.now() - start;
  image.delete();
  probabilities.delete();
  return { probabilities: values, milliseconds };
}

async function classify(image) {
  const pixels = preprocess(image, config);
  image.close();
  return { pixels, ...(await runModel(pixels)) };
}

async function reply({ id, load: entry, config: newConfig, image }) {
  try {
    config = newConfig ?? config;
    postMessage({ id, ...(await (entry ? loadModel(entry) : classify(image))) });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
}

// Requests are handled one after the other. Otherwise, a load could delete the model
// that is running, and a slow load could replace the network of a later load.
let queue = Promise.resolve();
self.onmessage = ({ data }) => {
  queue = queue.then(() => reply(data));
};
