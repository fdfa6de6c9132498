// Records metrics and delivers each of them to metrics-ingest exactly once. How and why: docs/clients.md.
// Milliseconds; and bytes: a browser refuses keepalive bodies of more than 64 KiB in flight.
const HOUR = 36e5, PIECE = 6e4;

const result = (source) => new Promise((resolve, reject) => {
  source.onsuccess = source.oncomplete = () => resolve(source.result);
  source.onerror = source.onabort = reject;
});

const call = (callback, argument) => {
  try {
    callback?.(argument);
  } catch (error) {
    console.error(error);
  }
};

// crypto.randomUUID is missing on pages without HTTPS.
const randomId = () => crypto.randomUUID?.() ?? "10000000-1000-4000-8000-100000000000".replace(/[018]/g, (digit) =>
  (digit ^ (crypto.getRandomValues(new Uint8Array(1))[0] & (15 >> (digit / 4)))).toString(16));

export function createClient({
  url, key, userId, sessionId, flushMs = 5000, maxBatch = 500, maxQueue = 10000, onRejected, onDropped,
} = {}) {
  const address = `${url}`.replace(/\/*$/, "/ingest_batch/");
  const name = "metrics-ingest " + address;
  // Each line that this page recorded and that is not answered: its key in IndexedDB, undefined while it is being
  // written, Infinity when that failed and it is sent from here.
  const mine = new Map();
  const flying = new Set(); // lines in keepalive requests, which outlive the page
  let fresh = [], limit = maxBatch, failures = 0, resumeAt = 0, offset = 0, drift = 0;
  let opening, timer, stopped, leaving, closed, tail = Promise.resolve();

  const open = () => opening ??= new Promise((resolve, reject) => {
    setTimeout(reject, 5e3); // because Safari has left this unanswered
    const request = indexedDB.open(name);
    request.onupgradeneeded = () => request.result.createObjectStore("queue", { autoIncrement: true });
    result(request).then((db) => {
      db.onclose = db.onversionchange = () => { // the site's data is being deleted
        db.close();
        opening = null;
        mine.forEach((_, line) => mine.set(line, Infinity));
      };
      resolve(db);
    }, reject);
  });

  // Key 0 holds the time until which the function asked for a pause; lines have keys from 1, none is used again.
  const begin = async (mode = "readwrite") =>
    [(await open()).transaction("queue", mode).objectStore("queue"), IDBKeyRange.lowerBound(1)];

  const arm = (ms) => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = 0;
      flush();
    }, ms);
  };

  // Write what was recorded. The explicit commit is for a page that closes now: it would abort the transaction.
  const keep = async () => {
    const lines = fresh;
    fresh = [];
    try {
      const [store, all] = await begin();
      const adds = lines.map((line) => store.add(line));
      const first = store.getKey(all);
      store.transaction.commit?.();
      await result(store.transaction);
      const keys = adds.map((add) => add.result);
      const answered = lines.map((line, i) => mine.has(line) ? mine.set(line, keys[i]) && 0 : keys[i]).filter(Boolean);
      await settle(answered, answered);
      if (keys.at(-1) - first.result >= maxQueue) await trim();
    } catch {
      for (const line of lines) if (mine.has(line)) mine.set(line, mine.get(line) ?? Infinity);
    }
    let dropped = 0;
    for (const [line, key] of mine) {
      if (mine.size <= maxQueue) break;
      if (key && mine.delete(line) && key == Infinity) dropped++;
    }
    if (dropped) call(onDropped, dropped);
  };

  const trim = async () => {
    const [store, all] = await begin();
    const excess = await result(store.count(all)) - maxQueue;
    if (excess <= 0) return;
    const keys = await result(store.getAllKeys(all, excess));
    keys.forEach((key) => store.delete(key));
    await result(store.transaction);
    call(onDropped, excess);
  };

  const read = async () => {
    let keys = [], lines = [], pause;
    try {
      const [store, all] = await begin("readonly");
      const requests = [store.getAllKeys(all, limit), store.getAll(all, limit), store.get(0)];
      [keys, lines, pause] = await Promise.all(requests.map(result));
      resumeAt = Math.max(resumeAt, pause || 0);
      for (const [line, key] of mine) if (key < (keys[0] ?? Infinity)) mine.delete(line); // another tab's work
    } catch {}
    for (const [line, key] of mine) if (key == Infinity && lines.length < limit) lines.push(line);
    return [lines, keys];
  };

  // Forget lines that were answered. A refused one is reported, or corrected, only by who deletes it.
  const settle = async (lines, keys = lines.map((line) => mine.get(line)), refused = new Map()) => {
    const reports = [];
    const store = keys.some((key) => key < Infinity) && (await begin())[0];
    lines.forEach((line, i) => {
      const key = keys[i], error = refused.get(i);
      const refuse = () => {
        const metric = JSON.parse(line);
        const time = new Date(Date.parse(metric.timestamp) + drift);
        // A space before the line, which JSON ignores, says that it was corrected already.
        if (error.code != "timestamp_out_of_range" || line[0] == " " || Math.abs(drift) < 2e3 || !(time > 0)) {
          return reports.push({ ...error, metric });
        }
        offset = drift;
        const corrected = " " + JSON.stringify({ ...metric, timestamp: time.toISOString() });
        return store ? store.add(corrected) : mine.set(corrected, Infinity);
      };
      const own = mine.delete(line);
      if (key < Infinity) {
        if (error) store.getKey(key).onsuccess = ({ target }) => target.result && refuse();
        store.delete(key);
      } else if (own && error) refuse();
    });
    if (store) await result(store.transaction);
    reports.forEach((report) => call(onRejected, report));
  };

  const post = async (lines, last) => {
    const body = lines.join("\n");
    const keepalive = (last || !failures) && new Blob([body]).size <= PIECE;
    if (keepalive) lines.forEach((line) => flying.add(line));
    try {
      const response = await fetch(address, {
        method: "POST", body, keepalive, signal: AbortSignal.timeout?.(3e4),
        headers: { "content-type": "application/x-ndjson", ...(key && { "x-api-key": key }) },
      });
      const date = Date.parse(response.headers.get("date"));
      if (date) {
        drift = date - Date.now();
        if (offset ? Math.abs(drift) < 6e4 : Math.abs(drift) > 24 * HOUR) offset = offset ? 0 : drift;
      }
      const after = response.headers.get("retry-after");
      const pause = after >= 0 ? after * 1e3 : Date.parse(after) - Date.now() - drift;
      return [response.status, await response.json().catch(() => 0) || {}, Math.min(pause, HOUR)];
    } catch {
      return [0, {}];
    } finally {
      lines.forEach((line) => flying.delete(line));
    }
  };

  // Send lines and act on the answer. True: go on with the next ones.
  const deliver = async (lines, keys, last) => {
    let [status, report, pause] = await post(lines, last);
    try {
      if (report.received == lines.length) { // no problem, and no proxy's own page
        const faults = new Map([...report.errors].reverse().map((error) => [error.index, error]));
        failures = 0;
        if (faults.size < report.rejected) throw limit = 500; // too many to list, or a busy function: send again
        await settle(lines, keys, faults);
        return true;
      }
      if (status == 413) {
        limit = Math.ceil(lines.length / 2);
        if (lines.length < 2) await settle(lines, keys, new Map([[0, { code: "payload_too_large", ...report }]]));
        return true;
      }
    } catch {
      status = 0; // the lines are sent again: see above, or IndexedDB could not forget them
    }
    if (status >= 400 && status < 500 && ![408, 425, 429].includes(status)) {
      if (!stopped) call(onRejected, { code: `http_${status}`, ...report, metric: null });
      stopped = true;
      return false;
    }
    const wait = (pause > 0 ? pause : Math.min(1e3 * 2 ** failures++, 6e4)) * (1 + Math.random());
    arm(wait);
    if (pause > 0) {
      resumeAt = Date.now() + wait;
      begin().then(([store]) => store.put(resumeAt, 0)).catch(() => 0);
    }
    return false;
  };

  const drain = async () => {
    while (!stopped) {
      const [lines, keys] = await read();
      if (!lines.length) return true;
      const wait = resumeAt - Date.now();
      if (wait > 0 && wait < 2 * HOUR) return !!arm(wait);
      if (!(await deliver(lines, keys))) break;
    }
    return false;
  };

  // One tab at a time. A lock that is not had after a minute is held by a suspended page; ids make it safe to go on.
  // What failed while this call waited for its turn is sent again when its pause is over, not at once.
  const flush = (before = failures) => tail = tail.then(() => failures <= before && (globalThis.navigator?.locks
    ?.request(name, { signal: AbortSignal.timeout?.(6e4) }, drain).catch(drain) ?? drain()));

  // Send this page's own lines at once, without the lock, which a page that closes cannot wait for. Only a page that
  // is going away sends before the function's pause is over.
  const handOver = async () => {
    for (let going = !stopped && (leaving || Date.now() > resumeAt); going;) {
      const piece = [];
      let size = 0;
      for (const line of mine.keys()) {
        if (flying.has(line) || piece.length >= limit || size + line.length >= PIECE) continue;
        piece.push(line);
        size += line.length + 1;
      }
      going = piece.length && await deliver(piece, undefined, true);
    }
  };

  const record = (metricType, value, options) => {
    if (closed) return;
    try {
      const timestamp = options?.timestamp ?? Date.now() + offset;
      const line = JSON.stringify({
        user_id: userId, metric_type: metricType, value,
        timestamp: typeof timestamp == "string" ? timestamp : new Date(timestamp).toISOString(),
        session_id: options?.sessionId ?? sessionId, metric_id: randomId(),
      });
      mine.set(line);
      if (fresh.push(line) == 1) queueMicrotask(keep);
      if (leaving) queueMicrotask(handOver);
      if (mine.size % maxBatch == 0 && !failures) flush();
      else timer || arm(flushMs);
    } catch (error) {
      call(onRejected, { code: "invalid_value", detail: `${error}`, metric: null });
    }
  };

  const events = ["visibilitychange", "pagehide", "pageshow", "online"];
  const listen = ({ type }) => {
    leaving = type == "pagehide" || leaving && type != "pageshow";
    if (leaving || type == "visibilitychange" && document.hidden) return handOver();
    if (type == "online") failures = 0;
    flush();
  };

  const close = async () => {
    closed = true;
    events.forEach((type) => removeEventListener(type, listen));
    const empty = await flush();
    clearTimeout(timer);
    opening?.then((db) => db.close(), () => 0);
    return empty;
  };

  events.forEach((type) => globalThis.addEventListener?.(type, listen));
  flush();
  return { record, flush, close };
}
