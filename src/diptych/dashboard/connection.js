// Reads the feed: a stream of JSON frames. Opens it again whenever it ends, and says what is going on.
//
// It is read by fetch and not by EventSource, which could send an API key only within an address.

const SILENCE_S = 5; // frames come four times a second: after so long without any, something is wrong
const FIRST_PAUSE_S = 0.5;
const LONGEST_PAUSE_S = 5;

export class Connection {
  #key = null;
  #server = null;
  #attempt = null;
  #pauseS = FIRST_PAUSE_S;

  constructor({ onFrame, onState, onKeyWanted }) {
    this.onFrame = onFrame;
    this.onState = onState;
    this.onKeyWanted = onKeyWanted;
  }

  // What every request brings.
  get headers() {
    return this.#key === null ? {} : { Authorization: `Bearer ${this.#key}` };
  }

  useKey(key) {
    this.#key = key.trim();
    this.open();
  }

  // Reads until the feed ends, and again; returns at once.
  async open() {
    this.#attempt?.abort();
    const attempt = (this.#attempt = new AbortController());
    while (!attempt.signal.aborted) {
      const refusal = await this.#read(attempt.signal);
      if (attempt.signal.aborted) return;
      if (refusal !== null) {
        this.onState("lost", "An API key is needed");
        this.onKeyWanted(refusal);
        return;
      }
      this.onState("lost", "Connection lost; trying again…");
      await pause(this.#pauseS);
      this.#pauseS = Math.min(2 * this.#pauseS, LONGEST_PAUSE_S);
    }
  }

  // Reads one stream to its end. Returns why a key is wanted; null: for no such reason.
  async #read(signal) {
    const watchdog = new AbortController();
    const abort = () => watchdog.abort();
    signal.addEventListener("abort", abort);
    let timer = setTimeout(abort, SILENCE_S * 1000);
    try {
      const answer = await fetch("diptych/events", { headers: this.headers, signal: watchdog.signal, cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) return (await answer.json()).error.message;
      if (!answer.ok) return null;
      for await (const data of events(answer.body)) {
        clearTimeout(timer);
        timer = setTimeout(abort, SILENCE_S * 1000);
        const frame = JSON.parse(data);
        if (frame.error) break; // its last word
        this.#take(frame);
      }
    } catch {
      // Refused, cut off or silent: all the same to whoever watches.
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
      watchdog.abort();
    }
    return null;
  }

  #take(frame) {
    const isNew = this.#server !== null && this.#server !== frame.server;
    if (isNew || this.#pauseS !== FIRST_PAUSE_S || this.#server === null) this.onKeyWanted(null);
    this.#server = frame.server;
    this.#pauseS = FIRST_PAUSE_S;
    if (isNew) this.restartedS = performance.now() / 1000;
    const isFresh = this.restartedS && performance.now() / 1000 - this.restartedS < 10;
    this.onState("live", isFresh ? "Live; the server was restarted" : "Live");
    this.onFrame(frame);
  }
}

// Iterates over the data of server-sent events. One event's data is one line here.
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data: "));
        if (lines.length) yield lines.map((line) => line.slice(6)).join("\n");
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function pause(seconds) {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}
