// Markdown as nodes of the page. Text only ever becomes text nodes, and links are http alone, so
// that nothing a model writes can run.

// Runs of backticks are taken whole, and what spans much is no span: the time stays near linear.
const INLINE = /(?<!`)(`+)(?!`)([\s\S]{0,5000}?[^`])\1(?!`)|\*\*(?=\S)([\s\S]{0,5000}?\S)\*\*|(?<![\w*])\*(?=\S)([^*]{0,5000}?\S)\*(?![\w*])|\[([^\]\n]{1,1000})\]\((https?:\/\/[^\s)]{1,2000})\)/;
const DEEPEST = 16; // quotations in quotations and lists in lists

/** An element with children: nodes, strings, or lists of them, which may be long. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  for (const child of children.flat()) element.append(child);
  return element;
}

/** Code, strong, emphasis and links within a line. */
function inline(text) {
  const found = [];
  for (let match; (match = INLINE.exec(text)); text = text.slice(match.index + match[0].length)) {
    found.push(text.slice(0, match.index));
    const [, , code, strong, emphasis, label, link] = match;
    if (code !== undefined) found.push(make("code", {}, code.trim()));
    else if (strong !== undefined) found.push(make("strong", {}, inline(strong)));
    else if (emphasis !== undefined) found.push(make("em", {}, inline(emphasis)));
    else found.push(make("a", { href: link, rel: "noopener noreferrer", target: "_blank" }, label));
  }
  return [...found, text];
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*(\S*)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const ROW = /^\s*\|(.+)\|\s*$/;
const STARTS = [FENCE, HEADING, ITEM, QUOTE, RULE, ROW];

/** Nodes of a text, block by block; what is nested too deeply is text alone. */
export function markdown(text, depth = 0) {
  if (depth > DEEPEST) return [text];
  const lines = text.replace(/\r\n?/g, "\n").split("\n"), found = [];
  for (let at = 0; at < lines.length; ) {
    const [node, next] = block(lines, at, depth);
    if (node) found.push(node);
    at = Math.max(next, at + 1);
  }
  return found;
}

function block(lines, at, depth) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  if (FENCE.test(line)) return fenced(lines, at);
  if (RULE.test(line)) return [make("hr"), at + 1];
  const heading = HEADING.exec(line);
  if (heading) return [make(`h${Math.min(heading[1].length + 1, 6)}`, {}, inline(heading[2])), at + 1];
  if (QUOTE.test(line)) {
    const end = until(lines, at, (next) => !QUOTE.test(next));
    const inner = lines.slice(at, end).map((one) => one.replace(QUOTE, ""));
    return [make("blockquote", {}, markdown(inner.join("\n"), depth + 1)), end];
  }
  if (ITEM.test(line)) return list(lines, at, depth);
  if (ROW.test(line) && /^[\s|:-]+$/.test(lines[at + 1] ?? "") && ROW.test(lines[at + 1])) return table(lines, at);
  const end = until(lines, at, (next) => !next.trim() || STARTS.slice(0, 5).some((start) => start.test(next)));
  return [paragraph(lines.slice(at, end)), end];
}

/** The first line behind `at` at which `stops` is true. */
function until(lines, at, stops) {
  let end = at + 1;
  while (end < lines.length && !stops(lines[end])) end++;
  return end;
}

function paragraph(lines) {
  const children = lines.flatMap((line, i) => [...(i ? [make("br")] : []), ...inline(line.trim())]);
  return make("p", {}, children);
}

function fenced(lines, at) {
  const [, fence] = FENCE.exec(lines[at]);
  const closes = (line) => line.trim().startsWith(fence) && !line.trim().slice(fence.length).replaceAll(fence[0], "");
  const end = until(lines, at, closes);
  return [make("pre", {}, make("code", {}, lines.slice(at + 1, end).join("\n"))), end + 1];
}

function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]), items = [];
  const ordered = /\d/.test(mark);
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || item[1].length > indent.length + 1 || item[1].length < indent.length || /\d/.test(item[2]) !== ordered) break;
    const deeper = (line) => line.trim() && !/^\s/.test(line.slice(indent.length, indent.length + 2).slice(0, 1) || "x");
    const end = until(lines, at, (line) => !line.trim() || deeper(line));
    const inner = lines.slice(at + 1, end).map((line) => line.slice(Math.min(line.search(/\S|$/), indent.length + mark.length + 1)));
    items.push(make("li", {}, inline(item[3]), markdown(inner.join("\n"), depth + 1)));
    at = end;
    if (!lines[at]?.trim() && ITEM.test(lines[at + 1] ?? "")) at++;
  }
  const start = ordered && parseInt(mark) !== 1 ? { start: parseInt(mark) } : {};
  return [make(ordered ? "ol" : "ul", start, items), at];
}

function table(lines, at) {
  const end = until(lines, at, (line) => !ROW.test(line));
  const cells = (line, kind) => ROW.exec(line)[1].split("|").map((cell) => make(kind, {}, inline(cell.trim())));
  const rows = lines.slice(at + 2, end).map((line) => make("tr", {}, cells(line, "td")));
  return [make("table", {}, make("thead", {}, make("tr", {}, cells(lines[at], "th"))), make("tbody", {}, rows)), end];
}
