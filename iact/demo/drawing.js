// A picture with its faces on a canvas. Points are image px, where the first pixel's centre is (0, 0).

const UNSURE = 0.4; // what the network gives where no face is
const SURE = 0.9;
const COLOURS = [[213, 94, 0], [240, 228, 66], [0, 200, 160]]; // for colour-blind eyes too
const LARGEST_ZOOM = 4;
const CLOSE = 176; // CSS px, the side of one face on its own

/** The colour of a score, as CSS has it: red for the unsure, by way of yellow to green for the sure. */
export function colourOf(score) {
  const place = Math.min(1, Math.max(0, (score - UNSURE) / (SURE - UNSURE))) * (COLOURS.length - 1);
  const before = Math.min(COLOURS.length - 2, Math.floor(place));
  const [from, to] = COLOURS.slice(before, before + 2);
  const mixed = from.map((value, i) => Math.round(value + (place - before) * (to[i] - value)));
  return `rgb(${mixed.join(" ")})`;
}

export function drawLegend(canvas) {
  const pen = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    pen.fillStyle = colourOf(UNSURE + (SURE - UNSURE) * x / canvas.width);
    pen.fillRect(x, 0, 1, canvas.height);
  }
}

/** Draws the answer's picture, which may be null, and its faces, as large as the canvas's place lets it. */
export function draw(canvas, answer, curves) {
  const scale = fit(canvas, answer.width, answer.height);
  const pen = drawPicture(canvas, answer, { scale, left: 0, top: 0 });
  answer.faces.forEach((face, i) => {
    drawBox(pen, face.box.map(side => (side + 0.5) * scale), answer.faces.length > 1 ? (face.id ?? i) + 1 : "");
    drawFace(pen, face, { scale, left: 0, top: 0 }, curves);
  });
}

/** Draws one face of the answer's picture so that it fills a square canvas. */
export function drawClose(canvas, answer, face, curves) {
  const [x0, y0, x1, y1] = face.box;
  const side = 1.5 * Math.max(x1 - x0, y1 - y0);
  const pixels = CLOSE * window.devicePixelRatio;
  canvas.style.width = canvas.style.height = `${CLOSE}px`;
  canvas.width = canvas.height = pixels;
  const view = { scale: pixels / side, left: (x0 + x1 - side) / 2 + 0.5, top: (y0 + y1 - side) / 2 + 0.5 };
  drawFace(drawPicture(canvas, answer, view), face, view, curves);
}

/** The picture as far as the view shows it, `scale` canvas px to an image px; grey beyond. Returns the canvas's pen. */
function drawPicture(canvas, { picture, width, height }, { scale, left, top }) {
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#777";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (picture) pen.drawImage(picture, -left * scale, -top * scale, width * scale, height * scale);
  return pen;
}

function drawFace(pen, { box: [x0, y0, x1, y1], landmarks, scores }, { scale, left, top }, curves) {
  const points = landmarks.map(([x, y]) => [(x + 0.5 - left) * scale, (y + 0.5 - top) * scale]);
  const side = Math.max(x1 - x0, y1 - y0) * scale;
  const pixel = window.devicePixelRatio;
  drawCurves(pen, points, curves, Math.max(pixel, side / 250));
  drawDots(pen, points, scores, Math.max(1.2 * pixel, side / 110));
}

/** Gives the canvas the picture's shape at the screen's resolution; returns canvas px per image px. */
function fit(canvas, width, height) {
  const room = canvas.parentElement.clientWidth;
  const zoom = Math.min(room / width, Math.max(240, 0.75 * window.innerHeight) / height, LARGEST_ZOOM);
  canvas.style.width = `${Math.max(1, zoom * width)}px`;
  canvas.style.height = `${Math.max(1, zoom * height)}px`;
  canvas.width = Math.max(1, Math.round(zoom * width * window.devicePixelRatio));
  canvas.height = Math.max(1, Math.round(zoom * height * window.devicePixelRatio));
  return canvas.width / width;
}

function drawBox(pen, [x0, y0, x1, y1], label) {
  const pixel = window.devicePixelRatio;
  for (const [colour, width] of [["rgb(0 0 0 / 50%)", 3], ["white", 1]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width * pixel;
    pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  pen.font = `${14 * pixel}px system-ui, sans-serif`;
  pen.strokeStyle = "rgb(0 0 0 / 50%)";
  pen.lineWidth = 3 * pixel;
  pen.strokeText(label, x0, y0 - 5 * pixel);
  pen.fillStyle = "white";
  pen.fillText(label, x0, y0 - 5 * pixel);
}

function drawCurves(pen, points, curves, width) {
  pen.strokeStyle = "rgb(255 255 255 / 55%)";
  pen.lineWidth = width;
  pen.beginPath();
  for (const curve of curves) {
    curve.forEach((landmark, i) => (i ? pen.lineTo(...points[landmark]) : pen.moveTo(...points[landmark])));
  }
  pen.stroke();
}

/** Dots in the colour of their score, with a dark rim where there is room for one. */
function drawDots(pen, points, scores, radius) {
  points.forEach(([x, y], i) => {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fillStyle = colourOf(scores[i]);
    pen.fill();
    pen.strokeStyle = "rgb(0 0 0 / 60%)";
    pen.lineWidth = radius / 4;
    if (radius > 2) pen.stroke();
  });
}
