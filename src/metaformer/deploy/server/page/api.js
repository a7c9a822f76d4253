// Requests to the server. A busy server is asked again, one that died is waited for.

const PAUSE = 1000; // milliseconds between two looks at a server that is not ready
const BROKEN = 3; // connections that may break off though the server is ready

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

async function isReady(signal) {
  try {
    return (await fetch("v2/health/ready", { signal, cache: "no-store" })).ok;
  } catch (error) {
    signal?.throwIfAborted();
    return false;
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
 * `wait` is called with {kind: "busy" | "away", seconds} whenever it has to wait, and with null when it goes on.
 * Resolves to {response, started}, the moment at which the request that succeeded began.
 */
export async function request(path, options, wait) {
  const { signal } = options;
  let broken = 0;
  for (;;) {
    const started = performance.now();
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      signal?.throwIfAborted();
      broken += 1;
      response = null;
    }
    if (response?.ok) {
      wait(null);
      return { response, started };
    }
    if (response && response.status !== 503) throw new Refused(response.status, await reason(response));
    if (await isReady(signal)) {
      if (broken >= BROKEN) throw new Refused(0, "The connection broke off several times while the image was sent.");
      await pause(response, wait, signal);
    } else {
      wait({ kind: "away" });
      do await sleep(PAUSE, signal);
      while (!(await isReady(signal)));
      wait({ kind: "back" });
    }
  }
}

/** Count down the seconds that a busy server asks for. */
async function pause(response, wait, signal) {
  const asked = Number(response?.headers.get("Retry-After"));
  const seconds = asked > 0 && asked <= 120 ? Math.ceil(asked) : 1;
  await response?.body?.cancel();
  for (let left = seconds; left > 0; left -= 1) {
    wait({ kind: "busy", seconds: left });
    await sleep(1000, signal);
  }
}

/** The models that are served, and limits. */
export async function models(wait) {
  const { response } = await request("models", { cache: "no-store" }, wait);
  return response.json();
}

function form(image) {
  const body = new FormData();
  body.append("image", image, image.name || "image");
  return body;
}

/** A prediction as {answer, text, roundTrip}. */
export async function predict(model, image, signal, wait) {
  const path = `predict/${encodeURIComponent(model)}`;
  const { response, started } = await request(path, { method: "POST", body: form(image), signal }, wait);
  const text = await response.text();
  const roundTrip = performance.now() - started;
  return { answer: JSON.parse(text), text, roundTrip };
}

/** Where the network looked for a class, inside a box if one is given: a gray PNG as a Blob. */
export async function explain(model, image, { index, box }, signal, wait) {
  const query = new URLSearchParams({ index });
  if (box) query.set("box", box.join(","));
  const path = `explain/${encodeURIComponent(model)}?${query}`;
  const { response } = await request(path, { method: "POST", body: form(image), signal }, wait);
  return response.blob();
}
