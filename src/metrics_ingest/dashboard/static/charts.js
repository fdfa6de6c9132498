// Charts by uPlot (vendor/): one way to draw bars, a line, an area, a line with its band, and lanes of on and off.
/* global uPlot */

import { dayOf, exactTime, shortDateTime, utc } from "./format.js";
import { h, setText } from "./dom.js";

const FONT = "11px system-ui, sans-serif";
const sync = uPlot.sync("time");
const drawn = new Set();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of drawn) chart.redraw(false);
});

/**
 * A chart of values by time. `form` is "bars", "line", "area", "band" or "lane"; `value` and `axis` format a value for the readout
 * and for the axis; `onzoom(from, to)` gets the epoch seconds that were dragged over. The readout says what is under the cursor.
 */
export class TimeChart {
  constructor({ form, height, value, axis = value, incrs = null, label, onzoom = null, range = null, xAxis = true, tone = "accent" }) {
    Object.assign(this, { form, height, value, axis, incrs, onzoom, range, xAxis, tone });
    this.label = label;
    this.readout = h("p", { class: "readout" });
    this.holder = h("div", { class: "chart", role: "img", "aria-label": label });
    this.window = [0, 1];
    this.step = null;
    this.observer = new ResizeObserver(([entry]) => this.#resize(Math.floor(entry.contentRect.width)));
    this.observer.observe(this.holder);
  }

  /** Draw: `xs` epoch seconds, `ys` values or null, `low` and `high` of a band, `from` and `to` epoch seconds of the axis. */
  update({ xs, ys, low = null, high = null, from, to, step = null, summary = "" }) {
    this.window = [from, to];
    this.step = step;
    this.values = ys;
    this.xs = xs;
    this.data = this.form === "band" ? [xs, ys, high, low] : [xs, ys];
    this.holder.setAttribute("aria-label", `${this.label}. ${summary}`.trim());
    if (this.plot) this.plot.setData(this.data);
    else this.#resize(this.holder.clientWidth);
  }

  destroy() {
    this.observer.disconnect();
    if (this.plot) {
      drawn.delete(this.plot);
      this.plot.destroy();
    }
  }

  #resize(width) {
    if (width < 40 || !this.data) return;
    if (this.plot) {
      if (width !== this.plot.width) this.plot.setSize({ width, height: this.height });
      return;
    }
    this.plot = new uPlot(this.#options(width), this.data, this.holder);
    drawn.add(this.plot);
  }

  #options(width) {
    const chart = this;
    return {
      width,
      height: this.height,
      padding: [8, 20, this.xAxis ? 0 : 4, 0],
      legend: { show: false },
      tzDate: (seconds) => (chart.step === "day" ? uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC") : new Date(seconds * 1000)),
      cursor: {
        y: false,
        sync: { key: sync.key, scales: ["x", null] },
        drag: { x: Boolean(this.onzoom), y: false, setScale: false },
        points: { size: 7, fill: () => colour(this.tone), show: this.form !== "lane" },
      },
      scales: { x: { time: true, range: () => this.window }, y: { range: (_, low, high) => this.#yRange(low, high) } },
      axes: [
        {
          show: this.xAxis, font: FONT, size: 32, stroke: () => colour("muted"), ticks: { show: false }, grid: { show: false },
          space: 72,
          values: [
            [31536000, "{YYYY}", null, null, null, null, null, null, 1],
            [2419200, "{MMM}", "\n{YYYY}", null, null, null, null, null, 1],
            [86400, "{D} {MMM}", "\n{YYYY}", null, null, null, null, null, 1],
            [3600, "{HH}:{mm}", "\n{D} {MMM}", null, "\n{D} {MMM}", null, null, null, 1],
            [60, "{HH}:{mm}", "\n{D} {MMM}", null, "\n{D} {MMM}", null, null, null, 1],
            [1, ":{ss}", "\n{HH}:{mm}", null, "\n{HH}:{mm}", null, "\n{HH}:{mm}", null, 1],
          ],
        },
        {
          show: this.form !== "lane", font: FONT, size: 56, gap: 4, stroke: () => colour("muted"), ticks: { show: false },
          grid: { stroke: () => colour("line"), width: 1 }, space: 32,
          values: (_, ticks) => ticks.map((tick) => this.axis(tick)),
          ...(this.incrs ? { incrs: this.incrs } : {}),
        },
      ],
      series: this.#series(),
      bands: this.form === "band" ? [{ series: [2, 3], fill: () => colour(`${this.tone}-soft`) }] : [],
      hooks: {
        setCursor: [(plot) => this.#read(plot.cursor.idx)],
        setSelect: [(plot) => this.#select(plot)],
      },
    };
  }

  #series() {
    const line = { stroke: () => colour(this.tone), width: 1.75, points: { show: true, size: 4, filter: alone } };
    const forms = {
      bars: [{ fill: () => colour(this.tone), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.76, 28], radius: 0.12, align: 1 }) }],
      line: [line],
      area: [{ ...line, fill: () => colour(`${this.tone}-soft`) }],
      band: [line, { width: 0, points: { show: false } }, { width: 0, points: { show: false } }],
      lane: [{ width: 0, fill: () => colour(this.tone), points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }) }],
    };
    return [{}, ...forms[this.form]];
  }

  #yRange(low, high) {
    if (this.range) return this.range;
    if (low === null || high === null) return [0, 1];
    if (this.form === "bars" || this.form === "area") return [Math.min(0, low), high > 0 ? high * 1.08 : low < 0 ? 0 : 1];
    const margin = (high - low || Math.abs(high) || 1) * 0.08;
    return [low >= 0 && low < high / 2 ? 0 : low - margin, high + margin];
  }

  #read(index) {
    if (index === null || index === undefined || this.xs[index] === undefined) {
      setText(this.readout, "");
      this.readout.title = "";
      return;
    }
    const instant = new Date(this.xs[index] * 1000);
    const when = this.step === "day" ? dayOf(instant) : this.step ? shortDateTime(instant) : exactTime(instant);
    const [low, high] = this.form === "band" ? [this.data[3][index], this.data[2][index]] : [null, null];
    const band = low === null || low === undefined ? "" : ` (${this.value(low)} to ${this.value(high)})`;
    setText(this.readout, `${this.value(this.values[index])}${band} · ${when}`);
    this.readout.title = utc(instant);
  }

  #select(plot) {
    const { left, width } = plot.select;
    if (width < 8 || !this.onzoom) return;
    const [from, to] = [left, left + width].map((x) => plot.posToVal(x, "x"));
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.onzoom(from, to);
  }
}

/** The points that no line reaches, because their neighbours are missing. */
function alone(plot, series) {
  const values = plot.data[series];
  const missing = (index) => values[index] === null || values[index] === undefined;
  return [...values.keys()].filter((index) => !missing(index) && missing(index - 1) && missing(index + 1));
}

/** A small line without axes; it says nothing that the figure beside it does not. */
export class Sparkline {
  constructor() {
    this.holder = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.holder.setAttribute("class", "spark");
    this.holder.setAttribute("viewBox", "0 0 120 32");
    this.holder.setAttribute("preserveAspectRatio", "none");
    this.holder.setAttribute("aria-hidden", "true");
    this.line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    this.holder.append(this.line);
  }

  /** Draw the values; null leaves a gap. */
  update(values) {
    const known = values.filter((value) => value !== null);
    const [low, high] = [Math.min(0, ...known), Math.max(...known)];
    const scale = high > low ? 28 / (high - low) : 0;
    const width = 120 / Math.max(1, values.length - 1);
    let path = "";
    let command = "M";
    for (const [index, value] of values.entries()) {
      if (value === null) command = "M";
      else {
        path += `${command}${(index * width).toFixed(1)} ${(30 - (value - low) * scale).toFixed(1)}`;
        command = "L";
      }
    }
    if (this.line.getAttribute("d") !== path) this.line.setAttribute("d", path);
  }
}
