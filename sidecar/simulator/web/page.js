// The page of `sidecar demo --keep`: the channel and the direct messages of one person, over Mattermost's own REST API
// and websocket. What stands at #alice or #alice/direct is who looks, and where.

import {blocks, element, emoji} from "/marks.js";

const $ = (id) => document.getElementById(id);
const COLOUR = /^#[0-9a-f]{6}$/i;
const RETRY = 1000;
const HINTS = {
  alice: "React with ✅ or ❌ to a card, or reply in its thread: approve because …",
  ivan: "Reply in a card's thread: approve because …, or deny because …. Or write list to the bot.",
  bob: "Ask for the role. You cannot review your own request: try it.",
};

const stage = await (await fetch("/demo/stage")).json();
const names = new Map([...stage.people, stage.bot].map((one) => [one.id, one.username]));
let me, place, channel, socket, posts, shown, elsewhere;

// Who and where

async function enter() {
  const [name, where] = location.hash.slice(1).split("/");
  me = stage.people.find((one) => one.username === name) ?? stage.people[0];
  place = where === "direct" ? "direct" : "channel";
  const mine = {me, place};
  const direct = await call("POST", "/channels/direct", [me.id, stage.bot.id]);
  if (mine.me !== me || mine.place !== place) return;
  channel = place === "direct" ? direct.id : stage.channel.id;
  [posts, shown, elsewhere] = [new Map(), new Map(), false];
  $("posts").replaceChildren();
  $("posts").dataset.of = "";
  drawPlaces();
  listen();
}

function drawPlaces() {
  $("people").replaceChildren(...stage.people.map((one) =>
    element("a", {href: `#${one.username}/${place}`, "aria-current": String(one === me)}, one.username)));
  const label = {channel: `~${stage.channel.name}`, direct: `@${stage.bot.username} (direct messages)`};
  $("places").replaceChildren(...Object.keys(label).map((one) => element("a", {
    href: `#${me.username}/${one}`, "aria-current": String(one === place),
    className: elsewhere && one !== place ? "news" : "",
  }, label[one])));
  $("ask").hidden = me.id !== stage.requester;
  $("role").textContent = stage.role;
  $("hint").textContent = HINTS[me.username] ?? "";
  $("write").elements.message.placeholder =
    place === "direct" ? "list, show ID, approve ID, deny ID REASON, help" : `Write to ${label.channel}`;
}

// What Mattermost says

async function call(method, path, body) {
  const answer = await fetch(`/api/v4${path}`, {
    method,
    headers: {Authorization: `Bearer ${me.token}`, ...(body && {"Content-Type": "application/json"})},
    body: body && JSON.stringify(body),
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.message);
  return said;
}

function listen() {
  socket?.close();
  const mine = socket = new WebSocket(`ws://${location.host}/api/v4/websocket`);
  const {token} = me;
  mine.onopen = () => mine.send(JSON.stringify({seq: 1, action: "authentication_challenge", data: {token}}));
  mine.onmessage = ({data}) => mine === socket && hear(JSON.parse(data));
  mine.onclose = () => {
    if (mine !== socket) return;
    tell("The connection is lost. Trying again …");
    setTimeout(() => mine === socket && listen(), RETRY);
  };
}

async function hear({event, data, broadcast}) {
  if (event === "hello") return load();
  const elsewhereToo = event === "posted" && broadcast.channel_id !== channel;
  if (elsewhereToo && !elsewhere) {
    elsewhere = true;
    drawPlaces();
  }
  if (broadcast?.channel_id !== channel) return;
  if (data.post) {
    const post = JSON.parse(data.post);
    if (event === "post_deleted") posts.delete(post.id);
    else keep(post);
    draw(post.root_id || post.id);
  } else if (data.reaction) {
    const reaction = JSON.parse(data.reaction);
    react(reaction, event === "reaction_added");
    draw(reaction.post_id);
  }
}

async function load() {
  const asked = channel;
  const found = await call("GET", `/channels/${asked}/posts?per_page=200`);
  if (asked !== channel) return;
  tell("");
  Object.values(found.posts).forEach(keep);
  for (const post of [...posts.values()].sort((one, other) => one.create_at - other.create_at)) {
    if (!post.root_id) draw(post.id);
  }
  $("posts").scrollTop = $("posts").scrollHeight;
  $("posts").dataset.of = `${me.username}/${place}`;
}

function keep(post) {
  const known = posts.get(post.id);
  if (known && known.update_at > post.update_at) return;
  posts.set(post.id, {...post, reactions: post.metadata?.reactions ?? known?.reactions ?? []});
}

function react(reaction, added) {
  const post = posts.get(reaction.post_id);
  if (!post) return;
  const same = (one) => one.user_id === reaction.user_id && one.emoji_name === reaction.emoji_name;
  if (!added) post.reactions = post.reactions.filter((one) => !same(one));
  else if (!post.reactions.some(same)) post.reactions.push(reaction);
}

// What is seen

function draw(rootId) {
  const root = posts.get(rootId);
  let node = shown.get(rootId);
  if (!root) {
    node?.remove();
    shown.delete(rootId);
    return;
  }
  const log = $("posts"), low = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  if (!node) {
    node = element("article", {}, element("div", {className: "thread"}));
    if (root.type === "" && root.props?.attachments?.length) node.append(replyForm(rootId));
    log.append(node);
    shown.set(rootId, node);
  }
  const replies = [...posts.values()].filter((one) => one.root_id === rootId);
  replies.sort((one, other) => one.create_at - other.create_at);
  node.firstChild.replaceChildren(message(root), ...replies.map((one) => message(one)));
  if (low) log.scrollTop = log.scrollHeight;
}

function message(post) {
  const bot = post.user_id === stage.bot.id;
  const author = element("span", {className: "author"}, names.get(post.user_id) ?? "somebody");
  const time = element("time", {}, new Date(post.create_at).toTimeString().slice(0, 5));
  const cards = Array.isArray(post.props?.attachments) ? post.props.attachments : [];
  return element("section", {className: post.root_id ? "reply" : "root", id: `post-${post.id}`},
    element("div", {className: "head"}, author, ...(bot ? [element("span", {className: "tag"}, "BOT")] : []), time),
    ...blocks(post.message), ...cards.map(card), ...reactions(post));
}

function card(attachment) {
  const made = element("div", {className: "card"}, ...blocks(attachment.pretext ?? ""));
  if (COLOUR.test(attachment.color)) made.style.borderLeftColor = attachment.color;
  const fields = element("dl", {});
  for (const {title, value, short} of attachment.fields ?? []) {
    fields.append(element("div", {className: short ? "short" : "", "data-field": title},
      element("dt", {}, title), element("dd", {}, ...blocks(value ?? ""))));
  }
  made.append(fields);
  if (attachment.footer) made.append(element("p", {className: "footer"}, attachment.footer));
  return made;
}

function* reactions(post) {
  const emojis = [...new Set(post.reactions.map((one) => one.emoji_name))];
  if (!emojis.length) return;
  yield element("div", {className: "reactions"}, ...emojis.map((name) => {
    // The bot's own only offer what can be pressed: nobody's vote.
    const given = post.reactions.filter((one) => one.emoji_name === name && one.user_id !== stage.bot.id);
    const mine = given.some((one) => one.user_id === me.id);
    const who = given.map((one) => names.get(one.user_id) ?? "somebody").join(", ");
    const marks = {type: "button", title: who, "aria-pressed": String(mine), "data-emoji": name};
    const button = element("button", marks, given.length ? `${emoji(name)} ${given.length}` : emoji(name));
    button.onclick = () => trying(() => mine
      ? call("DELETE", `/users/me/posts/${post.id}/reactions/${encodeURIComponent(name)}`)
      : call("POST", "/reactions", {user_id: me.id, post_id: post.id, emoji_name: name}));
    return button;
  }));
}

function replyForm(rootId) {
  const input = element("input", {name: "message", autocomplete: "off", placeholder: "Reply …", "aria-label": "Reply"});
  const form = element("form", {className: "answer"}, input, element("button", {}, "Reply"));
  form.onsubmit = (event) => send(event, rootId);
  return form;
}

// What people do

function send(event, rootId) {
  event.preventDefault();
  const input = event.target.elements.message;
  if (!input.value.trim()) return;
  trying(async () => {
    await call("POST", "/posts", {channel_id: channel, root_id: rootId, message: input.value});
    input.value = "";
  });
}

async function ask(event) {
  event.preventDefault();
  const {reason, seconds} = event.target.elements;
  const answer = await fetch("/demo/requests", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({reason: reason.value, seconds: Number(seconds.value)}),
  });
  if (answer.ok) reason.value = "";
  tell(answer.ok ? "" : (await answer.json()).message);
}

async function trying(work) {
  try {
    await work();
    tell("");
  } catch (error) {
    tell(error.message);
  }
}

function tell(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
}

$("write").onsubmit = (event) => send(event, "");
$("ask").onsubmit = ask;
addEventListener("hashchange", () => trying(enter));
await trying(enter);
