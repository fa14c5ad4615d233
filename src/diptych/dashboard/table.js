// The last requests as a table, for those who cannot or will not read bars. Filled while it is open, once a second.

import { count, duration, element } from "./format.js";
import { PHASES, isRunning, phasesOf } from "./requests.js";

const MOST_ROWS = 25;
const REFILL_S = 1;

export class RequestTable {
  #details;
  #body;
  #requests;
  #filledS = 0;

  constructor(details, body, requests) {
    this.#details = details;
    this.#body = body;
    this.#requests = requests;
    details.addEventListener("toggle", () => {
      this.#filledS = 0;
      this.show();
    });
  }

  show() {
    const now = performance.now() / 1000;
    if (!this.#details.open || now - this.#filledS < REFILL_S) return;
    this.#filledS = now;
    const newest = this.#requests.all().sort((one, other) => other.timeline.arrived - one.timeline.arrived);
    this.#body.replaceChildren(...newest.slice(0, MOST_ROWS).map((record) => this.#row(record)));
  }

  #row(record) {
    const phases = phasesOf(record, this.#requests.lastS);
    const spans = PHASES.map((name) => {
      const span = phases.find(({ phase }) => phase === name);
      return span ? duration(span.endS - span.beginS) : "–";
    });
    const sizes = [record.num_prompt_tokens, record.num_cached_tokens, record.num_output_tokens].map(count);
    const state = isRunning(record) ? phases.at(-1)?.phase ?? "queued" : record.outcome;
    return element("tr", {}, ...[record.request_id, state, ...spans, ...sizes].map((text) => element("td", {}, text)));
  }
}
