// The front page: the state of each function, and the next step to take.

import { command, fill, h, setText } from "./dom.js";

const REFRESH_MS = 5000;
const USER = "b2a7465b-5d83-40c6-b8b6-2f8f15cbf23d";
const next = document.getElementById("next");
let shown = "";

async function showHealth() {
  const wrong = new Map();
  let known = true;
  try {
    const reply = await fetch("/health");
    if (!reply.ok) for (const { field, detail } of (await reply.json()).errors) wrong.set(field, detail);
  } catch {
    known = false;
  }
  for (const cell of document.querySelectorAll("[data-function]")) {
    const name = cell.dataset.function;
    const bad = known && wrong.has(name);
    cell.className = `state ${!known ? "" : bad ? "bad" : "ok"}`;
    cell.title = wrong.get(name) ?? "";
    setText(cell, !known ? "No answer" : bad ? "Not ready" : "Ready");
  }
}

async function showNextStep() {
  const reply = await fetch("/dashboard/api/freshness").catch(() => null);
  if (reply?.status === 401) step("key", locked);
  else if (reply?.ok) {
    if ((await reply.json()).last_received_at) step("look", look);
    else step("first", firstMetric);
  }
}

/** Show a step, unless it is there already: what somebody is copying must not be replaced. */
function step(name, content) {
  if (shown === name) return;
  shown = name;
  fill(next, content());
}

const dashboardLink = () => h("a", { class: "primary", href: "/dashboard/" }, "Open the dashboard");

function look() {
  return [h("p", {}, "Metrics are stored. Look at them:"), dashboardLink()];
}

function locked() {
  return [h("p", {}, "Requests need keys here: one of API_KEYS to send metrics, one of READ_KEYS to open the dashboard."), dashboardLink()];
}

function firstMetric() {
  const base = location.origin;
  const now = new Date().toISOString().slice(0, 19);
  return [
    h("p", {}, "No metric is stored yet. Register a user, then send the first metric:"),
    command(`curl ${base}/users/ -H 'Content-Type: application/json' \\\n  -d '{"user_id":"${USER}","name":"Greg"}'`),
    command(`curl ${base}/ingest/ -H 'Content-Type: application/json' \\\n  -d '{"user_id":"${USER}","metric_type":"talked_time","value":12.34,"timestamp":"${now}Z"}'`),
    h("p", {}, "Or fill a local emulator with two weeks of data:"),
    command("make demo"),
  ];
}

async function refresh() {
  if (document.visibilityState === "visible") await Promise.all([showHealth(), showNextStep()]);
  setTimeout(refresh, REFRESH_MS);
}

refresh();
