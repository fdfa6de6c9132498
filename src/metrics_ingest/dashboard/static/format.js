// Numbers, durations and times as people read them. Times are in the reader's zone; `utc` is for hovering.

const LOCALE = "en-GB";
const DATE_TIME = new Intl.DateTimeFormat(LOCALE, { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
const DATE_TIME_SECONDS = new Intl.DateTimeFormat(LOCALE, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
const SHORT_DATE_TIME = new Intl.DateTimeFormat(LOCALE, { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const UTC_DAY = new Intl.DateTimeFormat(LOCALE, { weekday: "short", day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });
const WHOLE = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
const TWO = new Intl.NumberFormat(LOCALE, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const SHORT = new Intl.NumberFormat(LOCALE, { maximumSignificantDigits: 3 });
export const NOTHING = "–";
const MINUS = "\u2212";

const signed = (text) => text.replace("-", MINUS);

/** 1,234 */
export const count = (value) => (value === null || value === undefined ? NOTHING : signed(WHOLE.format(value)));

/** 0.42 */
export const score = (value) => (value === null || value === undefined ? NOTHING : signed(TWO.format(value)));

/** 85.3 % */
export function share(value) {
  return value === null || value === undefined ? NOTHING : `${(value * 100).toFixed(value > 0.9995 || value === 0 ? 0 : 1)} %`;
}

/** 350 ms, 12.3 s, 3 min 12 s, 3 h 12 min, 1,234 h; with `days`, 2 d 3 h. */
export function duration(seconds, { days = false } = {}) {
  if (seconds === null || seconds === undefined) return NOTHING;
  if (seconds < 0) return MINUS + duration(-seconds, { days });
  if (seconds === 0) return "0 s";
  if (seconds < 1) return `${SHORT.format(seconds * 1000)} ms`;
  if (seconds < 59.95) return `${SHORT.format(seconds)} s`;
  const [size, unit, part, partUnit] =
    seconds < 3599.5 ? [60, "min", 1, "s"] : days && seconds >= 172_800 ? [86_400, "d", 3600, "h"] : [3600, "h", 60, "min"];
  const parts = Math.round(seconds / part);
  const whole = Math.floor((parts * part) / size);
  const rest = parts - (whole * size) / part;
  return rest && whole < 100 ? `${whole} ${unit} ${rest} ${partUnit}` : `${count(whole)} ${unit}`;
}

/** A value of a metric type, by its kind and unit. */
export function valueOf(type) {
  if (type.kind === "flag") return share;
  if (type.unit === "s") return (value) => duration(value);
  if (type.kind === "score") return score;
  const unit = type.unit && type.unit !== "count" ? ` ${type.unit}` : "";
  return (value) => {
    if (value === null || value === undefined) return NOTHING;
    return signed((Math.abs(value) >= 100 ? WHOLE : SHORT).format(value)) + unit;
  };
}

/** The same in few characters, for an axis. */
export function axisOf(type) {
  if (type.kind === "flag") return (value) => `${Math.round(value * 100)} %`;
  if (type.unit === "s") {
    return (value) => (value >= 3600 ? `${SHORT.format(value / 3600)} h` : value >= 60 ? `${SHORT.format(value / 60)} min` : `${SHORT.format(value)} s`);
  }
  return (value) => signed(Math.abs(value) >= 10_000 ? `${SHORT.format(value / 1000)} k` : SHORT.format(value));
}

/** Steps of an axis that divide time well. */
export function incrsOf(type) {
  return type.unit === "s" ? [1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30].map((n) => n * 60), ...[1, 2, 3, 6, 12, 24, 48, 120, 240, 480, 1200, 2400, 4800, 12_000, 24_000, 120_000].map((n) => n * 3600)] : null;
}

/** The change against the period before: +12 %, in points for shares, as a difference for scores. */
export function change(now, before, kind) {
  if (now === null || before === null || now === undefined || before === undefined) return "";
  const difference = now - before;
  if (kind === "score") return plus(difference, TWO.format(Math.abs(difference)));
  if (kind === "share") return `${plus(difference, (Math.abs(difference) * 100).toFixed(1))} pt`;
  if (before === 0) return now === 0 ? "no change" : "new";
  const percent = Math.round((100 * difference) / before);
  return Math.abs(percent) > 999 ? `× ${SHORT.format(now / before)}` : `${plus(percent, count(Math.abs(percent)))} %`;
}

const plus = (difference, text) => (/[1-9]/.test(text) ? (difference < 0 ? MINUS : "+") : "±") + text;

/** 3 s ago */
export function ago(instant, now) {
  const seconds = Math.max(0, (now - instant) / 1000);
  return seconds < 1.5 ? "just now" : `${age(seconds)} ago`;
}

/** 3 s, 5 min, 2 h, 4 days: how old something is, in one unit. */
export function age(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${count(seconds / 86_400)} days`;
}

export const shortDateTime = (instant) => SHORT_DATE_TIME.format(instant);
export const dateTime = (instant) => DATE_TIME.format(instant);
export const utc = (instant) => `${new Date(instant).toISOString().slice(0, 19).replace("T", " ")} UTC`;
export const dayOf = (instant) => `${UTC_DAY.format(instant)} (UTC)`;
export const exactTime = (instant) => `${DATE_TIME_SECONDS.format(instant)}`;

/** A <time> in the reader's zone that says UTC on hover. */
export function time(instant, { seconds = false } = {}) {
  const element = document.createElement("time");
  if (!instant) {
    element.textContent = NOTHING;
    return element;
  }
  const date = new Date(instant);
  element.dateTime = date.toISOString();
  element.title = utc(date);
  element.textContent = (seconds ? exactTime : dateTime)(date);
  return element;
}
