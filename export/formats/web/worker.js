// Runs the network off the page's thread, so that the page never stands still.
//
// Takes {id, load: entry of model.json's models, net} and {id, picture}; answers
// {id, ...} or {id, error}, and {progress: from 0 to 1} while it loads.

import { loadAndCompile, loadLiteRt, supportsFeature, Tensor } from "@litertjs/core";

import { view } from "./preprocessing.js";

let net;
let model;
let runtime;

/** Fetches a file; says how far it is. */
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

/** Loads the build of LiteRT that this browser runs fastest. */
async function startRuntime() {
  const relaxed = await supportsFeature("relaxedSimd");
  // Threads share memory, which a page may only do if its server sends
  // Cross-Origin-Opener-Policy: same-origin and
  // Cross-Origin-Embedder-Policy: require-corp.
  const threads = relaxed && self.crossOriginIsolated;
  const build = threads ? "threaded_" : relaxed ? "" : "compat_";
  const script = new URL(`litert/litert_wasm_${build}internal.js`, self.location).href;
  const packed = await download(script.replace(/js$/, "wasm.gzip"));
  const unpacked = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  self.Module = {
    wasmBinary: await new Response(unpacked).arrayBuffer(),
    mainScriptUrlOrBlob: script, // For its threads.
  };
  await loadLiteRt(script);
  return threads ? navigator.hardwareConcurrency : 1;
}

async function load(entry) {
  runtime ??= startRuntime();
  runtime.catch(() => (runtime = undefined)); // To be tried again.
  const file = await download(entry.file, entry.bytes);
  const threads = await runtime;
  model?.delete();
  model = undefined; // Should the next one fail.
  model = await loadAndCompile(new Uint8Array(await file.arrayBuffer()), {
    accelerator: "wasm",
    cpuOptions: { numThreads: threads },
  });
  // The first run is slower: not on anybody's picture.
  await run(new Uint8Array(net.height * net.width * net.channels));
  return { threads };
}

async function run(pixels) {
  const image = new Tensor(pixels, [1, net.height, net.width, net.channels]);
  const start = performance.now();
  const { probabilities } = await model.run({ image });
  const values = Float32Array.from(await probabilities.data());
  const milliseconds = performance.now() - start;
  image.delete();
  probabilities.delete();
  return { probabilities: values, milliseconds };
}

async function classify(picture) {
  const pixels = view(picture, net);
  picture.close();
  return { pixels, ...(await run(pixels)) };
}

async function answer({ id, load: entry, net: given, picture }) {
  try {
    net = given ?? net;
    postMessage({ id, ...(await (entry ? load(entry) : classify(picture))) });
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
}

// One after the other: a load takes the model away that a run is using, and of two
// loads the later has to win.
let queue = Promise.resolve();
self.onmessage = ({ data }) => {
  queue = queue.then(() => answer(data));
};
