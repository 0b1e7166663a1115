// The page: strokes or a picture on the paper, what is read, and what the network saw of it.

const STEP = 10; // pixels that an arrow key moves the pen
const SAMPLE = 28; // pixels of a digit in samples.png, whose row is its class
const MOST = 100e6; // pixels of a picture, as in images/pictures.py

const element = (name) => document.getElementById(name);
const [board, paper, marks, text, digits] = ["board", "paper", "marks", "text", "digits"].map(element);
const pen = paper.getContext("2d", { willReadFrequently: true });
const overlay = marks.getContext("2d");

const strokes = []; // each a list of points [x, y] on the paper
let picture = null; // what lies below them: {canvas, left, top, scale}
let cursor = null; // where the keyboard's pen is: {x, y, down}
const reader = new Worker(new URL("reader.js", import.meta.url), { type: "module" });
let model = null; // what the reader says of it
let [reading, stale] = [false, false];

/** Return a color of the style sheet, which depends on light and dark. */
function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function draw() {
  pen.fillStyle = color("paper");
  pen.fillRect(0, 0, paper.width, paper.height);
  if (picture) {
    const { canvas, left, top, scale } = picture;
    pen.imageSmoothingEnabled = scale < 1;
    pen.drawImage(canvas, left, top, canvas.width * scale, canvas.height * scale);
  }
  Object.assign(pen, { lineCap: "round", lineJoin: "round", lineWidth: 14, strokeStyle: color("ink") });
  for (const stroke of strokes) {
    pen.beginPath();
    pen.moveTo(...stroke[0]);
    for (const point of stroke.length > 1 ? stroke.slice(1) : stroke) pen.lineTo(...point);
    pen.stroke();
  }
  const used = strokes.length > 0 || picture !== null;
  board.classList.toggle("used", used);
  element("undo").disabled = element("clear").disabled = !used;
  update();
}

/** Return the reader's next answer. */
function answer() {
  return new Promise((resolve, reject) => {
    reader.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data));
    reader.onerror = (event) => reject(new Error(event.message ?? "the reader does not start"));
  });
}

/** Read what is on the paper, again if it changes meanwhile. */
async function update() {
  stale = true;
  if (reading || !model) return;
  reading = true;
  while (stale) {
    stale = false;
    await new Promise(requestAnimationFrame);
    try {
      await readOnce();
    } catch (error) {
      say(`Reading failed: ${error.message}`);
    }
  }
  reading = false;
}

async function readOnce() {
  if (!strokes.length && !picture) {
    overlay.clearRect(0, 0, marks.width, marks.height);
    digits.replaceChildren();
    say("Waiting for a digit");
    return;
  }
  // A picture alone is read in its own size.
  const { canvas, left, top, scale } = strokes.length ? { canvas: paper, left: 0, top: 0, scale: 1 } : picture;
  const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const answered = answer();
  reader.postMessage({ rgba: data, width, height }, [data.buffer]);
  const found = await answered;
  for (const one of found) {
    one.share = Math.max(...one.shares);
    one.label = model.classes[one.shares.indexOf(one.share)];
    one.unsure = one.share < model.sure || one.odd;
  }
  text.dataset.file = picture?.name ?? "";
  show(found);
  mark(found, left, top, scale);
}

function say(words) {
  text.className = "said";
  if (text.textContent !== words) text.textContent = words; // a screen reader says it once
}

function show(found) {
  digits.replaceChildren(...found.map(card));
  if (!found.length) return say("Nothing to read");
  const lines = [];
  for (const one of found) lines[one.line] = (lines[one.line] ?? "") + one.label;
  const answer = lines.filter((line) => line !== undefined).join("\n");
  const doubt = found.some((one) => one.unsure) ? "unsure" : "";
  if (text.className === "" && text.dataset.answer === answer + doubt) return;
  text.className = "";
  text.dataset.answer = answer + doubt;
  text.textContent = answer;
  if (doubt) text.append(Object.assign(document.createElement("small"), { textContent: doubt }));
}

/** Return a character: what the network saw, its class, and the probability of each. */
function card(one) {
  const item = document.createElement("li");
  item.classList.toggle("unsure", one.unsure);
  const seen = Object.assign(document.createElement("canvas"), { width: model.side, height: model.side });
  seen.setAttribute("role", "img");
  seen.setAttribute("aria-label", "What the network saw");
  const image = new ImageData(model.side, model.side);
  one.image.forEach((value, place) => image.data.set([255 * value, 255 * value, 255 * value, 255], 4 * place));
  seen.getContext("2d").putImageData(image, 0, 0);
  const side = document.createElement("div");
  const head = document.createElement("div");
  const label = Object.assign(document.createElement("b"), { textContent: one.label });
  head.append(label, ` ${percent(one.share)}${one.unsure ? ", unsure" : ""}`);
  const table = document.createElement("table");
  const order = [...one.shares.keys()];
  if (order.length > 10) order.sort((a, b) => one.shares[b] - one.shares[a]);
  for (const place of order.slice(0, 10)) {
    const row = table.insertRow();
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = model.classes[place];
    row.append(name);
    const meter = Object.assign(document.createElement("meter"), { min: 0, max: 1, value: one.shares[place] });
    meter.setAttribute("aria-hidden", "true");
    row.insertCell().append(meter);
    row.insertCell().textContent = percent(one.shares[place]);
  }
  side.append(head, table);
  item.append(seen, side);
  return item;
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

/** Draw a box around each character, and the keyboard's pen. */
function mark(found, left, top, scale) {
  overlay.clearRect(0, 0, marks.width, marks.height);
  overlay.lineWidth = 2;
  for (const one of found) {
    overlay.strokeStyle = color(one.unsure ? "unsure" : "sure");
    const [x, y, right, bottom] = one.box.map((edge) => edge * scale);
    overlay.strokeRect(left + x - 3, top + y - 3, right - x + 6, bottom - y + 6);
  }
  if (cursor && document.activeElement === paper) {
    overlay.beginPath();
    overlay.arc(cursor.x, cursor.y, 10, 0, 2 * Math.PI);
    overlay.strokeStyle = overlay.fillStyle = color("bar");
    cursor.down ? overlay.fill() : overlay.stroke();
  }
}

function undo() {
  if (strokes.length) strokes.pop();
  else picture = null;
  draw();
}

function clear() {
  strokes.length = 0;
  picture = cursor = null;
  draw();
}

/** Put a picture on the empty paper; a small one, as of the test set, is enlarged. */
function place(canvas, name) {
  strokes.length = 0;
  const fit = Math.min(paper.width / canvas.width, paper.height / canvas.height);
  const scale = canvas.width <= SAMPLE * 2 ? 0.6 * fit : fit;
  const [left, top] = [(paper.width - canvas.width * scale) / 2, (paper.height - canvas.height * scale) / 2];
  picture = { canvas, name, left, top, scale };
  draw();
}

async function open(file) {
  say("Opening the picture…");
  try {
    const how = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
    const bitmap = await createImageBitmap(file, how);
    if (bitmap.width * bitmap.height > MOST) throw new Error("too large");
    const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d", { willReadFrequently: true }).drawImage(bitmap, 0, 0);
    place(canvas, file.name);
  } catch {
    say("That is not a picture this browser can open");
  }
}

function drawing() {
  const point = (event) => {
    const box = paper.getBoundingClientRect();
    return [((event.clientX - box.left) * paper.width) / box.width, ((event.clientY - box.top) * paper.height) / box.height];
  };
  let stroke = null;
  paper.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || stroke) return;
    paper.setPointerCapture(event.pointerId);
    cursor = null;
    strokes.push((stroke = [point(event)]));
    draw();
  });
  paper.addEventListener("pointermove", (event) => {
    if (!stroke) return;
    const moves = event.getCoalescedEvents?.() ?? [];
    stroke.push(...(moves.length ? moves : [event]).map(point));
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) paper.addEventListener(end, () => (stroke = null));
}

function keyboard() {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  document.addEventListener("keydown", (event) => {
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
    else if (event.key === "Delete") clear();
    else if (event.target === paper && (moves[event.key] || event.key === " ")) steer(event);
    else return;
    event.preventDefault();
  });
  const steer = (event) => {
    cursor ??= { x: paper.width / 2, y: paper.height / 4, down: false };
    const [right, down] = moves[event.key] ?? [0, 0];
    cursor.x = Math.min(Math.max(cursor.x + right * STEP, 0), paper.width);
    cursor.y = Math.min(Math.max(cursor.y + down * STEP, 0), paper.height);
    if (event.key === " ") {
      cursor.down = !cursor.down;
      if (cursor.down) strokes.push([]);
    }
    if (cursor.down) strokes.at(-1).push([cursor.x, cursor.y]);
    draw();
    mark([], 0, 0, 1);
  };
  paper.addEventListener("blur", () => {
    if (cursor) cursor.down = false;
    draw();
  });
}

function files() {
  const input = element("file");
  element("open").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    if (input.files.length) open(input.files[0]);
    input.value = "";
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (file) open(file);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    board.classList.add("over");
  });
  document.addEventListener("dragleave", () => board.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    board.classList.remove("over");
    if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
  });
}

/** Offer a digit of each class, another one after each use. */
async function samples() {
  const sheet = await createImageBitmap(await (await fetch("samples.png")).blob());
  for (let row = 0; row < sheet.height / SAMPLE; row++) {
    let column = 0;
    const button = Object.assign(document.createElement("button"), { type: "button", title: "From the test set" });
    button.setAttribute("aria-label", `A ${row} from the test set`);
    const cut = () => {
      const canvas = Object.assign(document.createElement("canvas"), { width: SAMPLE, height: SAMPLE });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(sheet, -column * SAMPLE, -row * SAMPLE);
      return canvas;
    };
    button.append(cut());
    button.addEventListener("click", () => {
      place(cut());
      column = (column + 1) % (sheet.width / SAMPLE);
      button.replaceChildren(cut());
    });
    element("samples").append(button);
  }
}

async function start() {
  drawing();
  keyboard();
  files();
  element("undo").addEventListener("click", undo);
  element("clear").addEventListener("click", clear);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
  try {
    const loading = answer();
    await samples();
    const loaded = await loading;
    if (!loaded.ink || loaded.channels !== 1) {
      say("This model does not read handwriting: send it pictures through the service.");
      return;
    }
    model = loaded;
    element("service").hidden = !loaded.served;
    update();
  } catch (error) {
    say(`The model cannot be loaded: ${error.message}`);
  }
}

start();
