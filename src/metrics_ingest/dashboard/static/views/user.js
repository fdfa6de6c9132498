// One user: what their days were like, and their sessions.

import { get } from "../api.js";
import { TimeChart } from "../charts.js";
import { csvButton, onZoom, pager, row, table } from "./shared.js";
import { card, fill, h, setText } from "../dom.js";
import { axisOf, count, dateTime, duration, incrsOf, score, time, valueOf } from "../format.js";
import { steps } from "../range.js";
import { address } from "../header.js";

const PAGE = 25;
const TALK = { kind: "duration", unit: "s" };
const MOOD = { kind: "score", unit: "score" };
const COLUMNS = [
  { label: "Began", class: "name" },
  { label: "Duration", class: "number" },
  { label: "Talk time", class: "number" },
  { label: "Sentiment", class: "number" },
  { label: "Shift", class: "number" },
  { label: "Microphone", class: "word" },
  { label: "Speaker", class: "word" },
  { label: "Metrics", class: "number" },
];

export class View {
  title = "User";

  constructor({ navigate, refresh }) {
    this.navigate = navigate;
    this.again = refresh;
    this.cursors = [null];
    this.name = h("h1", {}, "User");
    this.id = h("p", { class: "lead id" });
    const chart = (form, label, type) => new TimeChart({ form, height: 160, value: valueOf(type), axis: axisOf(type), incrs: incrsOf(type), label, onzoom: onZoom(this) });
    this.talk = chart("bars", "Talk time by day", TALK);
    this.mood = chart("band", "Sentiment by day", MOOD);
    this.table = table("Sessions", COLUMNS);
    this.pager = pager((by) => this.#move(by));
    this.nothing = h("p", { class: "empty-row", hidden: true }, "No session in this range; try a longer one.");
    this.back = h("a", {}, "Users");
    const days = (name) => csvButton("series", () => this.#days(name));
    this.element = h("div", { class: "view" },
      h("nav", { class: "crumbs", "aria-label": "Where this is" }, this.back), this.name, this.id,
      h("div", { class: "columns" },
        card("Talk time by day", { aside: [this.talk.readout, days("talked_time")] }, this.talk.holder),
        card("Sentiment by day", { aside: [this.mood.readout, days("voice_sentiment")] }, this.mood.holder)),
      card("Sessions", { aside: csvButton("sessions", () => ({ user_id: this.user, ...this.range.query })) },
        this.table.element, this.nothing, h("footer", { class: "card-foot" }, h("span"), this.pager.element)));
  }

  async refresh({ range, parameters, signal }) {
    if (this.state !== (range.preset ?? range.name)) this.cursors = [null];
    this.state = range.preset ?? range.name;
    Object.assign(this, { range, parameters, user: parameters.get("user") });
    const [sessions, freshness, talk, mood] = await Promise.all([
      get("sessions", { user_id: this.user, ...range.query, limit: PAGE, after: this.cursors.at(-1) }, signal),
      get("freshness", {}, signal),
      get("series", this.#days("talked_time"), signal).catch(unknownType),
      get("series", this.#days("voice_sentiment"), signal).catch(unknownType),
    ]);
    setText(this.name, sessions.user.name);
    document.title = `${sessions.user.name} · metrics-ingest`;
    setText(this.id, `${sessions.user.user_id} · registered ${dateTime(new Date(sessions.user.created_at))}`);
    const kept = new URLSearchParams(parameters);
    kept.delete("user");
    this.back.href = address("users", kept);
    draw(this.talk, talk, 0);
    draw(this.mood, mood, null);
    this.next = sessions.next;
    this.#list(sessions);
    return freshness;
  }

  #days(name) {
    return { metric_type: name, user_id: this.user, ...this.range.query, step: "day" };
  }

  #list({ sessions, next }) {
    fill(this.table.body, sessions.map((session) => {
      const there = new URLSearchParams(this.parameters);
      there.set("session", session.session_id);
      const began = time(session.first_metric_at);
      return row(COLUMNS, [
        h("a", { href: address("session", there) }, began), duration(session.duration_s), duration(session.talked_time_s),
        score(session.mean_sentiment), score(session.sentiment_shift), used(session.microphone_used), used(session.speaker_used),
        count(session.metric_count),
      ]);
    }));
    this.pager.show(this.cursors.length - 1, sessions.length, null, next, PAGE);
    this.nothing.hidden = sessions.length > 0;
  }

  #move(by) {
    if (by > 0 && this.next) this.cursors.push(this.next);
    else if (by < 0 && this.cursors.length > 1) this.cursors.pop();
    this.again();
  }

  destroy() {
    this.talk.destroy();
    this.mood.destroy();
  }
}

/** A type that is not registered in this database has no days. */
function unknownType(error) {
  if (error.code === "unknown_metric_type") return null;
  throw error;
}

function draw(chart, series, missing) {
  if (!series) return;
  const xs = steps(series);
  const at = new Map(series.points.map((point, index) => [point[0], index]));
  const column = (pick, absent) => xs.map((x) => (at.has(x) ? pick(at.get(x)) : absent));
  chart.update({
    xs,
    ys: column((index) => series.points[index][1], missing),
    low: column((index) => series.bands[index][0], null),
    high: column((index) => series.bands[index][1], null),
    step: "day", from: Date.parse(series.from) / 1000, to: Date.parse(series.to) / 1000,
    summary: `${series.points.length} days with data`,
  });
}

const used = (value) => (value === null ? "–" : value ? "yes" : "no");
