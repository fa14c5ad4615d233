// The pools side by side: of each worker its queue, its batch, its step and its blocks.

import { cores, count, duration, element, percent, plural } from "./format.js";

const RATE_WINDOW_S = 10;
const POOLS = {
  prefill: { title: "Prefill", what: "reads prompts" },
  decode: { title: "Decode", what: "writes answers" },
  mixed: { title: "Mixed", what: "reads and writes in the same steps" },
};

export class Pools {
  #root;
  #pools = new Map();

  constructor(root) {
    this.#root = root;
  }

  show(frame, requests) {
    const workers = Object.entries(frame.status.workers);
    for (const role of Object.keys(POOLS)) {
      const members = workers.filter(([, info]) => info.role === role);
      if (members.length) this.#pool(role).show(members, note(role, members, frame, requests));
      else this.#drop(role);
    }
  }

  #pool(role) {
    if (!this.#pools.has(role)) {
      const pool = new Pool(role);
      this.#pools.set(role, pool);
      const order = Object.keys(POOLS);
      const next = [...this.#pools.keys()].filter((one) => order.indexOf(one) > order.indexOf(role));
      this.#root.insertBefore(pool.node, next.length ? this.#pools.get(next[0]).node : null);
    }
    return this.#pools.get(role);
  }

  #drop(role) {
    this.#pools.get(role)?.node.remove();
    this.#pools.delete(role);
  }
}

// What a pool does as a whole, in words.
function note(role, members, frame, requests) {
  const statuses = members.map(([, info]) => info.status);
  const sum = (name) => statuses.reduce((total, status) => total + status[name], 0);
  const since = frame.now_s - RATE_WINDOW_S;
  const rate = (event) => requests.all().filter((record) => record.timeline[event] > since).length / RATE_WINDOW_S;
  if (role === "prefill") {
    const queue = plural(sum("queued_prefill_tokens"), "prompt token") + " to read";
    return `${queue}, ${rate("first_token").toFixed(1)} prompts read a second`;
  }
  return `${plural(sum("num_running"), "row")} in the batch, ${rate("finished").toFixed(1)} answers done a second`;
}

class Pool {
  #workers = new Map();
  #note = element("p", { class: "muted" });

  constructor(role) {
    const { title, what } = POOLS[role];
    const heading = element("h2", { id: `pool-${role}` }, title);
    const head = element("div", { class: "head" }, heading, element("p", { class: "muted" }, what));
    this.node = element("section", { class: `card pool ${role}`, "aria-labelledby": heading.id }, head, this.#note);
  }

  show(members, text) {
    if (this.#note.textContent !== text) this.#note.textContent = text;
    const names = new Set(members.map(([name]) => name));
    for (const [name, worker] of this.#workers) {
      if (names.has(name)) continue;
      worker.node.remove();
      this.#workers.delete(name);
    }
    for (const [name, info] of members) {
      if (!this.#workers.has(name)) {
        const worker = new Worker(name);
        this.#workers.set(name, worker);
        this.node.append(worker.node);
      }
      this.#workers.get(name).show(info);
    }
  }
}

class Worker {
  #state = element("span", { class: "state" });
  #cores = element("p", { class: "muted" });
  #facts = {};
  #stepLabel;
  #reads = new Stack("reads");
  #blocks = new Stack("used", "cached");
  #outlook = element("p", { class: "muted" });

  constructor(name) {
    const facts = element("dl", { class: "facts" });
    for (const [key, label] of [["batch", "in batch"], ["waiting", "waiting"], ["tokens", "to read"], ["step", "a step"]]) {
      const value = (this.#facts[key] = element("dd"));
      facts.append(element("div", {}, element("dt", {}, label), value));
    }
    this.#stepLabel = this.#facts.step.previousSibling;
    const head = element("div", { class: "head" }, element("h3", {}, name), this.#state, this.#cores);
    this.node = element("article", { class: "worker", "data-worker": name }, head, facts);
    this.node.append(this.#reads.text, this.#reads.bar, this.#blocks.text, this.#blocks.bar, this.#outlook);
  }

  show({ status, outlook, address }) {
    this.node.dataset.state = this.#state.dataset.state = status.state;
    set(this.#state, status.state);
    const machine = address.node ? ` of ${address.node}` : "";
    set(this.#cores, status.cores.length ? `${status.cores.length === 1 ? "core" : "cores"} ${cores(status.cores)}${machine}` : "");
    set(this.#facts.batch, count(status.num_running));
    set(this.#facts.waiting, count(status.num_waiting));
    set(this.#facts.tokens, count(status.queued_prefill_tokens));
    const isWriter = status.decode_step_s > 0;
    set(this.#stepLabel, isWriter ? "a step" : "tokens/s");
    set(this.#facts.step, isWriter ? duration(status.decode_step_s) : count(status.prefill_tokens_per_s));
    this.#reads.show([status.prefill_share], `${percent(status.prefill_share)} of its time goes to prompts`);
    const { num_blocks: all, num_free_blocks: free, num_cached_blocks: cached } = status;
    const used = all - free - cached;
    this.#blocks.text.hidden = this.#blocks.bar.hidden = all === 0;
    const words = `${count(used)} of ${count(all)} blocks in use, ${count(cached)} cached`;
    this.#blocks.show(all ? [used / all, cached / all] : [0, 0], words);
    set(this.#outlook, outlook);
  }
}

// A bar of shares side by side, with the words that tell the same.
export class Stack {
  #parts;

  constructor(...kinds) {
    this.#parts = kinds.map((kind) => element("span", { class: kind }));
    this.bar = element("div", { class: "stack", "aria-hidden": "true" }, ...this.#parts);
    this.text = element("p", { class: "muted" });
  }

  show(shares, text) {
    this.#parts.forEach((part, index) => (part.style.width = `${(shares[index] * 100).toFixed(2)}%`));
    set(this.text, text);
  }
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
