// What the functions refused: by code, with reason and payload, and the command that sends it through again.

import { get } from "../api.js";
import { csvButton } from "./shared.js";
import { card, command, fill, h } from "../dom.js";
import { count, time } from "../format.js";
import { address } from "../header.js";

const PAGE = 25;

export class View {
  title = "Refused";

  constructor({ refresh }) {
    this.again = refresh;
    this.shown = PAGE;
    this.codes = h("nav", { class: "chips", "aria-label": "Codes" });
    this.replay = h("div");
    this.list = h("ol", { class: "refusals" });
    this.more = h("button", { type: "button", onclick: () => this.#more() }, "Show more");
    this.nothing = h("p", { class: "empty-row", hidden: true }, "Nothing was refused in this range. What is refused is kept for three months, with its reason, unless KEEP_REJECTED is false.");
    const csv = csvButton("rejected", () => ({ ...this.range.query, code: this.code }));
    this.element = h("div", { class: "view" }, h("h1", {}, "Refused"), this.codes,
      card("Refused metrics", { aside: csv }, this.replay, this.list, this.nothing, h("footer", { class: "card-foot" }, h("span"), this.more)));
  }

  async refresh({ range, parameters, signal }) {
    const state = `${range.preset ?? range.name} ${parameters.get("code")}`;
    if (state !== this.state) this.shown = PAGE;
    this.state = state;
    Object.assign(this, { range, parameters, code: parameters.get("code") });
    const [overview, reply] = await Promise.all([
      get("overview", range.query, signal),
      get("rejected", { ...range.query, code: this.code, limit: Math.min(1000, this.shown) }, signal),
    ]);
    this.#chips(overview.refused);
    this.#list(reply);
    return overview;
  }

  #chips(refused) {
    const codes = Object.entries(refused);
    const signature = JSON.stringify([codes, this.code, [...this.parameters]]);
    if (this.chips === signature) return;
    this.chips = signature;
    const chip = (code, label) => {
      const there = new URLSearchParams(this.parameters);
      if (code) there.set("code", code);
      else there.delete("code");
      return h("a", { href: address("refused", there), "aria-current": code === this.code ? "true" : null }, label);
    };
    fill(this.codes, chip(null, "All"), codes.map(([code, number]) => chip(code, `${code} ${count(number)}`)));
    fill(this.replay, h("p", { class: "sub" }, this.code ? "When the cause is fixed, send these through again:" : "When a cause is fixed, send what was refused through again:"),
      command(`metrics-ingest rejected replay${this.code ? ` --code ${this.code}` : ""}`));
    this.replay.hidden = !codes.length;
  }

  #list(reply) {
    const signature = `${reply.rejected.map((refusal) => refusal.rejected_id)}`;
    this.more.hidden = !reply.next || this.shown >= 1000;
    this.nothing.hidden = reply.rejected.length > 0;
    if (this.listed === signature) return;
    this.listed = signature;
    const open = new Set([...this.list.querySelectorAll("details[open]")].map((details) => details.dataset.id));
    fill(this.list, reply.rejected.map((refusal) => item(refusal, open.has(refusal.rejected_id))));
  }

  #more() {
    this.shown += PAGE;
    this.again();
  }
}

function item(refusal, open) {
  const size = refusal.payload_cut ? ` (the first ${count(refusal.payload.length)} of ${count(refusal.payload_bytes)} bytes)` : "";
  const encoding = refusal.payload_encoding === "base64" ? " as base64, because it is not UTF-8" : "";
  const details = h("details", { "data-id": refusal.rejected_id, open },
    h("summary", {},
      h("span", { class: "when" }, time(refusal.received_at, { seconds: true })),
      h("span", { class: "codes-of" }, refusal.codes.map((code) => h("code", {}, code))),
      h("span", { class: "reason" }, refusal.detail)),
    h("div", { class: "payload" },
      h("p", { class: "sub" }, `Payload${size}${encoding}; sent to ${refusal.route}${refusal.key_name ? ` with the key ${refusal.key_name}` : ""}`),
      h("pre", { tabindex: "0" }, h("code", {}, pretty(refusal.payload)))));
  return h("li", {}, details);
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
