// The API under the page. The read key is kept for the tab, and sent as X-API-Key.

const KEY = "metrics-ingest read key";

/** A request that failed; `message` says why, for people. `status` 0: no answer at all. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** GET api/`name` with these parameters; those that are null or empty are left out. Throws ApiError. */
export async function get(name, parameters = {}, signal = undefined) {
  const response = await request(name, parameters, signal);
  return response.json();
}

const kept = new Map();

/** The same, but a reply of the last minute will do: for what changes slowly. */
export async function recent(name, parameters, signal) {
  const now = Date.now();
  for (const [old, { at }] of kept) if (now - at > 60_000) kept.delete(old);
  const wanted = `${name} ${JSON.stringify(parameters)}`;
  if (!kept.has(wanted)) kept.set(wanted, { at: now, reply: await get(name, parameters, signal) });
  return kept.get(wanted).reply;
}

/** Download the same as CSV. */
export async function download(name, parameters = {}) {
  const response = await request(name, { ...parameters, format: "csv" });
  const address = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = address;
  link.download = `${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

async function request(name, parameters, signal) {
  const query = new URLSearchParams();
  for (const [parameter, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") query.set(parameter, value);
  }
  const headers = key.get() ? { "X-API-Key": key.get() } : {};
  let response;
  try {
    response = await fetch(`api/${name}?${query}`, { headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The dashboard's server does not answer.");
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new ApiError(response.status, problem.code ?? "error", sentence(problem.detail ?? response.statusText));
  }
  return response;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
