// All requests of the last two minutes, running or ended, and what phases each has been through.

const KEPT_S = 130;
const MOST_KEPT = 1500;

export const PHASES = ["queued", "prefill", "handover", "decode"];
export const PHASE_NAMES = { queued: "queued", prefill: "prefill", handover: "hand-over", decode: "decode" };

export class Requests {
  #byId = new Map();
  #server = null;
  #nowS = 0;
  #offsetS = null; // of the node's clock to the page's

  // Takes what a frame tells.
  take(frame) {
    if (frame.server !== this.#server) {
      for (const record of this.running()) this.#byId.delete(record.request_id); // gone with the one before
      this.#server = frame.server;
      this.#offsetS = null;
    }
    const running = new Set(frame.running.map((record) => record.request_id));
    for (const record of this.running()) {
      if (!running.has(record.request_id)) this.#byId.delete(record.request_id); // ended, or not listed any more
    }
    for (const record of [...frame.ended, ...frame.running]) this.#put(record);
    this.#nowS = frame.now_s;
    const offsetS = frame.now_s - performance.now() / 1000;
    const isFar = this.#offsetS === null || Math.abs(offsetS - this.#offsetS) > 1;
    this.#offsetS = isFar ? offsetS : this.#offsetS + 0.1 * (offsetS - this.#offsetS);
    this.#forgetOld();
  }

  #put(record) {
    const before = this.#byId.get(record.request_id);
    record.lane = before?.lane;
    this.#byId.set(record.request_id, record);
  }

  #forgetOld() {
    for (const [id, record] of this.#byId) {
      const isOld = !isRunning(record) && record.timeline.finished < this.#nowS - KEPT_S;
      if (isOld || this.#byId.size > MOST_KEPT) this.#byId.delete(id);
    }
  }

  // The present moment on the node's clock, also between frames; `isLive`: whether it goes on without frames.
  nowS(isLive = true) {
    return isLive && this.#offsetS !== null ? this.#offsetS + performance.now() / 1000 : this.#nowS;
  }

  get lastS() {
    return this.#nowS;
  }

  find(id) {
    return this.#byId.get(id);
  }

  all() {
    return [...this.#byId.values()];
  }

  running() {
    return this.all().filter(isRunning);
  }

  ended() {
    return this.all().filter((record) => !isRunning(record));
  }
}

export function isRunning(record) {
  return record.timeline.finished === undefined;
}

// The phases that a request has been through, each with begin and end in seconds of the node's clock.
export function phasesOf(record, nowS) {
  const { arrived, prefill_started: started, first_token: first, joined, finished } = record.timeline;
  const endS = finished ?? nowS;
  const isHandedOver = record.prefill_worker !== null;
  const readS = first ?? endS;
  const phases = [{ phase: "queued", beginS: arrived, endS: Math.min(started ?? readS, readS) }];
  if (started !== undefined) phases.push({ phase: "prefill", beginS: started, endS: readS });
  if (first !== undefined && isHandedOver && (joined !== undefined || finished === undefined)) {
    phases.push({ phase: "handover", beginS: first, endS: joined ?? endS });
  }
  const writesFromS = isHandedOver ? joined : first;
  if (writesFromS !== undefined) phases.push({ phase: "decode", beginS: writesFromS, endS });
  return phases.filter(({ beginS, endS: phaseEndS }) => phaseEndS >= beginS);
}

export function ttftS(record) {
  const { arrived, first_token: first } = record.timeline;
  return first === undefined ? null : Math.max(first - arrived, 0);
}

export function tpotS(record) {
  const { first_token: first, finished } = record.timeline;
  const further = record.num_output_tokens / record.num_choices - 1;
  return first === undefined || finished === undefined || further <= 0 ? null : Math.max(finished - first, 0) / further;
}

export function hasAnswer(record) {
  return record.outcome === "stop" || record.outcome === "length";
}
