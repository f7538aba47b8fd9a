// The little markdown that the sidecar writes, as nodes: fences, code spans, bold, links, emoji, mentions. Everything
// else is text, whatever it looks like; no text ever becomes markup.

const EMOJI = new Map([["white_check_mark", "✅"], ["x", "❌"], ["eyes", "👀"], ["+1", "👍"]]);
const INLINE = /(`+)(?!`)(.+?)(?<!`)\1(?!`)|\*\*([^*\n]+)\*\*|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)|:([a-z0-9_+-]+):|(?<![\w@])@([a-z][a-z0-9._-]*[a-z0-9])/;

export function element(name, marks = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(marks)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export const emoji = (name) => EMOJI.get(name) ?? `:${name}:`;

export function* blocks(text) {
  let fence = "", lines = [];
  for (const line of String(text).split("\n")) {
    const ticks = /^`{3,}$/.test(line) ? line : "";
    if (ticks && (!fence || ticks === fence)) {
      yield* block(lines, fence);
      [fence, lines] = [fence ? "" : ticks, []];
    } else {
      lines.push(line);
    }
  }
  yield* block(lines, fence);
}

function* block(lines, fence) {
  if (fence) {
    yield element("pre", {}, element("code", {}, lines.join("\n")));
    return;
  }
  for (const paragraph of lines.join("\n").split(/\n\s*\n/)) {
    if (paragraph.trim()) yield element("p", {}, ...spans(paragraph.trim().replace(/^- /gm, "• ")));
  }
}

function* spans(text) {
  for (let found; (found = INLINE.exec(text)); text = text.slice(found.index + found[0].length)) {
    if (found.index) yield text.slice(0, found.index);
    yield span(found);
  }
  if (text) yield text;
}

function span([all, , code, bold, label, url, name, person]) {
  if (code !== undefined) return element("code", {}, code.replace(/^ (.*[^ ].*) $/, "$1"));
  if (bold !== undefined) return element("strong", {}, bold);
  if (url !== undefined) return element("a", {href: url, target: "_blank", rel: "noopener noreferrer"}, label);
  if (name !== undefined) return emoji(name);
  return person === undefined ? all : element("span", {className: "mention"}, `@${person}`);
}
