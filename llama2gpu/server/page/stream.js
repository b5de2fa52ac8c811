// One answer of the server, as it comes.

/** Why the server refused: its own words. */
async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text.slice(0, 300) || `the server answered ${response.status}`;
  }
}

/** Calls `take(event)` for each JSON object of an event stream; throws what the server reports. */
async function events(body, take) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
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
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const body = JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } });
  const response = await fetch("v1/chat/completions", { method: "POST", headers, body, signal });
  if (!response.ok) throw new Error(await reason(response));
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
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch("v1/models", { headers });
  return response.ok ? (await response.json()).data?.[0]?.id ?? "" : "";
}
