// Where the tokens of prompts came from: memory, a tier below (disk, shared store), or computing.

import { count, element, size, percent } from "./format.js";
import { Stack } from "./pools.js";

let parts = null;

export function showCache(root, frame) {
  parts ??= build(root);
  const { num_prompt_tokens: all, num_cached_tokens: cached, num_loaded_tokens: loaded } = frame.window;
  const inMemory = cached - loaded;
  const share = all ? percent(cached / all) : "–";
  set(parts.headline, all ? `${share} of ${count(all)} prompt tokens reused` : "No prompt in the last minute");
  parts.stack.show(all ? [inMemory / all, loaded / all] : [0, 0], "");
  set(parts.memory, `memory ${count(inMemory)}`);
  set(parts.disk, `loaded ${count(loaded)}`);
  set(parts.computed, `computed ${count(all - cached)}`);
  set(parts.since, sinceStart(Object.values(frame.status.workers)));
}

function build(root) {
  const made = { headline: element("p", { class: "big" }), stack: new Stack("memory", "disk"), since: element("p", { class: "muted" }) };
  const legend = element("ul", { class: "legend" });
  for (const kind of ["memory", "disk", "computed"]) {
    made[kind] = element("li", { class: kind });
    legend.append(made[kind]);
  }
  root.append(made.headline, made.stack.bar, legend, made.since);
  return made;
}

// What the workers' caches hold, and have been good for since they started.
function sinceStart(workers) {
  const caches = workers.map((info) => info.status.cache).filter((cache) => cache !== null);
  const sum = (of) => caches.reduce((total, cache) => total + of(cache), 0);
  const asked = sum((cache) => cache.num_asked_tokens);
  const hit = sum((cache) => cache.num_memory_tokens + cache.num_tier_tokens);
  const copied = sum((cache) => cache.num_copied_tokens);
  const held = sum((cache) => cache.num_findable_blocks * cache.block_bytes);
  const disks = caches.flatMap((cache) => cache.tiers).filter((tier) => tier.kind === "disk");
  const onDisk = disks.reduce((total, tier) => total + tier.used_bytes, 0);
  const disk = disks.length ? `, ${size(onDisk)} on disk` : ", no disk tier";
  const others = copied ? `, ${percent(copied / asked)} copied from another worker` : "";
  return `Since the workers' start: ${asked ? percent(hit / asked) : "–"} of ${count(asked)} tokens${others}. Held: ${size(held)} in memory${disk}.`;
}

function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
