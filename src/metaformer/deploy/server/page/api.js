// Requests to the server. A busy server is asked again, one that died is waited for.

const PAUSE = 1000; // milliseconds between two looks at a server that is not ready
const BROKEN = 3; // connections that break off though the server is ready, before the visitor is told
const LONGEST = 120; // seconds of a pause

/** An answer other than the wanted one, with the server's own words. */
export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** Wait so many milliseconds, or until the signal aborts. */
function sleep(duration, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, duration);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Whether the server is there and has loaded all networks, or at least the one that is asked for. */
async function isReady(model, signal) {
  try {
    const response = await fetch("v2/health/ready", { signal, cache: "no-store" });
    return response.ok || (await response.json()).models?.[model] === "ready";
  } catch {
    signal?.throwIfAborted();
    return false; // no connection, or a proxy's page
  }
}

/** What an error response says; `error` of its JSON, else its status. */
async function reason(response) {
  const text = await response.text();
  try {
    const said = JSON.parse(text).error;
    if (typeof said === "string" && said) return said;
  } catch {
    // a proxy's page, not the server's JSON
  }
  return `The server answered ${response.status} ${response.statusText}`.trim();
}

/**
 * Fetch, and keep at it while the server is busy or away.
 *
 * `wait` is called with {kind: "busy", text, seconds}, {kind: "away"} and {kind: "back"} while it has to wait, and with
 * null when it goes on. Resolves to {response, started}, the moment at which the request that succeeded began.
 */
export async function request(path, options, wait, model = null) {
  const { signal } = options;
  for (let broken = 0; ; ) {
    const started = performance.now();
    const response = await fetch(path, options).catch(() => null);
    signal?.throwIfAborted();
    if (response?.ok) {
      wait(null);
      return { response, started };
    }
    const seconds = Number(response?.headers.get("Retry-After"));
    if (response?.status === 503 && seconds > 0) {
      await pause(await reason(response), Math.min(Math.ceil(seconds), LONGEST), wait, signal);
    } else if (response && response.status !== 502) {
      throw new Refused(response.status, await reason(response));
    } else if (await isReady(model, signal)) {
      broken += 1;
      if (broken === BROKEN) throw new Refused(0, "The connection broke off several times. Is the file still there?");
    } else {
      wait({ kind: "away" });
      do await sleep(PAUSE, signal);
      while (!(await isReady(model, signal)));
      wait({ kind: "back" });
    }
  }
}

/** Count down the seconds that a busy server asks for. */
async function pause(text, seconds, wait, signal) {
  for (let left = seconds; left > 0; left -= 1) {
    wait({ kind: "busy", text, seconds: left });
    await sleep(1000, signal);
  }
}

/** The models that are served, as soon as all are loaded, and limits. */
export async function models(wait) {
  for (;;) {
    const { response } = await request("models", { cache: "no-store" }, wait);
    const served = await response.json();
    if (served.models.every(({ classes }) => classes)) return served;
    wait({ kind: "loading" });
    await sleep(PAUSE);
  }
}

function form(image) {
  const body = new FormData();
  body.append("image", image, image.name || "image");
  return body;
}

/** A prediction as {answer, roundTrip}. */
export async function predict(model, image, signal, wait) {
  const path = `predict/${encodeURIComponent(model)}`;
  const { response, started } = await request(path, { method: "POST", body: form(image), signal }, wait, model);
  const text = await response.text();
  const roundTrip = performance.now() - started;
  return { answer: JSON.parse(text), roundTrip };
}

/** Where the network looked for a class, inside a box if one is given: a gray PNG as a Blob. */
export async function explain(model, image, { index, box }, signal, wait) {
  const query = new URLSearchParams({ index });
  if (box) query.set("box", box.join(","));
  const path = `explain/${encodeURIComponent(model)}?${query}`;
  const { response } = await request(path, { method: "POST", body: form(image), signal }, wait, model);
  return response.blob();
}
