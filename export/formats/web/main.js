// Script of the page. Reads images from files or the camera, sends the images to the
// worker, and shows the predicted classes.

const NUM_SHOWN = 5; // Number of classes to show.
const NUM_TIMES = 15; // Number of camera images whose median inference time is shown.
const SPEAK_EVERY = 2000; // Shortest time between screen reader messages, in ms.

const $ = (id) => document.getElementById(id);
const stage = $("stage");
const video = $("video");
const inputFigure = $("seen");

let config; // Content of model.json.
let networkReady; // Promise that resolves when the network chosen last is loaded.
let numLoads = 0; // Number of networks chosen so far.
let turn = 0; // Number of images and camera sessions so far; only the last is shown.
let stream; // Video stream of the camera while it is on.

// --- Requests to the worker.

let worker;
const waiting = new Map(); // Callbacks of pending promises, by request id.

function send(request, transfer = []) {
  worker ??= startWorker();
  const id = Math.random();
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, ...request }, transfer);
  });
}

function startWorker() {
  const newWorker = new Worker("worker.js");
  newWorker.onmessage = ({ data: { id, progress, error, ...reply } }) => {
    if (progress !== undefined) {
      $("progress").value = progress;
      return;
    }
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(reply);
  };
  newWorker.onerror = (event) => {
    event.preventDefault();
    for (const { reject } of waiting.values()) {
      reject(new Error(event.message || "worker.js cannot be loaded"));
    }
    waiting.clear();
    worker = undefined;
  };
  return newWorker;
}

// --- Display of messages and results.

function showMessage(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

const percent = (p) => `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`;

function duration(milliseconds) {
  if (milliseconds < 0.1) return "< 0.1 ms";
  return `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`;
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

let lastSpoken = 0; // Time of the last screen reader message, in ms.

function speak(text) {
  if (stream && Date.now() - lastSpoken < SPEAK_EVERY) return;
  if ($("said").textContent === text) return;
  lastSpoken = Date.now();
  $("said").textContent = text;
}

function showResult({ probabilities, pixels }, milliseconds) {
  const best = Array.from(probabilities.keys())
    .sort((a, b) => probabilities[b] - probabilities[a])
    .slice(0, NUM_SHOWN);
  const list = $("results");
  while (list.children.length > best.length) list.lastChild.remove();
  best.forEach((index, i) => {
    // Existing rows are reused, so that CSS animates the change of the bars.
    const row = list.children[i] ?? list.appendChild(document.createElement("li"));
    if (row.children.length < 2) {
      row.className = "";
      row.innerHTML = '<span class="label"></span><span class="percent"></span>';
    }
    row.children[0].textContent = config.classes[index];
    row.children[1].textContent = percent(probabilities[index]);
    row.style.setProperty("--probability", probabilities[index]);
    row.dataset.class = index;
    row.dataset.probability = probabilities[index];
  });
  $("time").textContent = duration(milliseconds);
  $("time").dataset.milliseconds = milliseconds;
  speak(`${config.classes[best[0]]}, ${percent(probabilities[best[0]])}`);
  showInput(pixels);
}

function showInput(pixels) {
  const canvas = inputFigure.firstElementChild;
  canvas.width = config.width;
  canvas.height = config.height;
  const image = new ImageData(config.width, config.height);
  for (let i = 0, j = 0; i < image.data.length; i += 4, j += config.channels) {
    image.data[i] = pixels[j];
    image.data[i + 1] = pixels[j + (config.channels > 1 ? 1 : 0)];
    image.data[i + 2] = pixels[j + (config.channels > 1 ? 2 : 0)];
    image.data[i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  inputFigure.hidden = false;
}

function clearResult(text) {
  $("results").innerHTML = `<li class="placeholder"></li>`;
  $("results").firstChild.textContent = text;
  $("time").textContent = "–";
  delete $("time").dataset.milliseconds;
  $("said").textContent = "";
  inputFigure.hidden = true;
}

// --- Classification of image files.

let shownFile; // Image file that the page shows, if any.

async function openImage(file) {
  stopCamera();
  const thisTurn = ++turn;
  showMessage("");
  // Like Python, the page rotates images upright and does not correct their colours.
  const options = {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  };
  let image;
  try {
    image = await createImageBitmap(file, options);
  } catch {
    if (thisTurn !== turn) return;
    showMessage(
      `${file.name || "This file"} is not an image that this browser can read. ` +
        "Supported: JPEG, PNG, WebP, GIF and BMP.",
    );
    return;
  }
  if (thisTurn !== turn) return image.close();
  shownFile = file;
  URL.revokeObjectURL($("picture").src);
  $("picture").src = URL.createObjectURL(file);
  $("picture").alt = file.name ? `Your image ${file.name}` : "Your image";
  $("picture").classList.toggle("tiny", Math.max(image.width, image.height) <= 64);
  $("picture").hidden = false;
  stage.classList.remove("empty");
  clearResult("Working …");
  try {
    await networkReady;
    const result = await send({ image }, [image]);
    if (thisTurn === turn) showResult(result, result.milliseconds);
  } catch (error) {
    if (thisTurn === turn) fail(error);
  }
}

// --- Classification of camera images.

async function startCamera() {
  if (!navigator.mediaDevices) {
    showMessage("The camera works only on https:// pages and on localhost.");
    return;
  }
  const thisTurn = ++turn;
  showMessage("");
  try {
    const newStream = await navigator.mediaDevices.getUserMedia({
      audio: false,
      video: { facingMode: { ideal: "environment" }, width: { ideal: 1280 } },
    });
    if (thisTurn !== turn) {
      newStream.getTracks().forEach((track) => track.stop());
      return;
    }
    stream = newStream;
    stream.getVideoTracks()[0].addEventListener("ended", stopCamera);
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    if (thisTurn !== turn) return;
    stopCamera();
    const reasons = {
      NotAllowedError:
        "This page may not use the camera. Allow it in the browser’s settings for this site.",
      NotFoundError: "This device has no camera.",
      NotReadableError: "The camera is in use by another application.",
    };
    showMessage(reasons[error.name] ?? `The camera does not start: ${error.message}`);
    return;
  }
  $("picture").hidden = true;
  shownFile = undefined;
  video.hidden = false;
  stage.classList.remove("empty");
  $("camera").setAttribute("aria-pressed", "true");
  $("camera").textContent = "Stop camera";
  clearResult("Working …");
  try {
    await classifyCamera(thisTurn);
  } catch (error) {
    if (thisTurn !== turn) return;
    stopCamera();
    fail(error);
  }
}

async function classifyCamera(thisTurn) {
  const times = [];
  while (thisTurn === turn) {
    await networkReady;
    // This loop pauses on a hidden page, because browsers send it no animation frames.
    await new Promise(requestAnimationFrame);
    if (thisTurn !== turn) return;
    const image = await createImageBitmap(video);
    const result = await send({ image }, [image]);
    if (thisTurn !== turn) return;
    times.push(result.milliseconds);
    if (times.length > NUM_TIMES) times.shift();
    showResult(result, median(times));
  }
}

function stopCamera() {
  if (!stream) return;
  turn++;
  stream.getTracks().forEach((track) => track.stop());
  stream = undefined;
  video.srcObject = null;
  video.hidden = true;
  clearResult("No image yet.");
  stage.classList.toggle("empty", $("picture").hidden);
  $("camera").setAttribute("aria-pressed", "false");
  $("camera").textContent = "Camera";
}

// --- Loading and selection of networks.

function fail(error) {
  clearResult("No result.");
  showMessage(`The network does not run in this browser: ${error.message}`);
}

async function loadNetwork(index) {
  const entry = config.models[index];
  const thisLoad = ++numLoads;
  $("progress").hidden = false;
  $("progress").value = 0;
  try {
    const { threads } = await send({ load: entry, config });
    // If the user has chosen another network in the meantime, wait for that network.
    if (thisLoad !== numLoads) return networkReady;
    $("threads").textContent = `${threads} thread${threads > 1 ? "s" : ""}`;
    document.documentElement.dataset.ready = entry.name;
  } catch (error) {
    if (thisLoad !== numLoads) return networkReady;
    throw error;
  } finally {
    if (thisLoad === numLoads) $("progress").hidden = true;
  }
}

function chooseNetwork() {
  showMessage("");
  delete document.documentElement.dataset.ready;
  networkReady = loadNetwork($("model").selectedIndex);
  networkReady.catch(fail);
  if (shownFile) openImage(shownFile);
}

async function start() {
  clearResult("No image yet.");
  if (location.protocol === "file:") {
    $("progress").hidden = true;
    showMessage(
      "Browsers cannot load a network for a page that is opened as a file. Run " +
        "“python -m http.server” in this folder, then open http://localhost:8000.",
    );
    return;
  }
  const response = await fetch("model.json");
  if (!response.ok) throw new Error(`model.json: ${response.status}`);
  config = await response.json();
  document.title = `${config.name} · image classifier`;
  $("name").textContent = config.name;
  $("about").textContent =
    `${config.classes.length} classes. Images stay on this device.`;
  for (const { name, bytes } of config.models) {
    $("model").add(new Option(`${name}, ${megabytes(bytes)}`));
  }
  $("model").disabled = config.models.length < 2;
  chooseNetwork();
  await networkReady;
}

// --- Event handlers.

$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) openImage(target.files[0]);
  target.value = ""; // Otherwise, choosing the same file again would send no event.
});
$("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
$("model").addEventListener("change", chooseNetwork);
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files[0]) openImage(clipboardData.files[0]);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  stage.classList.add("over");
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) stage.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  if (event.dataTransfer.files[0]) openImage(event.dataTransfer.files[0]);
  else showMessage("This is not a file. Drop an image that is saved on this device.");
});

start().catch(fail);
