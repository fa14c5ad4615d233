// A latency against its limit: percentiles of the last minute, and every request of late as a point.

import { drawn, duration, element, percent } from "./format.js";
import { hasAnswer, tpotS, ttftS } from "./requests.js";

const SHOWN_S = 60;
const REDRAW_S = 0.5;
const [WIDTH, HEIGHT] = [320, 92];
const OF = { ttft: ttftS, tpot: tpotS };
const LIMIT = { ttft: "ttft_s", tpot: "tpot_s" };

export class Latency {
  #kind;
  #word;
  #figures = element("dl", { class: "percentiles" });
  #values = {};
  #note = element("p", { class: "muted" });
  #chart;
  #drawnS = 0;

  constructor(root, kind, word) {
    this.#kind = kind;
    this.#word = word;
    this.#chart = drawn("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    for (const [name, label] of [["p50", "50% within"], ["p90", "90% within"], ["p99", "99% within"]]) {
      const value = (this.#values[name] = element("dd"));
      this.#figures.append(element("div", {}, element("dt", {}, label), value));
    }
    root.classList.add(kind);
    root.append(this.#figures, this.#chart, this.#note);
  }

  show(frame, requests) {
    const now = performance.now() / 1000;
    if (now - this.#drawnS < REDRAW_S) return;
    this.#drawnS = now;
    const limitS = frame.slo[LIMIT[this.#kind]];
    for (const [name, value] of Object.entries(this.#values)) {
      const seconds = frame.window[this.#kind]?.[name];
      value.textContent = duration(seconds);
      value.parentElement.classList.toggle("late", seconds > limitS);
    }
    const points = this.#points(requests, frame.now_s - SHOWN_S);
    const num = points.filter(({ valueS }) => valueS <= limitS).length;
    const share = points.length ? `${percent(num / points.length)} of ${points.length} kept to it` : "no answer in the last minute";
    this.#note.textContent = `Limit ${duration(limitS)} a ${this.#word}; ${share}.`;
    this.#draw(points, frame.now_s, limitS);
  }

  #points(requests, sinceS) {
    const records = requests.ended().filter((record) => hasAnswer(record) && record.timeline.finished > sinceS);
    const points = records.map((record) => ({ atS: record.timeline.finished, valueS: OF[this.#kind](record) }));
    return points.filter(({ valueS }) => valueS !== null);
  }

  #draw(points, nowS, limitS) {
    const mostS = Math.max(1.25 * limitS, ...points.map(({ valueS }) => Math.min(valueS, 4 * limitS)));
    const y = (valueS) => HEIGHT - 4 - (HEIGHT - 10) * Math.min(valueS / mostS, 1);
    const x = (atS) => WIDTH - ((nowS - atS) / SHOWN_S) * WIDTH;
    const marks = points.map(({ atS, valueS }) => mark(x(atS), y(valueS), valueS > limitS));
    const line = drawn("line", { class: "limit", x1: 0, x2: WIDTH, y1: y(limitS), y2: y(limitS) });
    this.#chart.setAttribute("aria-label", `Each answer of the last minute as a point; ${this.#note.textContent}`);
    this.#chart.replaceChildren(line, ...marks);
  }
}

function mark(x, y, isLate) {
  const [px, py] = [x.toFixed(1), y.toFixed(1)];
  if (!isLate) return drawn("ellipse", { class: "point", cx: px, cy: py, rx: 2.4, ry: 2.4 });
  return drawn("path", { class: "late", d: `M${px} ${py - 3.5}l3.5 6h-7z` });
}
