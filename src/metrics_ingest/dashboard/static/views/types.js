// Every registered metric type, a chart each, aggregated as its kind says.

import { get } from "../api.js";
import { TimeChart } from "../charts.js";
import { csvButton, onZoom } from "./shared.js";
import { card, empty, h, setText } from "../dom.js";
import { axisOf, count, incrsOf, valueOf } from "../format.js";
import { steps } from "../range.js";

const MEANING = { sum: "sum", mean: "mean, in a band from least to greatest,", any: "on, share", min: "least", max: "greatest", last: "last" };

export class View {
  title = "Metrics";

  constructor({ navigate }) {
    this.navigate = navigate;
    this.grid = h("div", { class: "columns" });
    this.cards = new Map();
    this.nothing = h("div", { hidden: true }, empty("No metric type is registered", h("p", {}, "Add one: metrics-ingest type add NAME --kind duration --unit s")));
    this.element = h("div", { class: "view" }, h("h1", {}, "Metrics"),
      h("p", { class: "lead" }, "Drag over a chart to zoom; all charts follow."), this.nothing, this.grid);
  }

  async refresh({ range, parameters, signal }) {
    this.range = range;
    this.parameters = parameters;
    const overview = await get("overview", range.query, signal);
    this.nothing.hidden = overview.types.length > 0;
    await Promise.all(overview.types.map(async (type) => {
      const shown = this.#cardOf(type);
      const series = await get("series", { metric_type: type.metric_type, ...range.query, step: range.step }, signal);
      show(shown, type, series, range);
    }));
    return overview;
  }

  destroy() {
    for (const { chart } of this.cards.values()) chart.destroy();
  }

  #cardOf(type) {
    const name = type.metric_type;
    if (!this.cards.has(name)) {
      const sum = type.aggregation === "sum";
      const form = sum ? "bars" : type.aggregation === "mean" ? "band" : "line";
      const value = valueOf(type);
      const chart = new TimeChart({ form, height: 200, value, axis: axisOf(type), incrs: incrsOf(type), label: name, onzoom: onZoom(this), range: type.kind === "flag" ? [0, 1] : null });
      const figure = h("p", { class: "figure" });
      const meaning = h("p", { class: "sub" });
      const csv = csvButton("series", () => ({ metric_type: name, ...this.range.query, step: this.range.step }));
      const element = card(name, { class: "type", aside: [chart.readout, csv] }, h("div", { class: "type-figure" }, figure, meaning), chart.holder);
      this.cards.set(name, { chart, figure, meaning, value });
      this.grid.append(element);
    }
    return this.cards.get(name);
  }
}

function show({ chart, figure, meaning, value }, type, series, range) {
  const total = type.kind === "flag" ? type.share : type.value;
  setText(figure, value(total));
  setText(meaning, type.metrics ? `${MEANING[type.aggregation]} of ${count(type.metrics)} metrics` : "no metric in this range");
  const xs = steps(series);
  const at = new Map(series.points.map((point, index) => [point[0], index]));
  const column = (pick, missing) => xs.map((x) => (at.has(x) ? pick(at.get(x)) : missing));
  const missing = type.aggregation === "sum" ? 0 : null;
  chart.update({
    xs,
    ys: column((index) => (series.shares ? series.shares[index] : series.points[index][1]), missing),
    low: column((index) => series.bands[index][0], null),
    high: column((index) => series.bands[index][1], null),
    step: range.step, from: range.from / 1000, to: range.to / 1000,
    summary: `${value(total)}, ${MEANING[type.aggregation]}, in the ${range.name}`,
  });
}
