// One session: its timeline, a lane for each metric type, and every raw value.

import { get } from "../api.js";
import { TimeChart } from "../charts.js";
import { csvButton, facts, row, table } from "./shared.js";
import { card, fill, h, setText } from "../dom.js";
import { axisOf, count, duration, exactTime, incrsOf, score, time, valueOf } from "../format.js";
import { address } from "../header.js";

const COLUMNS = [
  { label: "Time", class: "name" },
  { label: "Metric", class: "word code" },
  { label: "Value", class: "number" },
  { label: "Received", class: "when" },
];
const ROWS = 500;
const FORM = { score: ["area", 140], gauge: ["area", 120], duration: ["bars", 120], counter: ["bars", 120], flag: ["lane", 36] };

export class View {
  title = "Session";

  constructor() {
    this.lanes = new Map();
    this.heading = h("h1", {}, "Session");
    this.id = h("p", { class: "lead id" });
    this.facts = h("div");
    this.timeline = h("div", { class: "lanes" });
    this.table = table("Raw metrics", COLUMNS);
    this.table.element.classList.add("tall");
    this.more = h("p", { class: "sub" });
    this.crumbs = h("nav", { class: "crumbs", "aria-label": "Where this is" });
    const csv = csvButton("session", () => this.key);
    this.element = h("div", { class: "view" }, this.crumbs, this.heading, this.id, this.facts,
      card("Timeline", { aside: h("p", { class: "sub" }, "every raw value, on hover") }, this.timeline),
      card("Raw metrics", { aside: [this.more, csv] }, this.table.element));
  }

  async refresh({ parameters, signal }) {
    this.key = { user_id: parameters.get("user"), session_id: parameters.get("session") };
    const [reply, { types }, freshness] = await Promise.all([
      get("session", this.key, signal), get("types", {}, signal), get("freshness", {}, signal),
    ]);
    this.#head(reply, parameters);
    const known = `${reply.metrics.length} ${reply.metrics.at(-1)?.metric_id}`;
    if (this.known !== known) {
      this.known = known;
      this.#draw(reply.metrics, types);
      this.#list(reply, types);
    }
    return freshness;
  }

  destroy() {
    for (const chart of this.lanes.values()) chart.destroy();
  }

  #head({ user, session_id: id, summary, metrics }, parameters) {
    const users = new URLSearchParams(parameters);
    users.delete("session");
    const there = address("user", users);
    users.delete("user");
    if (!this.crumbs.childNodes.length) {
      fill(this.crumbs, h("a", { href: address("users", users) }, "Users"), " / ", h("a", { href: there }, user.name));
    }
    const began = metrics[0]?.timestamp;
    setText(this.heading, began ? `Session of ${exactTime(new Date(began))}` : "Session");
    document.title = `${user.name}, session · metrics-ingest`;
    setText(this.id, id);
    if (!summary) {
      fill(this.facts, h("p", { class: "sub" }, "Its summary comes with the next refresh."));
      return;
    }
    const used = (value) => (value === null ? "–" : value ? "used" : "not used");
    const shown = JSON.stringify(summary);
    if (this.summary === shown) return;
    this.summary = shown;
    fill(this.facts, facts([
      ["Duration", duration(summary.duration_s)], ["Talk time", duration(summary.talked_time_s)],
      ["Mean sentiment", score(summary.mean_sentiment)], ["Sentiment shift", score(summary.sentiment_shift)],
      ["Microphone", used(summary.microphone_used)], ["Speaker", used(summary.speaker_used)], ["Metrics", count(summary.metric_count)],
    ]));
  }

  #draw(metrics, types) {
    const seconds = metrics.map((metric) => Date.parse(metric.timestamp) / 1000);
    const [first, last] = [Math.min(...seconds), Math.max(...seconds)];
    const margin = Math.max(5, (last - first) * 0.02);
    const order = Object.keys(FORM);
    const present = types.filter((type) => metrics.some((metric) => metric.metric_type === type.metric_type))
      .sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
    present.forEach((type, index) => {
      const own = metrics.filter((metric) => metric.metric_type === type.metric_type);
      const chart = this.#lane(type, index === present.length - 1);
      const xs = own.map((metric) => Date.parse(metric.timestamp) / 1000);
      const ys = own.map((metric) => metric.value);
      if (type.kind === "flag") { // on until the next value says otherwise, the last one for a moment
        xs.push(xs.at(-1) + margin / 2);
        ys.push(null);
      }
      chart.update({ xs, ys, from: first - margin, to: last + margin, summary: `${own.length} values` });
    });
  }

  #lane(type, isLast) {
    const name = type.metric_type;
    if (!this.lanes.has(name)) {
      const [form, height] = FORM[type.kind];
      const unit = ["s", "score"].includes(type.unit) ? "" : type.unit;
      const value = type.kind === "flag" ? (on) => (on === null ? "" : on ? "on" : "off") : valueOf(type);
      const range = type.kind === "score" && type.min_value !== null && type.max_value !== null ? [type.min_value, type.max_value] : type.kind === "flag" ? [0, 1] : null;
      const chart = new TimeChart({ form, height: height + (isLast ? 32 : 0), value, axis: axisOf(type), incrs: incrsOf(type), label: name, range, xAxis: isLast, tone: type.kind === "flag" ? "second" : "accent" });
      this.lanes.set(name, chart);
      this.timeline.append(h("div", { class: `lane ${type.kind}` }, h("div", { class: "lane-head" }, h("h3", {}, unit ? `${name}, ${unit}` : name), chart.readout), chart.holder));
    }
    return this.lanes.get(name);
  }

  #list({ metrics, more }, types) {
    const format = new Map(types.map((type) => [type.metric_type, type.kind === "flag" ? (on) => (on ? "on" : "off") : valueOf(type)]));
    fill(this.table.body, metrics.slice(0, ROWS).map((metric) => row(COLUMNS, [
      time(metric.timestamp, { seconds: true }), metric.metric_type, format.get(metric.metric_type)(metric.value), time(metric.received_at, { seconds: true }),
    ])));
    const total = more ? `the first ${count(metrics.length)}` : count(metrics.length);
    setText(this.more, metrics.length > ROWS ? `the first ${ROWS} of ${total}; CSV has ${more ? "5,000" : "all"}` : `${total} values`);
  }
}
