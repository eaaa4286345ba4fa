// The page: pictures from a file, the clipboard or the camera go to the server, its answer is shown.

import { draw, drawClose, drawLegend } from "./drawing.js";

const HINTS = {
  NotAllowedError: "the browser did not allow it",
  NotFoundError: "there is none",
  NotReadableError: "another program may be using it",
};
const find = id => document.getElementById(id);
const answerOf = response => response.json().catch(() => ({ error: "the server's answer cannot be read" }));
const model = fetch("/model").then(answerOf);
let shown = null; // { name, picture, width, height, faces, milliseconds }
let turn = 0; // goes up with each new picture or camera: what belongs to an earlier one is forgotten
let video = null; // of the camera, while it runs

function say(sentence, wrong = false) {
  if (find("status").textContent !== sentence) find("status").textContent = sentence;
  find("status").classList.toggle("wrong", wrong);
}

/** The server's answer for the bytes of a picture. Throws an Error with its sentence where it has none. */
async function predict(picture, query = "") {
  const { largest, about } = await model;
  const megabytes = bytes => (bytes / 1e6).toFixed(1);
  if (picture.size > largest) {
    throw new Error(`the picture has ${megabytes(picture.size)} MB; expected at most ${megabytes(largest)} MB`);
  }
  const response = await fetch(`/predict${query}`, { method: "POST", body: picture }).catch(async () => {
    await picture.arrayBuffer().catch(() => {
      throw new Error("it cannot be read (is it a folder, or gone?)");
    });
    throw new Error("the server does not answer (is iact demo still running?)");
  });
  const answer = await answerOf(response);
  if (!response.ok || answer.error) throw new Error(answer.error);
  if (answer.about !== about) throw new Error("iact demo was started again with another network; reload the page");
  return answer;
}

async function tryFiles(files) {
  stopCamera();
  const mine = ++turn;
  const [file] = files;
  if (!file) return say("There is no file in this; expected a picture.", true);
  const name = file.name + (files.length > 1 ? ` (the first of ${files.length} files)` : "");
  say(`Looking for faces in ${name} …`);
  try {
    const [answer, picture] = await Promise.all([predict(file), createImageBitmap(file).catch(() => null)]);
    if (mine !== turn) return;
    await show({ name: file.name, picture, ...answer });
    say(sentenceOn(name, shown));
  } catch (error) {
    if (mine !== turn) return;
    clear();
    say(`${name}: ${error.message}`, true);
  }
}

function sentenceOn(name, { picture, faces }) {
  const unseen = picture ? "" : " This browser cannot show the picture, so only the landmarks are drawn.";
  if (!faces.length) return `No face was found in ${name}. The detector looks for upright faces seen from the front.`;
  return `${faces.length === 1 ? "1 face" : `${faces.length} faces`} in ${name}.${unseen}`;
}

async function startCamera() {
  const mine = ++turn;
  say("Waiting for the camera …");
  try {
    await openCamera(mine);
    const query = `?camera=${Math.random()}`; // a new one each time: faces are followed from here on
    while (mine === turn) await showFrame(mine, query);
  } catch (error) {
    if (mine !== turn) return;
    stopCamera();
    say(`No pictures from the camera: ${HINTS[error.name] ?? error.message}.`, true);
  }
}

async function openCamera(mine) {
  if (!navigator.mediaDevices) throw new Error("browsers give it only to pages from localhost or over https");
  const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } } });
  if (mine !== turn) return stream.getTracks().forEach(track => track.stop());
  video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
  find("camera").textContent = "Stop the camera";
  stream.getVideoTracks()[0].onended = () => {
    ++turn;
    stopCamera();
    say("The camera has ended.", true);
  };
  await video.play();
}

function stopCamera() {
  video?.srcObject.getTracks().forEach(track => track.stop());
  video = null;
  find("camera").textContent = "Start the camera";
}

/** Sends the camera's frame and shows it with its own landmarks, so that they lag behind nothing. */
async function showFrame(mine, query) {
  const started = performance.now();
  const frame = document.createElement("canvas");
  [frame.width, frame.height] = [video.videoWidth, video.videoHeight];
  frame.getContext("2d").drawImage(video, 0, 0);
  const picture = await new Promise(resolve => frame.toBlob(resolve, "image/jpeg", 0.9));
  const answer = await predict(picture, query);
  await new Promise(requestAnimationFrame);
  if (mine !== turn) return;
  const framesPerSecond = 1000 / (performance.now() - started);
  await show({ name: "camera", picture: frame, ...answer, framesPerSecond });
  say(sentenceOn("the camera's picture", shown));
}

async function show(answer) {
  const { picture, width, height } = answer;
  const fits = picture?.width === width && picture?.height === height; // else the browser turned it another way
  shown = { ...answer, picture: fits ? picture : null };
  find("canvas").hidden = find("findings").hidden = false;
  find("canvas").setAttribute("aria-label", sentenceOn(shown.name, shown));
  find("save").disabled = false;
  find("facts").replaceChildren(...facts(shown).map(rowOf));
  find("faces").replaceChildren(...shown.faces.map(itemOf));
  drawAll((await model).curves);
}

function drawAll(curves) {
  draw(find("canvas"), shown, curves);
  const canvases = find("faces").querySelectorAll("canvas");
  shown.faces.forEach((face, i) => drawClose(canvases[i], shown, face, curves));
}

function clear() {
  shown = null;
  find("canvas").hidden = find("findings").hidden = find("save").disabled = true;
}

function facts({ faces, milliseconds: { detector, network, total }, framesPerSecond }) {
  const mean = faces.length ? meanOf(faces.flatMap(face => face.scores)).toFixed(2) : "none";
  const rows = [["Faces", faces.length], ["Mean score", mean]];
  for (const [part, time] of Object.entries({ Detector: detector, Network: network, Total: total })) {
    rows.push([part, `${time.toFixed(0)} ms`]);
  }
  return framesPerSecond ? [...rows, ["Frames", `${framesPerSecond.toFixed(1)} /s`]] : rows;
}

function rowOf([name, value]) {
  const row = document.createElement("div");
  row.append(element("dt", name), element("dd", value));
  return row;
}

function itemOf({ id, box: [x0, y0, x1, y1], scores }) {
  const [wide, high, x, y] = [x1 - x0, y1 - y0, x0, y0].map(Math.round);
  const item = element("li", "");
  if (id !== undefined) item.value = id + 1;
  item.append(
    element("canvas", ""),
    element("p", `Score ${meanOf(scores).toFixed(2)}, least ${Math.min(...scores).toFixed(2)}`),
    element("p", `Box ${wide} × ${high} px at (${x}, ${y})`),
  );
  return item;
}

function element(tag, text) {
  return Object.assign(document.createElement(tag), { textContent: text });
}

function meanOf(numbers) {
  return numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
}

/** The file that `iact predict` writes. */
async function save() {
  const found = { layout: (await model).layout, pictures: { [shown.name]: shown.faces }, left_out: [] };
  const url = URL.createObjectURL(new Blob([JSON.stringify(found, null, 1), "\n"], { type: "application/json" }));
  Object.assign(document.createElement("a"), { href: url, download: "landmarks.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

find("file").addEventListener("change", event => {
  tryFiles([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});
find("camera").addEventListener("click", () => {
  if (!video) return startCamera();
  ++turn;
  stopCamera();
  say("The camera was stopped.");
});
find("save").addEventListener("click", save);
document.addEventListener("paste", event => tryFiles([...event.clipboardData.files]));
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("dragenter", () => find("stage").classList.add("over"));
document.addEventListener("dragleave", event => find("stage").classList.toggle("over", event.relatedTarget !== null));
document.addEventListener("drop", event => {
  event.preventDefault();
  find("stage").classList.remove("over");
  tryFiles([...event.dataTransfer.files]);
});
window.addEventListener("resize", async () => {
  const { curves } = await model;
  if (shown) drawAll(curves);
});
drawLegend(find("legend"));
model.then(
  ({ about, error }) => (find("about").textContent = about ?? error),
  () => say("The server does not answer (is iact demo still running?).", true),
);
