"use strict";

// Draw a digit: strokes → 8x8 grey levels → ONNX Runtime Web → ten probabilities.

const SIZE = 8; // pixels of the network's image, a side
const LEVELS = 16; // grey levels of the training data

// How the training data came about: digits normalized to the height of a bitmap of 32x32 cells, of
// which each pixel counts 4x4. Width of a line and of a digit are those of the data, in cells.
const CELLS = 32;
const LINE = 5;
const WIDTH = 22;

const element = (id) => document.getElementById(id);
const pad = element("pad");

let strokes = []; // lists of [x, y], in parts of the field
let picture = null; // 64 grey levels that were sent instead
let pointer = null; // the one that draws
let asked = 0; // number of the latest question, so that no late answer is shown

// ---------------------------------------------------------------------------------- the network

async function load() {
  if (location.protocol === "file:") {
    throw new Error("Browsers load WebAssembly from web servers only: open this page through one.");
  }
  if (!window.ort) throw new Error("ort.wasm.min.js is missing.");
  ort.env.wasm.numThreads = 1; // more would need cross-origin isolation
  const about = fetch("about.json").then((answer) => {
    if (!answer.ok) throw new Error(`about.json: ${answer.status} ${answer.statusText}`);
    return answer.json();
  });
  const session = ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  const [description, network] = await Promise.all([about, session]);
  return { ...description, network };
}

const loaded = load();

/** The ten probabilities for 64 grey levels. */
async function probabilities(pixels) {
  const { network, logits } = await loaded;
  const image = new ort.Tensor("float32", Float32Array.from(pixels), [1, SIZE, SIZE, 1]);
  const answers = await network.run({ [network.inputNames[0]]: image });
  const values = Array.from(answers[network.outputNames[0]].data);
  return logits ? softmax(values) : values;
}

function softmax(values) {
  const most = Math.max(...values);
  const parts = values.map((value) => Math.exp(value - most));
  const sum = parts.reduce((a, b) => a + b);
  return parts.map((part) => part / sum);
}

/** Show 64 grey levels and the answer to them; returns the ten probabilities. */
async function classify(pixels) {
  pixels = Array.from(pixels, Number);
  if (pixels.length !== SIZE * SIZE || !pixels.every((grey) => grey >= 0 && grey <= 1)) {
    throw new RangeError(`classify takes ${SIZE * SIZE} numbers from 0 to 1.`);
  }
  strokes = [];
  picture = pixels;
  paint();
  return ask(pixels);
}

window.classify = classify;

// ------------------------------------------------------------------- from strokes to grey levels

/** The strokes as 64 grey levels, as the training data are: upright, centred, of full height. */
function reduce(strokes) {
  const upright = straighten(strokes);
  const [x, y] = [0, 1].map((axis) => {
    const values = upright.flat().map((point) => point[axis]);
    const [least, most] = [Math.min(...values), Math.max(...values)];
    return { centre: (least + most) / 2, extent: Math.max(most - least, 1e-6) };
  });
  // What is wide is made narrower, and what is flat does not become as high as it is wide.
  let scaleY = (CELLS - LINE) / y.extent;
  const scaleX = Math.min(scaleY, (WIDTH - LINE) / x.extent);
  scaleY = Math.min(scaleY, 3 * scaleX);
  const cells = upright.map((stroke) =>
    stroke.map(([px, py]) => [
      CELLS / 2 + (px - x.centre) * scaleX,
      CELLS / 2 + (py - y.centre) * scaleY,
    ]),
  );

  const detail = 8; // each cell's own pixels, a side
  const block = (detail * CELLS) / SIZE;
  const canvas = new OffscreenCanvas(detail * CELLS, detail * CELLS);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.scale(detail, detail);
  draw(context, cells, LINE);
  const { data, width } = context.getImageData(0, 0, canvas.width, canvas.height);
  const ink = new Array(SIZE * SIZE).fill(0);
  for (let at = 3; at < data.length; at += 4) {
    const [row, column] = [Math.floor(at / 4 / width), ((at - 3) / 4) % width];
    ink[Math.floor(row / block) * SIZE + Math.floor(column / block)] += data[at] / 255;
  }
  return ink.map((sum) => Math.round((LEVELS * sum) / block ** 2) / LEVELS);
}

/** The strokes without their slant: x no longer goes with y, over all of the line. */
function straighten(strokes) {
  const line = strokes.flatMap(evenly);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const [mx, my] = [mean(line.map(([x]) => x)), mean(line.map(([, y]) => y))];
  const along = mean(line.map(([x, y]) => (x - mx) * (y - my)));
  const high = mean(line.map(([, y]) => (y - my) ** 2));
  const slant = Math.max(-1, Math.min(1, along / (high || 1)));
  return strokes.map((stroke) => stroke.map(([x, y]) => [x - slant * (y - my), y]));
}

/** Points at equal distances on a stroke, wherever the hand was slow or fast. */
function evenly(stroke) {
  const step = 0.005;
  const points = [stroke[0]];
  for (let i = 1; i < stroke.length; i++) {
    const [[x0, y0], [x1, y1]] = [stroke[i - 1], stroke[i]];
    const steps = Math.round(Math.hypot(x1 - x0, y1 - y0) / step);
    for (let k = 1; k <= steps; k++) {
      points.push([x0 + ((x1 - x0) * k) / steps, y0 + ((y1 - y0) * k) / steps]);
    }
  }
  return points;
}

// -------------------------------------------------------------------------------------- to be seen

function draw(context, strokes, width) {
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  for (const [first, ...rest] of strokes) {
    context.beginPath();
    context.moveTo(...first);
    context.lineTo(...first); // a dot, where nothing follows
    for (const point of rest) context.lineTo(...point);
    context.stroke();
  }
}

function drawPixels(context, pixels, side) {
  pixels.forEach((grey, at) => {
    context.globalAlpha = grey;
    context.fillRect((at % SIZE) * side, Math.floor(at / SIZE) * side, side, side);
  });
  context.globalAlpha = 1;
}

/** A canvas without anything on it, to draw on in the colour of text. */
function blank(canvas) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.strokeStyle = context.fillStyle = getComputedStyle(canvas).color;
  return context;
}

function paint() {
  const context = blank(pad);
  if (picture) drawPixels(context, picture, pad.width / SIZE);
  const scaled = strokes.map((stroke) => stroke.map(([x, y]) => [x * pad.width, y * pad.height]));
  draw(context, scaled, pad.width / 14);
  element("hint").hidden = Boolean(picture || strokes.length);
}

const bars = Array.from({ length: 10 }, (_, digit) => {
  const row = element("chart").insertRow();
  row.innerHTML = `<th scope="row">${digit}</th><td><span class="bar"><span></span></span></td><td></td>`;
  return { row, bar: row.querySelector(".bar > span"), text: row.lastElementChild };
});

/** The chart and the answer for ten probabilities, or for none. */
function show(parts) {
  const best = parts ? parts.indexOf(Math.max(...parts)) : null;
  bars.forEach(({ row, bar, text }, digit) => {
    const part = parts ? parts[digit] : 0;
    row.classList.toggle("best", digit === best);
    bar.style.transform = `scaleX(${part})`;
    text.textContent = parts ? percent(part) : "";
  });
  element("answer").textContent = best ?? "–";
  element("answer").classList.toggle("none", best === null);
  return best;
}

function percent(part) {
  return `${(100 * part).toFixed(1)} %`;
}

function say(text, error = false) {
  const status = element("status");
  if (status.textContent !== text) status.textContent = text;
  status.classList.toggle("error", error);
}

/** Ask the network and show its answer; in words too, once a stroke is at its end. */
async function ask(pixels) {
  const number = ++asked;
  drawPixels(blank(element("seen")), pixels, 1);
  const parts = await probabilities(pixels);
  if (number === asked) {
    const best = show(parts);
    const how = parts[best] > 0.9 ? "This is" : parts[best] > 0.5 ? "Probably" : "Perhaps";
    const article = best === 8 ? "an" : "a";
    if (pointer === null) say(`${how} ${article} ${best} (${percent(parts[best])}).`);
  }
  return parts;
}

// ----------------------------------------------------------------------------------------- the hand

function position(event) {
  const field = pad.getBoundingClientRect();
  return [(event.clientX - field.left) / field.width, (event.clientY - field.top) / field.height];
}

let waiting = false;

/** Paint, and ask about the strokes, once for each frame. */
function changed() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    paint();
    if (strokes.length) ask(reduce(strokes)).catch(fail);
  });
}

pad.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button !== 0) return;
  pointer = event.pointerId;
  pad.setPointerCapture(pointer);
  picture = null;
  strokes.push([position(event)]);
  changed();
});

pad.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const events = event.getCoalescedEvents?.() ?? [];
  strokes.at(-1).push(...(events.length ? events : [event]).map(position));
  changed();
});

for (const end of ["pointerup", "pointercancel"]) {
  pad.addEventListener(end, (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    changed();
  });
}

element("clear").addEventListener("click", () => {
  strokes = [];
  picture = null;
  asked++;
  blank(element("seen"));
  paint();
  show(null);
  say("");
});

// The colour of the ink is another one then.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  paint();
  const shown = picture ?? (strokes.length ? reduce(strokes) : null);
  if (shown) drawPixels(blank(element("seen")), shown, 1);
});

function fail(error) {
  say(error.message, true);
}

async function start() {
  const { norm, accuracy, examples } = await loaded;
  element("about").textContent =
    `Trained with BatchNorm, which kerasnorm then turned into ${norm}; right on ` +
    `${percent(accuracy)} of the test images. It runs in ONNX Runtime Web.`;
  let next = 0;
  element("example").disabled = !examples.length;
  element("example").addEventListener("click", () => {
    classify(examples[next++ % examples.length].pixels).catch(fail);
  });
  if (asked === 0) say("");
  const pixels = new URLSearchParams(location.search).get("pixels");
  if (pixels !== null) await classify(pixels.split(","));
}

show(null);
paint();
start().catch(fail);
