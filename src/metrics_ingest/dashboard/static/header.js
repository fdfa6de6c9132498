// What stands above every view: the views, the time range, how fresh the figures are, and notices of what is wrong.

import { ago, age, utc } from "./format.js";
import { command, fill, h, setText } from "./dom.js";
import { PRESETS, withRange } from "./range.js";

const VIEWS = { overview: "Overview", types: "Metrics", users: "Users", refused: "Refused" };
const PARENT = { user: "users", session: "users" };
const REFRESH = "metrics-ingest summaries refresh";

/** The header. `navigate(view, parameters)` goes somewhere, `onpause(paused)` stops and starts refreshing. */
export class Header {
  constructor({ navigate, onpause }) {
    this.navigate = navigate;
    this.links = Object.entries(VIEWS).map(([view, label]) => [view, h("a", {}, label)]);
    document.getElementById("views").append(...this.links.map(([, link]) => link));
    this.#makeRange();
    this.#makeFreshness(onpause);
    this.notices = document.getElementById("notices");
  }

  /** Follow the address. */
  show(view, parameters, range) {
    this.view = view;
    this.parameters = parameters;
    const kept = new URLSearchParams([...parameters].filter(([name]) => ["range", "from", "to"].includes(name)));
    for (const [name, link] of this.links) {
      link.href = address(name, kept);
      current(link, name === (PARENT[view] ?? view));
    }
    for (const [preset, link] of this.presets) {
      link.href = address(view, withRange(parameters, { preset }));
      current(link, preset === range.preset);
    }
    current(this.custom, range.preset === null);
    setText(this.customLabel, range.preset === null ? range.name : "Custom");
    if (!this.details.open) {
      this.from.value = local(range.from);
      this.to.value = local(range.to);
    }
  }

  /** Say how fresh the figures are: `facts` is what api/overview says, `received` when it was received. */
  fresh(facts) {
    const now = Date.parse(facts.now);
    this.skew = Date.now() - now;
    this.facts = facts;
    this.tick();
  }

  /** Count on: called every second. */
  tick() {
    if (!this.facts) return;
    const now = Date.now() - this.skew;
    const { last_received_at: last, refreshed_at: refreshed } = this.facts;
    setText(this.last, last ? `Last metric ${ago(Date.parse(last), now)}` : "No metric yet");
    this.last.title = last ? utc(last) : "";
    setText(this.refreshed, refreshed ? `Summaries ${age(Math.max(0, now - Date.parse(refreshed)) / 1000)} old` : "Summaries never refreshed");
    this.refreshed.title = refreshed ? utc(refreshed) : "";
  }

  /** Show what is wrong, or with null that nothing is. */
  notice(kind, title, detail = null, shellCommand = null) {
    const said = `${kind} ${title} ${detail}`;
    if (this.said === said) return;
    this.said = said;
    if (!title) fill(this.notices);
    else {
      fill(this.notices, h("div", { class: `notice ${kind}`, role: kind === "error" ? "alert" : "status" },
        h("strong", {}, title), detail ? h("span", {}, detail) : null, shellCommand ? command(shellCommand) : null));
    }
  }

  /** Say that figures are missing because the summaries are. */
  neverRefreshed() {
    this.notice("hint", "The summaries were never refreshed, so most figures are missing.",
      "Run this once now, and then every minute or so:", REFRESH);
  }

  #makeRange() {
    this.presets = Object.entries(PRESETS).map(([preset, { label }]) => [preset, h("a", {}, label)]);
    this.from = h("input", { type: "datetime-local", required: true });
    this.to = h("input", { type: "datetime-local", required: true });
    this.wrong = h("p", { class: "wrong", role: "alert" });
    const form = h("form", { class: "custom", onsubmit: (event) => this.#choose(event) },
      h("label", {}, "From", this.from), h("label", {}, "To", this.to), this.wrong, h("button", { type: "submit" }, "Show"));
    this.customLabel = h("span", {}, "Custom");
    this.custom = h("summary", {}, this.customLabel);
    this.details = h("details", { class: "custom-range" }, this.custom, form);
    document.getElementById("range").append(...this.presets.map(([, link]) => link), this.details);
    document.addEventListener("click", (event) => {
      if (!this.details.contains(event.target)) this.details.open = false;
    });
    this.details.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        this.details.open = false;
        this.custom.focus();
      }
    });
  }

  #choose(event) {
    event.preventDefault();
    const [from, to] = [new Date(this.from.value), new Date(this.to.value)];
    setText(this.wrong, from < to ? "" : "“From” must be before “To”.");
    if (!(from < to)) return;
    this.details.open = false;
    this.navigate(this.view, withRange(this.parameters, { from, to }));
  }

  #makeFreshness(onpause) {
    this.last = h("span", {});
    this.refreshed = h("span", { class: "refreshed" });
    const pause = h("button", { type: "button", class: "live", "aria-pressed": "true", onclick: toggle }, "Live");
    function toggle() {
      const live = pause.getAttribute("aria-pressed") !== "true";
      pause.setAttribute("aria-pressed", String(live));
      setText(pause, live ? "Live" : "Paused");
      pause.title = live ? "Refreshes every five seconds; press to pause" : "Press to refresh again";
      onpause(!live);
    }
    pause.title = "Refreshes every five seconds; press to pause";
    document.getElementById("freshness").append(h("span", { class: "ages" }, this.last, this.refreshed), pause);
  }
}

/** The address of a view. */
export function address(view, parameters) {
  const query = new URLSearchParams(parameters).toString();
  return `#/${view}${query ? `?${query}` : ""}`;
}

function current(link, is) {
  if (is) link.setAttribute("aria-current", "true");
  else link.removeAttribute("aria-current");
}

const local = (date) => new Date(date - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
