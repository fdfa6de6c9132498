// The users of a range: searched, sorted, paged.

import { get } from "../api.js";
import { csvButton, pager, row, table } from "./shared.js";
import { card, fill, h, setText } from "../dom.js";
import { count, duration, score, time } from "../format.js";
import { address } from "../header.js";

const PAGE = 25;
const DEFAULT_ORDER = "-last_seen";
const COLUMNS = [
  { label: "User", sort: "name", class: "name" },
  { label: "Talk time", sort: "talk_time", class: "number" },
  { label: "Sessions", sort: "sessions", class: "number" },
  { label: "Sentiment", sort: "sentiment", class: "number" },
  { label: "Metrics", sort: "metrics", class: "number" },
  { label: "Last seen", sort: "last_seen", class: "when" },
];

export class View {
  title = "Users";

  constructor({ navigate, refresh }) {
    this.navigate = navigate;
    this.again = refresh;
    this.cursors = [null];
    this.search = h("input", { type: "search", placeholder: "Name, or how the id begins", "aria-label": "Search users", oninput: () => this.#searched() });
    this.table = table("Users", COLUMNS, (column) => this.#sort(column.sort));
    this.pager = pager((by) => this.#move(by));
    this.note = h("p", { class: "sub" });
    this.nothing = h("p", { class: "empty-row", hidden: true });
    const csv = csvButton("users", () => this.#query());
    this.element = h("div", { class: "view" }, h("h1", {}, "Users"),
      card("Active users", { aside: [this.search, csv] }, this.table.element, this.nothing, h("footer", { class: "card-foot" }, this.note, this.pager.element)));
  }

  async refresh({ range, parameters, signal }) {
    const state = `${range.preset ?? range.name} ${parameters.get("order")} ${parameters.get("search")}`;
    if (state !== this.state) this.cursors = [null];
    this.state = state;
    this.range = range;
    this.parameters = parameters;
    if (document.activeElement !== this.search) this.search.value = parameters.get("search") ?? "";
    const [reply, freshness] = await Promise.all([
      get("users", { ...this.#query(), limit: PAGE, after: this.cursors.at(-1) }, signal),
      get("freshness", {}, signal),
    ]);
    this.next = reply.next;
    this.#show(reply);
    return freshness;
  }

  #query() {
    return { ...this.range.query, order: this.parameters.get("order") ?? DEFAULT_ORDER, search: this.parameters.get("search") };
  }

  #show(reply) {
    const order = this.parameters.get("order") ?? DEFAULT_ORDER;
    COLUMNS.forEach((column, index) => {
      const sorted = order.replace("-", "") === column.sort;
      this.table.headings[index].setAttribute("aria-sort", sorted ? (order.startsWith("-") ? "descending" : "ascending") : "none");
    });
    const kept = new URLSearchParams(this.parameters);
    for (const name of ["order", "search"]) kept.delete(name);
    fill(this.table.body, reply.users.map((user) => {
      kept.set("user", user.user_id);
      const link = h("a", { href: address("user", kept), title: user.user_id }, user.name);
      return row(COLUMNS, [link, duration(user.talked_time_s), count(user.sessions), score(user.mean_sentiment), count(user.metrics), time(user.last_seen_at)]);
    }));
    this.pager.show(this.cursors.length - 1, reply.users.length, reply.total === null ? null : count(reply.total), reply.next, PAGE);
    this.nothing.hidden = reply.users.length > 0;
    const searched = this.parameters.get("search");
    setText(this.nothing, searched ? `No active user’s name has “${searched}” in it, and no id begins so.` : "No user was active in this range; try a longer one.");
    const last = new Date(Date.parse(reply.to) - 1);
    const day = { day: "numeric", month: "short", timeZone: "UTC" };
    setText(this.note, `Whole UTC days, ${new Date(reply.from).toLocaleDateString("en-GB", day)} to ${last.toLocaleDateString("en-GB", day)}`);
  }

  #sort(name) {
    const order = this.parameters.get("order") ?? DEFAULT_ORDER;
    const descends = order === `-${name}` ? false : order === name ? true : name !== "name";
    this.#go({ order: descends ? `-${name}` : name });
  }

  #searched() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.#go({ search: this.search.value.trim() }), 250);
  }

  #go(changes) {
    const next = new URLSearchParams(this.parameters);
    for (const [name, value] of Object.entries(changes)) {
      if (value) next.set(name, value);
      else next.delete(name);
    }
    this.navigate("users", next);
  }

  #move(by) {
    if (by > 0 && this.next) this.cursors.push(this.next);
    else if (by < 0 && this.cursors.length > 1) this.cursors.pop();
    this.again();
  }

  destroy() {
    clearTimeout(this.typing);
  }
}
