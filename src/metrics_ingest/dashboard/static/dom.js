// Elements without markup: whatever comes from the database is set as text, never parsed as HTML.

/** Make an element. `attributes`: `class`, `on…` listeners, booleans, and plain attributes; children are nodes or text. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set an element's text, if it is another: an unchanged text is not announced and does not flicker. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Put these children in place of those that are there. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

/** A command to copy: the text and a button. */
export function command(text) {
  const button = h("button", { type: "button", class: "quiet", onclick: copy }, "Copy");
  async function copy() {
    await navigator.clipboard.writeText(text);
    setText(button, "Copied");
    setTimeout(() => setText(button, "Copy"), 2000);
  }
  return h("div", { class: "command" }, h("pre", { tabindex: "0" }, h("code", {}, text)), button);
}

/** A card with a heading, things at its right, and a body. */
export function card(title, { aside = [], level = "h2", ...attributes } = {}, ...body) {
  return h("section", { ...attributes, class: `card ${attributes.class ?? ""}` },
    h("header", { class: "card-head" }, h(level, {}, title), h("div", { class: "card-aside" }, aside)), ...body);
}

/** What a view shows when it has nothing to show, and what can be done about it. */
export function empty(title, ...body) {
  return h("div", { class: "empty" }, h("h2", {}, title), ...body);
}
