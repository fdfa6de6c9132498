// What several views have in common.

import { download } from "../api.js";
import { h, setText } from "../dom.js";
import { withRange, zoomed } from "../range.js";

/** A button that downloads api/`name` as CSV; `parameters` is asked when it is pressed. */
export function csvButton(name, parameters) {
  const button = h("button", { type: "button", class: "quiet", title: "Download as CSV", onclick: save }, "CSV");
  async function save() {
    try {
      await download(name, parameters());
    } catch (error) {
      setText(button, "Failed");
      button.title = error.message;
      setTimeout(() => setText(button, "CSV"), 3000);
    }
  }
  return button;
}

/** What dragging in a chart of this view does: the range in the address becomes what was dragged over, for all charts. */
export function onZoom(view) {
  return (from, to) => view.navigate(view.name ?? route(), withRange(view.parameters, zoomed(from, to)));
}

const route = () => location.hash.replace(/^#\/?/, "").split("?")[0] || "overview";

/** A table with these columns ({ label, class, sort }); `onsort(order)` when one of its headings is pressed. */
export function table(caption, columns, onsort = null) {
  const headings = columns.map((column) => {
    const content = column.sort ? h("button", { type: "button", onclick: () => onsort(column) }, column.label) : column.label;
    return h("th", { scope: "col", class: column.class ?? "" }, content);
  });
  const body = h("tbody");
  const element = h("div", { class: "table-holder", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, headings)), body));
  return { element, body, headings };
}

/** A row of a table: each cell is text or a node. */
export function row(columns, cells) {
  return h("tr", {}, cells.map((cell, index) => h(index ? "td" : "th", { class: columns[index].class ?? "", scope: index ? null : "row" }, cell)));
}

/** Figures in a row: [label, value] pairs. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))));
}

/** Buttons to the page before and after; `state` has `page` (from 0) and whether there is a `next`. */
export function pager(onmove) {
  const before = h("button", { type: "button", onclick: () => onmove(-1) }, "Previous");
  const after = h("button", { type: "button", onclick: () => onmove(1) }, "Next");
  const where = h("span", { class: "sub", "aria-live": "polite" });
  return {
    element: h("nav", { class: "pager", "aria-label": "Pages" }, before, where, after),
    show(page, shown, total, next, size) {
      before.disabled = page === 0;
      after.disabled = !next;
      const first = page * size + 1;
      setText(where, shown ? `${first}–${first + shown - 1}${total === null ? "" : ` of ${total}`}` : "None");
    },
  };
}
