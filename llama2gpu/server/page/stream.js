// One answer of the server, as it comes.

/** Why the server refused: its own words, its code, and the status. */
async function refusal(response) {
  const text = await response.text();
  let message = text.slice(0, 300) || `the server answered ${response.status}`, code = null;
  try {
    ({ message, code } = JSON.parse(text).error);
  } catch {
    // what stands between here and the server has words of its own
  }
  return Object.assign(new Error(message), { status: response.status, code });
}

/** For a promise that ends with the connection, what to tell instead of a browser's own words. */
const lost = (message) => (error) => {
  throw error instanceof TypeError ? new Error(message) : error;
};

/** A key is sent in UTF-8, which a header's characters are the bytes of. */
function authorization(key) {
  const bytes = new TextEncoder().encode(key);
  return key ? { Authorization: `Bearer ${String.fromCharCode(...bytes)}` } : {};
}

/** Calls `take(event)` for each JSON object of an event stream; throws what the server reports. */
async function events(body, take) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read().catch(lost("the connection broke off"));
    if (done) throw new Error("the answer broke off");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      take(event);
    }
  }
}

/**
 * Asks for an answer. `told(text)` has all of it so far.
 * Returns its text, tokens, seconds to the first and from there to the last, and why it ended.
 */
export async function answer(request, key, signal, told) {
  const began = performance.now(), found = { text: "", tokens: 0, first: 0, rest: 0, end: "" };
  const headers = { "Content-Type": "application/json", ...authorization(key) };
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const sent = fetch("v1/chat/completions", { method: "POST", headers, body, signal });
  const response = await sent.catch(lost("the server does not answer: is it still running?"));
  if (!response.ok) throw await refusal(response);
  await events(response.body, (event) => {
    const now = (performance.now() - began) / 1000, choice = event.choices?.[0];
    if (choice?.delta?.content) {
      found.first ||= now;
      found.text += choice.delta.content;
      told(found.text);
    }
    found.rest = now - found.first;
    found.end = choice?.finish_reason ?? found.end;
    found.tokens = event.usage?.completion_tokens ?? found.tokens;
  });
  return found;
}

/** The name of the model that is served; "" where the server does not tell. */
export async function model(key) {
  const response = await fetch("v1/models", { headers: authorization(key) });
  return response.ok ? (await response.json()).data?.[0]?.id ?? "" : "";
}
