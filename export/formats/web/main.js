// The page: takes pictures and the camera, asks the worker, shows its answers.

const TOP = 5;
const MEDIAN_OF = 15; // Of the camera's pictures.
const SPEAK_EVERY = 2000; // Milliseconds between words to a screen reader.

const $ = (id) => document.getElementById(id);
const stage = $("stage");
const video = $("video");
const seen = $("seen");

let net; // model.json
let ready; // Promise that the network chosen last is loaded.
let loads = 0; // How many networks were chosen.
let turn = 0; // Of what is shown: an answer to something older is dropped.
let stream; // The camera's, while it is on.

// --- The worker: a question, a promise of its answer.

let worker;
const waiting = new Map();

function ask(question, transfer = []) {
  worker ??= startWorker();
  const id = Math.random();
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, ...question }, transfer);
  });
}

function startWorker() {
  const started = new Worker("worker.js");
  started.onmessage = ({ data: { id, progress, error, ...answer } }) => {
    if (progress !== undefined) {
      $("progress").value = progress;
      return;
    }
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(answer);
  };
  started.onerror = (event) => {
    event.preventDefault();
    for (const { reject } of waiting.values()) {
      reject(new Error(event.message || "worker.js cannot be loaded"));
    }
    waiting.clear();
    worker = undefined;
  };
  return started;
}

// --- What is said.

function complain(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

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

let spoken = 0;

function speak(text) {
  if (stream && Date.now() - spoken < SPEAK_EVERY) return;
  if ($("said").textContent === text) return;
  spoken = Date.now();
  $("said").textContent = text;
}

function showAnswer({ probabilities, pixels }, milliseconds) {
  const best = Array.from(probabilities.keys())
    .sort((a, b) => probabilities[b] - probabilities[a])
    .slice(0, TOP);
  const list = $("results");
  while (list.children.length > best.length) list.lastChild.remove();
  best.forEach((place, i) => {
    // Rows stay, so that the bars move.
    const row = list.children[i] ?? list.appendChild(document.createElement("li"));
    if (row.children.length < 2) {
      row.className = "";
      row.innerHTML = '<span class="label"></span><span class="percent"></span>';
    }
    row.children[0].textContent = net.classes[place];
    row.children[1].textContent = percent(probabilities[place]);
    row.style.setProperty("--share", probabilities[place]);
    row.dataset.class = place;
    row.dataset.probability = probabilities[place];
  });
  $("time").textContent = duration(milliseconds);
  $("time").dataset.milliseconds = milliseconds;
  speak(`${net.classes[best[0]]}, ${percent(probabilities[best[0]])}`);
  showInput(pixels);
}

function showInput(pixels) {
  const canvas = seen.firstElementChild;
  canvas.width = net.width;
  canvas.height = net.height;
  const image = new ImageData(net.width, net.height);
  for (let i = 0, from = 0; i < image.data.length; i += 4, from += net.channels) {
    image.data[i] = pixels[from];
    image.data[i + 1] = pixels[from + (net.channels > 1 ? 1 : 0)];
    image.data[i + 2] = pixels[from + (net.channels > 1 ? 2 : 0)];
    image.data[i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  seen.hidden = false;
}

function forgetAnswer(text) {
  $("results").innerHTML = `<li class="placeholder"></li>`;
  $("results").firstChild.textContent = text;
  $("time").textContent = "–";
  delete $("time").dataset.milliseconds;
  $("said").textContent = "";
  seen.hidden = true;
}

// --- A picture.

let shown; // The picture on the page: a file.

async function openPicture(file) {
  stopCamera();
  const mine = ++turn;
  complain("");
  // Raw pixels, upright: what the network was trained on, and what Python reads.
  const options = {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  };
  let picture;
  try {
    picture = await createImageBitmap(file, options);
  } catch {
    if (mine !== turn) return;
    complain(
      `${file.name || "This"} is not a picture that this browser can read. ` +
        "JPEG, PNG, WebP, GIF and BMP are.",
    );
    return;
  }
  if (mine !== turn) return picture.close();
  shown = file;
  URL.revokeObjectURL($("picture").src);
  $("picture").src = URL.createObjectURL(file);
  $("picture").alt = file.name ? `Your picture ${file.name}` : "Your picture";
  $("picture").classList.toggle("tiny", Math.max(picture.width, picture.height) <= 64);
  $("picture").hidden = false;
  stage.classList.remove("empty");
  forgetAnswer("Working …");
  try {
    await ready;
    const answer = await ask({ picture }, [picture]);
    if (mine === turn) showAnswer(answer, answer.milliseconds);
  } catch (error) {
    if (mine === turn) fail(error);
  }
}

// --- The camera.

async function startCamera() {
  if (!navigator.mediaDevices) {
    complain("The camera needs a page that comes by https://, or from localhost.");
    return;
  }
  const mine = ++turn;
  complain("");
  try {
    const found = await navigator.mediaDevices.getUserMedia({
      audio: false,
      video: { facingMode: { ideal: "environment" }, width: { ideal: 1280 } },
    });
    if (mine !== turn) {
      found.getTracks().forEach((track) => track.stop());
      return;
    }
    stream = found;
    stream.getVideoTracks()[0].addEventListener("ended", stopCamera);
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    if (mine !== turn) return;
    stopCamera();
    const why = {
      NotAllowedError:
        "This page may not use the camera. Allow it in the browser’s settings for this site.",
      NotFoundError: "There is no camera here.",
      NotReadableError: "The camera is in use by another program.",
    };
    complain(why[error.name] ?? `The camera does not start: ${error.message}`);
    return;
  }
  $("picture").hidden = true;
  shown = undefined;
  video.hidden = false;
  stage.classList.remove("empty");
  $("camera").setAttribute("aria-pressed", "true");
  $("camera").textContent = "Stop camera";
  forgetAnswer("Working …");
  try {
    await watchCamera(mine);
  } catch (error) {
    if (mine !== turn) return;
    stopCamera();
    fail(error);
  }
}

async function watchCamera(mine) {
  const times = [];
  while (mine === turn) {
    await ready;
    await new Promise(requestAnimationFrame); // Which rests while nobody looks.
    if (mine !== turn) return;
    const picture = await createImageBitmap(video);
    const answer = await ask({ picture }, [picture]);
    if (mine !== turn) return;
    times.push(answer.milliseconds);
    if (times.length > MEDIAN_OF) times.shift();
    showAnswer(answer, median(times));
  }
}

function stopCamera() {
  if (!stream) return;
  turn++;
  stream.getTracks().forEach((track) => track.stop());
  stream = undefined;
  video.srcObject = null;
  video.hidden = true;
  forgetAnswer("No picture yet.");
  stage.classList.toggle("empty", $("picture").hidden);
  $("camera").setAttribute("aria-pressed", "false");
  $("camera").textContent = "Camera";
}

// --- The network.

function fail(error) {
  forgetAnswer("No answer.");
  complain(`The network does not run here: ${error.message}`);
}

async function loadNetwork(place) {
  const entry = net.models[place];
  const mine = ++loads;
  $("progress").hidden = false;
  $("progress").value = 0;
  try {
    const { threads } = await ask({ load: entry, net });
    if (mine !== loads) return ready; // The newer one's, whatever came of this.
    $("threads").textContent = `${threads} thread${threads > 1 ? "s" : ""}`;
    document.documentElement.dataset.ready = entry.name;
  } catch (error) {
    if (mine !== loads) return ready;
    throw error;
  } finally {
    if (mine === loads) $("progress").hidden = true;
  }
}

function chooseNetwork() {
  complain("");
  delete document.documentElement.dataset.ready;
  ready = loadNetwork($("model").selectedIndex);
  ready.catch(fail);
  if (shown) openPicture(shown);
}

async function start() {
  forgetAnswer("No picture yet.");
  if (location.protocol === "file:") {
    $("progress").hidden = true;
    complain(
      "A browser loads no network from a file. In this folder run " +
        "“python -m http.server”, then open http://localhost:8000.",
    );
    return;
  }
  const response = await fetch("model.json");
  if (!response.ok) throw new Error(`model.json: ${response.status}`);
  net = await response.json();
  document.title = `${net.name} · image classifier`;
  $("name").textContent = net.name;
  $("about").textContent =
    `${net.classes.length} classes. Pictures stay on this device.`;
  for (const { name, bytes } of net.models) {
    $("model").add(new Option(`${name}, ${megabytes(bytes)}`));
  }
  $("model").disabled = net.models.length < 2;
  chooseNetwork();
  await ready;
}

// --- Hands.

$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) openPicture(target.files[0]);
  target.value = ""; // The same file may come again.
});
$("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
$("model").addEventListener("change", chooseNetwork);
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files[0]) openPicture(clipboardData.files[0]);
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
  if (event.dataTransfer.files[0]) openPicture(event.dataTransfer.files[0]);
  else complain("That is no file. Drop a picture that is saved on this device.");
});

start().catch(fail);
