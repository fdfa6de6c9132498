// The time range: presets that end now, or two instants; always in the address, so that a view can be shared.

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const STEP_MS = { "5min": 5 * MINUTE, hour: HOUR, day: DAY };

export const PRESETS = {
  "1h": { label: "Hour", name: "last hour", length: HOUR },
  "24h": { label: "Day", name: "last 24 hours", length: DAY },
  "7d": { label: "7 days", name: "last 7 days", length: 7 * DAY },
  "30d": { label: "30 days", name: "last 30 days", length: 30 * DAY },
};
export const DEFAULT = "7d";

/** The range that the address's parameters name: { from, to (Date), name, step, sparkStep, preset, previous }. */
export function resolve(parameters, now = new Date()) {
  const [from, to] = ["from", "to"].map((name) => new Date(parameters.get(name) ?? NaN));
  if (from < to) return describe(from, to, `${from.toLocaleString("en-GB", FORM)} to ${to.toLocaleString("en-GB", FORM)}`, null);
  const preset = PRESETS[parameters.get("range")] ? parameters.get("range") : DEFAULT;
  const { length, name } = PRESETS[preset];
  // Whole steps, so that viewers ask for the same range, and long ones are answered by the summaries alone.
  const step = length > 2 * HOUR ? HOUR : MINUTE;
  const end = Math.ceil((now.getTime() + 1) / step) * step;
  return describe(new Date(end - length), new Date(end), name, preset);
}

const FORM = { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" };

function describe(from, to, name, preset) {
  const length = to - from;
  const step = length <= 6 * HOUR ? "5min" : length <= 15 * DAY ? "hour" : "day";
  const sparkStep = length <= 6 * HOUR ? "5min" : length <= 2 * DAY ? "hour" : "day";
  return {
    from, to, name, preset, step, sparkStep,
    length,
    query: { from: from.toISOString(), to: to.toISOString() },
    previous: { from: new Date(from - length).toISOString(), to: from.toISOString() },
  };
}

/** The parameters of the address that name this range, in place of the others that do. */
export function withRange(parameters, { preset = null, from = null, to = null }) {
  const next = new URLSearchParams(parameters);
  for (const name of ["range", "from", "to"]) next.delete(name);
  if (preset) next.set("range", preset);
  else {
    next.set("from", from.toISOString());
    next.set("to", to.toISOString());
  }
  return next;
}

/** What was dragged over in a chart, as a range of at least ten minutes. */
export function zoomed(fromSeconds, toSeconds) {
  const [from, to] = [fromSeconds, toSeconds].map((seconds) => Math.round((seconds * 1000) / MINUTE) * MINUTE);
  return { from: new Date(from), to: new Date(Math.max(to, from + 10 * MINUTE)) };
}

/** All steps of a range as epoch seconds: what the API leaves out is where nothing was stored. */
export function steps(reply) {
  const size = STEP_MS[reply.step] / 1000;
  const [first, end] = [Date.parse(reply.from) / 1000, Date.parse(reply.to) / 1000];
  return Array.from({ length: Math.round((end - first) / size) }, (_, index) => first + index * size);
}

export const stepSeconds = (step) => STEP_MS[step] / 1000;
