// The overview: figures with their change and course, metrics over time, delay, what was refused.

import { get, recent } from "../api.js";
import { Sparkline, TimeChart } from "../charts.js";
import { csvButton, onZoom } from "./shared.js";
import { card, command, empty, fill, h, setText } from "../dom.js";
import { change, count, dateTime, duration, score, share } from "../format.js";
import { steps, withRange } from "../range.js";
import { address } from "../header.js";

const typeOf = (overview, name) => overview.types.find((type) => type.metric_type === name);
const typed = (name, part) => (overview) => typeOf(overview, name)?.[part] ?? null;

// Each figure: what it is called, where it is in api/overview, how it reads, and what draws its course.
const TILES = [
  { label: "Metrics", read: (o) => o.metrics, format: count, activity: 1 },
  { label: "Active users", read: (o) => o.users, format: count, activity: 2 },
  { label: "Sessions", read: (o) => o.sessions, format: count, activity: 3 },
  { label: "Talk time", read: typed("talked_time", "value"), format: duration, series: "talked_time" },
  { label: "Microphone used", read: typed("microphone_used", "share"), format: share, kind: "share", series: "microphone_used" },
  { label: "Speaker used", read: typed("speaker_used", "share"), format: share, kind: "share", series: "speaker_used" },
  { label: "Mean sentiment", read: typed("voice_sentiment", "value"), format: score, kind: "score", series: "voice_sentiment" },
  { label: "Refused", read: (o) => Object.values(o.refused).reduce((sum, value) => sum + value, 0), format: count, link: "refused" },
];

export class View {
  title = "Overview";

  constructor({ navigate }) {
    this.navigate = navigate;
    this.tiles = TILES.map(tile);
    this.chart = new TimeChart({ form: "bars", height: 220, value: count, axis: axisCount, label: "Metrics over time", onzoom: onZoom(this) });
    this.total = h("p", { class: "sub" });
    this.delay = delayFigures();
    this.refused = h("div", { class: "codes" });
    this.body = h("div", { class: "stack" },
      h("div", { class: "tiles" }, this.tiles.map(({ element }) => element)),
      card("Metrics over time", { aside: [this.chart.readout, csvButton("activity", () => ({ ...this.range.query, step: this.range.step }))] },
        this.chart.holder),
      h("div", { class: "columns" },
        card("Delay", { aside: h("p", { class: "sub" }, "from timestamp to receipt") }, this.delay.element),
        card("Refused", { aside: csvButton("rejected", () => this.range.query) }, this.refused)));
    this.nothing = h("div", { hidden: true });
    this.element = h("div", { class: "view" }, h("h1", {}, "Overview"), this.nothing, this.body);
  }

  async refresh({ range, parameters, signal }) {
    this.range = range;
    this.parameters = parameters;
    const series = TILES.filter((tile) => tile.series).map((tile) => tile.series);
    const spark = { ...range.query, step: range.sparkStep };
    const [now, before, activity, course, ...values] = await Promise.all([
      get("overview", range.query, signal),
      recent("overview", range.previous, signal),
      get("activity", { ...range.query, step: range.step }, signal),
      recent("activity", spark, signal),
      ...series.map((name) => recent("series", { metric_type: name, ...spark }, signal).catch(() => null)),
    ]);
    this.#empty(now);
    this.tiles.forEach((tile, index) => {
      const { read, format, kind, activity: column, series: name, link } = TILES[index];
      const value = read(now);
      setText(tile.value, format(value));
      setText(tile.change, change(value, read(before), kind));
      tile.change.title = `${format(read(before))} in the period before`;
      if (link) tile.element.querySelector("a").href = address(link, rangeOf(parameters));
      if (column) tile.spark.update(columnOf(course, column));
      else if (name) tile.spark.update(valuesOf(values[series.indexOf(name)]));
    });
    const xs = steps(activity);
    this.chart.update({
      xs, ys: columnOf(activity, 1), step: range.step, from: range.from / 1000, to: range.to / 1000,
      summary: `${count(now.metrics)} metrics in the ${range.name}`,
    });
    this.#showDelay(now.delay);
    this.#showRefused(now.refused);
    return now;
  }

  destroy() {
    this.chart.destroy();
  }

  #showDelay({ p50, p99, sample }) {
    setText(this.delay.p50, duration(p50, { days: true }));
    setText(this.delay.p99, duration(p99, { days: true }));
    setText(this.delay.sample, sample ? `Half of the metrics came within the first, 99 % within the second; of ${count(sample)} metrics.` : "No metric in this range.");
  }

  #showRefused(refused) {
    const codes = Object.entries(refused);
    const signature = JSON.stringify(codes);
    if (this.shownRefused === signature) return;
    this.shownRefused = signature;
    if (!codes.length) {
      fill(this.refused, h("p", { class: "sub" }, "Nothing was refused in this range."));
      return;
    }
    const most = Math.max(...codes.map(([, number]) => number));
    fill(this.refused, h("ul", {}, codes.map(([code, number]) => {
      const bar = h("span", { class: "bar-of-code" });
      bar.style.width = `${(100 * number) / most}%`;
      const parameters = rangeOf(this.parameters);
      parameters.set("code", code);
      return h("li", {}, h("a", { href: address("refused", parameters) }, code), h("span", { class: "track", "aria-hidden": "true" }, bar), h("span", { class: "number" }, count(number)));
    })));
  }

  #empty(now) {
    const state = now.metrics ? "" : now.last_received_at ? "elsewhere" : "never";
    this.body.hidden = state === "never";
    this.nothing.hidden = !state;
    if (this.state === state) return;
    this.state = state;
    if (state === "never") fill(this.nothing, firstMetric());
    else if (state === "elsewhere") fill(this.nothing, this.#elsewhere(now));
  }

  #elsewhere({ first_hour: first, last_hour: last }) {
    if (!first) return empty("No metric in this time range", h("p", {}, "There are metrics, but no summary of them yet."));
    const [from, to] = [new Date(first), new Date(Date.parse(last) + 3_600_000)];
    return empty("No metric in this time range",
      h("p", {}, `What is stored lies between ${dateTime(from)} and ${dateTime(to)}: a metric counts at its own timestamp, whenever it was received.`),
      h("p", {}, h("a", { class: "primary", href: address("overview", withRange(this.parameters, { from, to })) }, "Show all of it")));
  }
}

function tile({ label, link }) {
  const value = h("p", { class: "figure" });
  const delta = h("p", { class: "change" });
  const spark = link ? { holder: null } : new Sparkline();
  const name = h("h2", {}, link ? h("a", { href: `#/${link}` }, label) : label);
  return { value, change: delta, spark, element: h("section", { class: "tile" }, name, value, delta, spark.holder) };
}

function delayFigures() {
  const [p50, p99] = [h("dd", {}), h("dd", {})];
  const sample = h("p", { class: "sub" });
  const element = h("div", {}, h("dl", { class: "pair" },
    h("div", {}, h("dt", {}, "p50"), p50), h("div", {}, h("dt", {}, "p99"), p99)), sample);
  return { p50, p99, sample, element };
}

function firstMetric() {
  const base = location.origin;
  const id = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d";
  const now = new Date().toISOString().slice(0, 19);
  return empty("No metric is stored yet",
    h("p", {}, "Register a user, then send the first metric; it appears here within seconds."),
    command(`curl ${base}/users/ -H 'Content-Type: application/json' \\\n  -d '{"user_id":"${id}","name":"Greg"}'`),
    command(`curl ${base}/ingest/ -H 'Content-Type: application/json' \\\n  -d '{"user_id":"${id}",\n       "metric_type":"talked_time","value":12.34,"timestamp":"${now}Z"}'`),
    h("p", {}, "Or fill a local emulator with two weeks of data:"), command("make demo"));
}

function rangeOf(parameters) {
  return new URLSearchParams([...parameters].filter(([name]) => ["range", "from", "to"].includes(name)));
}

function columnOf(activity, column) {
  const found = new Map(activity.points.map((point) => [point[0], point[column]]));
  return steps(activity).map((at) => found.get(at) ?? 0);
}

function valuesOf(series) {
  if (!series) return [];
  const found = new Map(series.points.map(([at, value], index) => [at, series.shares ? series.shares[index] : value]));
  return steps(series).map((at) => found.get(at) ?? (series.aggregation === "sum" ? 0 : null));
}

const axisCount = (value) => (value >= 10_000 ? `${count(value / 1000)} k` : Number.isInteger(value) ? count(value) : "");
