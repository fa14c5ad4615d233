// Puts the page together: each frame of the feed goes to the parts that show it.

import { showCache } from "./cache.js";
import { Connection } from "./connection.js";
import { percent } from "./format.js";
import { Latency } from "./latency.js";
import { Pools } from "./pools.js";
import { PromptPanel } from "./prompt.js";
import { Requests } from "./requests.js";
import { RequestTable } from "./table.js";
import { followTheme } from "./theme.js";
import { Timeline } from "./timeline.js";

const byId = (id) => document.getElementById(id);
const FULL_USE = 1.5; // of its limit: where a bar is full

const requests = new Requests();
const pools = new Pools(byId("pools"));
const ttft = new Latency(byId("ttft"), "ttft", "first token");
const tpot = new Latency(byId("tpot"), "tpot", "token");
const timeline = new Timeline(byId("timeline"), byId("pointed"), requests);
const table = new RequestTable(byId("requests-details"), byId("requests-table"), requests);
const connection = new Connection({ onFrame, onState, onKeyWanted });
const prompt = new PromptPanel(connection, requests, (id) => timeline.mark(id));

function onFrame(frame) {
  requests.take(frame);
  showHead(frame);
  showVerdict(frame.verdict);
  pools.show(frame, requests);
  ttft.show(frame, requests);
  tpot.show(frame, requests);
  showCache(byId("cache"), frame);
  table.show();
  prompt.show();
}

function showHead(frame) {
  const { status, version } = frame;
  setText(byId("model"), `${status.model} · ${status.health}`);
  setText(byId("version"), `Diptych ${version}`);
  const listed = frame.running.length;
  const more = status.num_requests > listed ? `, ${listed} of them shown` : "";
  setText(byId("requests-count"), `${status.num_requests} here now${more}, ${status.num_ended} ended`);
}

function showVerdict(verdict) {
  const sentence = byId("verdict");
  setText(sentence, verdict.sentence);
  sentence.dataset.bottleneck = verdict.bottleneck;
  for (const phase of ["prefill", "decode"]) {
    const use = verdict[`${phase}_use`];
    byId(`${phase}-use`).style.width = percent(Math.min(use / FULL_USE, 1));
    setText(byId(`${phase}-use-text`), use < 10 ? percent(use) : "10 × +");
  }
}

function onState(state, text) {
  const shown = byId("connection");
  shown.dataset.state = state;
  setText(shown, text);
  byId("main").dataset.stale = String(state !== "live");
  timeline.isLive = state === "live";
}

function onKeyWanted(problem) {
  byId("key-form").hidden = problem === null;
  byId("main").hidden = problem !== null;
  setText(byId("key-problem"), problem ?? "");
  if (problem !== null) byId("key").focus();
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text; // else screen readers would read it again
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  connection.useKey(byId("key").value);
  byId("links").hidden = true; // a link brings no key
  byId("key").value = "";
});
for (const choice of document.querySelectorAll("input[name=span]")) {
  choice.addEventListener("change", () => timeline.showSeconds(Number(choice.value)));
}
followTheme(byId("theme"), () => timeline.readColours());
connection.open();
