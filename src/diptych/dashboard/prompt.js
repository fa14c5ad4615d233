// Sends a prompt as any client would, shows the answer while it comes, and its request's phases.

import { events } from "./connection.js";
import { duration, element } from "./format.js";
import { isRunning, phasesOf } from "./requests.js";
import { describe } from "./timeline.js";

const byId = (id) => document.getElementById(id);

export class PromptPanel {
  #connection;
  #requests;
  #onSent;
  #sending = null;
  #id = null;
  #isTold = true;

  constructor(connection, requests, onSent) {
    this.#connection = connection;
    this.#requests = requests;
    this.#onSent = onSent;
    byId("prompt-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("prompt-form").requestSubmit();
    });
    byId("stop").addEventListener("click", () => this.#sending?.abort());
  }

  async #send() {
    if (this.#sending !== null) return;
    this.#sending = new AbortController();
    this.#begin();
    try {
      await this.#ask(this.#sending.signal);
    } catch (error) {
      const isStopped = error.name === "AbortError";
      this.#say(isStopped ? "Stopped: the server was told to write no more." : `Failed: ${error.message}`, !isStopped);
    }
    this.#sending = null;
    byId("send").disabled = false;
    byId("stop").hidden = true;
  }

  #begin() {
    this.#id = null;
    this.#isTold = false;
    byId("send").disabled = true;
    byId("stop").hidden = false;
    byId("answer").hidden = false;
    byId("answer").textContent = "";
    byId("own-phases").hidden = true;
    this.#say("Sent…");
  }

  async #ask(signal) {
    const isChat = byId("prompt-kind").value === "chat";
    const prompt = byId("prompt").value;
    const headers = { "Content-Type": "application/json", ...this.#connection.headers };
    const models = await (await fetch("v1/models", { headers, signal })).json();
    if (models.error) throw new Error(models.error.message);
    const body = { model: models.data[0].id, max_tokens: Number(byId("prompt-tokens").value), stream: true };
    Object.assign(body, isChat ? { messages: [{ role: "user", content: prompt }] } : { prompt });
    const path = isChat ? "v1/chat/completions" : "v1/completions";
    const answer = await fetch(path, { method: "POST", headers, signal, body: JSON.stringify(body) });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      if (this.#id === null) this.#onSent((this.#id = chunk.id));
      for (const choice of chunk.choices) byId("answer").append(choice.delta?.content ?? choice.text ?? "");
    }
  }

  // Shows how far the own request is; called with each frame.
  show() {
    const record = this.#id === null ? undefined : this.#find();
    if (record === undefined || this.#isTold) return;
    const phases = phasesOf(record, this.#requests.lastS);
    const bar = byId("own-phases");
    bar.hidden = false;
    bar.replaceChildren(
      ...phases.map(({ phase, beginS, endS }) => {
        const part = element("span", { class: phase, title: `${phase} ${duration(endS - beginS)}` });
        part.style.flexGrow = String(Math.max(endS - beginS, 0));
        return part;
      }),
    );
    if (isRunning(record)) return;
    this.#isTold = true; // once, at the end: it is read aloud
    this.#say(describe(record, this.#requests.lastS));
  }

  #find() {
    return this.#requests.find(this.#id) ?? this.#requests.find(this.#id.replace(/^[a-z]+-/, ""));
  }

  #say(text, isFailed = false) {
    byId("own-text").textContent = text;
    byId("own-text").dataset.failed = String(isFailed);
  }
}
