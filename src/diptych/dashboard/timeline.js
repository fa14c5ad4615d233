// Requests as bars of their phases that move with time: queued, prefill, hand-over, decode.
//
// A request keeps its lane for as long as it is seen, so that bars move sideways only.

import { PHASE_NAMES, isRunning, phasesOf } from "./requests.js";
import { duration, plural } from "./format.js";

const AXIS_HEIGHT = 20;
const [THINNEST_LANE, THICKEST_LANE] = [3, 15];
const NARROWEST = 2; // pixels, so that a hand-over of a millisecond can be seen
const NARROW_PX = 480;
const LANE_GAP_S = 0.3;
const FRAME_MS = 33;
const CALM_FRAME_MS = 1000;
const NAMES = ["queued", "prefill", "handover", "decode", "late", "ink", "muted", "line", "soft"];
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Timeline {
  isLive = false;
  #canvas;
  #pointed;
  #requests;
  #colours = {};
  #hatch = null;
  #spanS = 30;
  #mine = new Set();
  #bars = []; // what was drawn: [left, top, right, bottom, record]
  #pointer = null;
  #drawnMs = 0;

  constructor(canvas, pointed, requests) {
    this.#canvas = canvas;
    this.#pointed = pointed;
    this.#requests = requests;
    for (const kind of ["pointermove", "pointerdown"]) canvas.addEventListener(kind, (event) => this.#pointAt(event));
    canvas.addEventListener("pointerleave", () => (this.#pointer = null));
    requestAnimationFrame((ms) => this.#onTime(ms));
  }

  showSeconds(spanS) {
    this.#spanS = spanS;
    this.#drawnMs = 0;
  }

  // Frames a request as one's own.
  mark(id) {
    this.#mine.add(id);
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of NAMES) this.#colours[name] = style.getPropertyValue(`--${name}`).trim();
    this.#hatch = this.#makeHatch();
    this.#drawnMs = 0;
  }

  #makeHatch() {
    const tile = new OffscreenCanvas(6, 6);
    const pen = tile.getContext("2d");
    pen.fillStyle = this.#colours.soft;
    pen.fillRect(0, 0, 6, 6);
    pen.strokeStyle = this.#colours.queued;
    pen.lineWidth = 1.6;
    pen.beginPath();
    for (const shift of [-6, 0, 6]) {
      pen.moveTo(shift, 6);
      pen.lineTo(shift + 6, 0);
    }
    pen.stroke();
    return this.#canvas.getContext("2d").createPattern(tile, "repeat");
  }

  // Told at once, however seldom frames are drawn: it is the bar that one sees.
  #pointAt(event) {
    this.#pointer = [event.offsetX, event.offsetY];
    this.#tell();
  }

  #onTime(ms) {
    if (ms - this.#drawnMs >= (calm.matches ? CALM_FRAME_MS : FRAME_MS) || this.#drawnMs === 0) {
      this.#drawnMs = ms;
      this.#draw();
      this.#tell();
    }
    requestAnimationFrame((next) => this.#onTime(next));
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const scale = devicePixelRatio || 1;
    if (this.#canvas.width !== Math.round(width * scale) || this.#canvas.height !== Math.round(height * scale)) {
      this.#canvas.width = Math.round(width * scale);
      this.#canvas.height = Math.round(height * scale);
    }
    const pen = this.#canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const nowS = this.#requests.nowS(this.isLive);
    const x = (atS) => width - ((nowS - atS) / this.#spanS) * width;
    this.#drawAxis(pen, x, nowS, height);
    this.#drawBars(pen, x, nowS, height);
  }

  #drawAxis(pen, x, nowS, height) {
    const stepS = { 10: 2, 30: 5, 120: 20 }[this.#spanS];
    const every = x(nowS) < NARROW_PX ? 2 : 1; // labels that there is room for
    pen.font = "11px system-ui, sans-serif";
    pen.strokeStyle = this.#colours.line;
    pen.fillStyle = this.#colours.muted;
    pen.lineWidth = 1;
    for (let ago = stepS; ago < this.#spanS; ago += stepS) {
      const at = Math.round(x(nowS - ago)) + 0.5;
      pen.beginPath();
      pen.moveTo(at, 0);
      pen.lineTo(at, height - AXIS_HEIGHT + 4);
      pen.stroke();
      pen.textAlign = "center";
      if ((ago / stepS) % every === 0) pen.fillText(`${ago} s ago`, at, height - 4);
    }
    pen.textAlign = "right";
    pen.fillText("now", x(nowS) - 2, height - 4);
  }

  #drawBars(pen, x, nowS, height) {
    const beginS = nowS - this.#spanS;
    const shown = this.#requests.all().filter((record) => isRunning(record) || record.timeline.finished > beginS);
    shown.sort((one, other) => one.timeline.arrived - other.timeline.arrived);
    const lanes = this.#assignLanes(shown, nowS);
    const room = height - AXIS_HEIGHT;
    const lane = Math.max(THINNEST_LANE, Math.min(THICKEST_LANE, room / Math.max(lanes, 8)));
    this.#bars = [];
    for (const record of shown) {
      const top = record.lane * lane + 1;
      if (top + lane > room) continue; // no room below: the table has it
      this.#drawBar(pen, x, record, nowS, top, Math.max(lane - 2, 2));
    }
  }

  #assignLanes(shown, nowS) {
    const freeFromS = []; // of each lane
    for (const record of shown) {
      if (record.lane !== undefined) this.#occupy(freeFromS, record, nowS);
    }
    for (const record of shown) {
      if (record.lane !== undefined) continue;
      const free = freeFromS.findIndex((fromS) => (fromS ?? 0) + LANE_GAP_S < record.timeline.arrived);
      record.lane = free >= 0 ? free : freeFromS.length;
      this.#occupy(freeFromS, record, nowS);
    }
    return freeFromS.length;
  }

  #occupy(freeFromS, record, nowS) {
    while (freeFromS.length <= record.lane) freeFromS.push(0);
    freeFromS[record.lane] = Math.max(freeFromS[record.lane], record.timeline.finished ?? nowS + 1);
  }

  #drawBar(pen, x, record, nowS, top, thickness) {
    const phases = phasesOf(record, nowS);
    let [left, right] = [Infinity, 0];
    for (const { phase, beginS, endS } of phases) {
      const from = Math.max(x(beginS), 0);
      const wide = Math.max(x(endS) - from, phase === "queued" ? 0 : NARROWEST);
      if (x(endS) < 0) continue;
      pen.fillStyle = phase === "queued" ? this.#hatch : this.#colours[phase];
      pen.fillRect(from, top, wide, thickness);
      left = Math.min(left, from);
      right = Math.max(right, from + wide);
    }
    if (right <= left) return;
    if (record.outcome === "failed" || record.outcome === "aborted") this.#cross(pen, right, top, thickness);
    if (this.#mine.has(record.request_id)) {
      pen.strokeStyle = this.#colours.ink;
      pen.lineWidth = 2;
      pen.strokeRect(left - 1, top - 1, right - left + 2, thickness + 2);
    }
    this.#bars.push([left, top - 1, right, top + thickness + 1, record]);
  }

  // The end of a request that brought no whole answer.
  #cross(pen, right, top, thickness) {
    const size = Math.min(thickness, 8) / 2;
    const middle = top + thickness / 2;
    pen.strokeStyle = this.#colours.late;
    pen.lineWidth = 2;
    pen.beginPath();
    pen.moveTo(right + 2, middle - size);
    pen.lineTo(right + 2 + 2 * size, middle + size);
    pen.moveTo(right + 2, middle + size);
    pen.lineTo(right + 2 + 2 * size, middle - size);
    pen.stroke();
  }

  // Says in words what the pointer is at.
  #tell() {
    if (this.#pointer === null) return;
    const [x, y] = this.#pointer;
    const bar = this.#bars.find(([left, top, right, bottom]) => x >= left - 2 && x <= right + 2 && y >= top && y <= bottom);
    const text = bar ? describe(bar[4], this.#requests.nowS(this.isLive)) : "Point at a bar to see its request.";
    if (this.#pointed.textContent !== text) this.#pointed.textContent = text;
  }
}

// A request and its phases in one line.
export function describe(record, nowS) {
  const workers = { prefill: record.prefill_worker ?? record.decode_worker, decode: record.decode_worker };
  const phases = phasesOf(record, nowS).map(({ phase, beginS, endS }) => {
    const where = workers[phase] ? ` on ${workers[phase]}` : "";
    return `${PHASE_NAMES[phase]} ${duration(endS - beginS)}${where}`;
  });
  const sizes = `${plural(record.num_prompt_tokens, "prompt token")} (${record.num_cached_tokens} cached)`;
  const outcome = isRunning(record) ? "" : `; ${record.outcome}`;
  return `${record.request_id}: ${phases.join(", ")}; ${sizes}, ${plural(record.num_output_tokens, "token")} written${outcome}.`;
}
