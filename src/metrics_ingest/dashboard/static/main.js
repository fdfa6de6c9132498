// The start of the page: follows the address to a view, refreshes it while it is visible, asks for the key when one is needed.

import { ApiError, key } from "./api.js";
import { fill, h } from "./dom.js";
import { address, Header } from "./header.js";
import { resolve } from "./range.js";

const REFRESH_MS = 5000;
const VIEWS = {
  overview: () => import("./views/overview.js"),
  types: () => import("./views/types.js"),
  users: () => import("./views/users.js"),
  user: () => import("./views/user.js"),
  session: () => import("./views/session.js"),
  refused: () => import("./views/refused.js"),
};

const main = document.getElementById("main");
const header = new Header({ navigate, onpause });
let shown = null; // { name, identity, view } of the view on the page
let paused = false;
let timer = 0;
let request = new AbortController();

function navigate(view, parameters) {
  location.hash = address(view, parameters);
}

function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const name = VIEWS[path] ? path : "overview";
  return { name, parameters: new URLSearchParams(query) };
}

/** Show what the address says. A view stays on the page while only its range changes. */
async function follow() {
  const { name, parameters } = route();
  header.show(name, parameters, resolve(parameters));
  const identity = [name, parameters.get("user"), parameters.get("session")].join(" ");
  if (shown?.identity !== identity) {
    const moved = shown !== null;
    const { View } = await VIEWS[name]();
    if (route().name !== name) return;
    shown?.view.destroy?.();
    shown = { identity, view: new View({ navigate, header, refresh }) };
    fill(main, shown.view.element);
    document.title = `${shown.view.title} · metrics-ingest`;
    if (moved) main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  await refresh();
}

/** Fetch the figures of the view, and plan the next time. */
async function refresh() {
  clearTimeout(timer);
  request.abort();
  request = new AbortController();
  const { signal } = request;
  const { parameters } = route();
  const range = resolve(parameters);
  header.show(route().name, parameters, range);
  try {
    const facts = await shown.view.refresh({ parameters, range, signal });
    header.fresh(facts);
    if (!facts.refreshed_at && facts.last_received_at) header.neverRefreshed();
    else header.notice(null);
    main.classList.remove("stale");
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) {
      askForKey();
      return;
    }
    main.classList.add("stale");
    const title = error.status >= 500 || error.status === 0 ? "These figures are not current." : "This cannot be shown.";
    header.notice("error", title, `${error.message}${error.status < 400 || error.status >= 500 ? " Trying again." : ""}`);
  }
  if (!signal.aborted) plan();
}

function plan() {
  clearTimeout(timer);
  if (!paused && document.visibilityState === "visible") timer = setTimeout(refresh, REFRESH_MS);
}

function onpause(now) {
  paused = now;
  if (paused) clearTimeout(timer);
  else refresh();
}

function askForKey() {
  const refused = key.get() !== null;
  key.forget();
  header.notice(null);
  const field = h("input", { type: "password", autocomplete: "off", required: true, "aria-describedby": "key-help" });
  const form = h("form", { class: "card key", onsubmit: open },
    h("h1", {}, "Read key"),
    h("p", { id: "key-help" }, "This dashboard is opened by a read key: one of those in READ_KEYS. Keys for sending metrics do not open it. It is kept for this tab only."),
    refused ? h("p", { class: "wrong", role: "alert" }, "That key is not known here.") : null,
    h("label", {}, "Key", field), h("button", { type: "submit", class: "primary" }, "Open"));
  function open(event) {
    event.preventDefault();
    key.set(field.value.trim());
    shown?.view.destroy?.();
    shown = null;
    follow();
  }
  main.classList.remove("stale");
  fill(main, form);
  field.focus();
}

addEventListener("hashchange", follow);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && !paused && shown) refresh();
  else clearTimeout(timer);
});
setInterval(() => header.tick(), 1000);
follow();
