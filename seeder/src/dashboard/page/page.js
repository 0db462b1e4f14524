// The fleet's page: draws what /api/events says, and asks the seeder to pause, resume, halt or retry a rollout.
// Whatever a machine says of itself is only ever put on the page as text.
"use strict";

const STAGES = [
  ["idle", "nothing to do", "#9aa5b1"],
  ["fetching", "fetching", "#56b4e9"],
  ["staged", "waits for its turn", "#0072b2"],
  ["applying", "applying", "#f0c31c"],
  ["confirming", "being checked", "#e69f00"],
  ["confirmed", "healthy", "#009e73"],
  ["rolling_back", "going back", "#cc79a7"],
  ["rolled_back", "went back", "#a5447f"],
  ["failed", "needs a person", "#d9480f"],
];
const COLOUR = new Map(STAGES.map(([name, , colour]) => [name, colour]));
const WORDS = new Map(STAGES.map(([name, words]) => [name, words]));
const TROUBLE = new Set(["rolling_back", "rolled_back", "failed"]);
const ATTENTION_MAX = 60;
const RATES_MAX = 240;
const SILENT_S = 120;

const at = (id) => document.getElementById(id);
let status = null;
let only = null;
let places = [];
const rates = [];

function node(tag, words, ...classes) {
  const made = document.createElement(tag);
  if (words !== undefined) made.textContent = words;
  made.classList.add(...classes.filter(Boolean));
  return made;
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

function since(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

function summarise() {
  const all = status.nodes.length;
  const running = status.rollouts.find((rollout) => rollout.phase !== "complete");
  const count = (stage) => status.stages[stage] ?? 0;
  const trouble = [...TROUBLE].reduce((sum, stage) => sum + count(stage), 0);
  const parts = [all === 0 ? "no machine reports yet" : `${all} machine${all === 1 ? "" : "s"}`];
  if (running) {
    const healthy = running.waves.reduce((sum, wave) => sum + wave.healthy, 0);
    parts.push(`release ${running.release} of ${running.channel} is ${running.phase}: ${healthy} of ${running.nodes} healthy`);
  }
  if (trouble) parts.push(`${trouble} in trouble`);
  at("summary").textContent = parts.join(" · ");
}

function drawLegend() {
  const legend = at("legend");
  const shown = STAGES.filter(([name]) => status.stages[name]);
  const items = shown.map(([name, words, colour]) => {
    const button = node("button");
    const swatch = node("i", undefined, "swatch");
    swatch.style.background = colour;
    button.append(swatch, `${words} ${status.stages[name]}`);
    button.setAttribute("aria-pressed", String(only === name));
    button.onclick = () => { only = only === name ? null : name; drawLegend(); drawGrid(); };
    const item = node("li");
    item.append(button);
    return item;
  });
  legend.replaceChildren(...items);
}

function heaps() {
  const by = at("by").value;
  const heap = (machine) => by === "group" ? machine.groups[0] ?? "no group" : by === "rack" ? machine.rack || "no rack" : "";
  const found = new Map();
  for (const machine of status.nodes) {
    const name = heap(machine);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(machine);
  }
  const collator = new Intl.Collator(undefined, { numeric: true });
  for (const machines of found.values()) machines.sort((a, b) => collator.compare(a.host, b.host));
  return [...found].sort(([a], [b]) => collator.compare(a, b));
}

function sized(canvas, height) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}

function drawGrid() {
  const canvas = at("grid");
  const width = canvas.clientWidth;
  const count = status.nodes.length;
  const side = count > 2500 ? 8 : count > 600 ? 11 : count > 120 ? 16 : 22;
  const gap = side > 10 ? 3 : 2;
  const pitch = side + gap;
  const across = Math.max(1, Math.floor(width / pitch));
  const wanted = at("find").value.trim().toLowerCase();
  places = [];
  const labels = [];
  let top = 0;
  for (const [name, machines] of heaps()) {
    if (name) { labels.push([`${name} · ${machines.length}`, top + 12]); top += 18; }
    machines.forEach((machine, index) => {
      places.push({ machine, x: (index % across) * pitch, y: top + Math.floor(index / across) * pitch });
    });
    top += Math.ceil(machines.length / across) * pitch + 8;
  }
  const context = sized(canvas, Math.max(top, 1));
  const style = getComputedStyle(document.body);
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = style.getPropertyValue("--quiet");
  for (const [words, y] of labels) context.fillText(words, 0, y);
  const ink = style.getPropertyValue("--ink");
  for (const { machine, x, y } of places) {
    const fits = (!only || machine.stage === only) && (!wanted || machine.host.toLowerCase().includes(wanted));
    context.globalAlpha = fits ? (machine.ago_s > SILENT_S ? 0.45 : 1) : 0.1;
    context.fillStyle = COLOUR.get(machine.stage) ?? ink;
    context.fillRect(x, y, side, side);
    if (fits && machine.stage === "fetching") {
      context.fillStyle = "#00000066";
      const left = side * (1 - machine.fetched_permille / 1000);
      context.fillRect(x, y, side, left);
    }
    if (fits && TROUBLE.has(machine.stage)) {
      context.strokeStyle = "#ffffff";
      context.beginPath();
      context.moveTo(x + 3, y + 3); context.lineTo(x + side - 3, y + side - 3);
      context.moveTo(x + side - 3, y + 3); context.lineTo(x + 3, y + side - 3);
      context.stroke();
    }
  }
  context.globalAlpha = 1;
  canvas.dataset.machines = String(places.length);
  canvas.dataset.side = String(side);
}

function describe(machine) {
  const words = [machine.host, WORDS.get(machine.stage) ?? machine.stage];
  if (machine.stage === "fetching") words.push(`${Math.round(machine.fetched_permille / 10)} % at ${bytes(machine.down_bytes_per_s)}/s`);
  if (machine.release) words.push(`release ${machine.release}`);
  if (machine.waits) words.push(`waits: ${machine.waits}`);
  if (machine.error) words.push(machine.error);
  words.push(`heard ${since(machine.ago_s)}`);
  return words.join(" · ");
}

function pick(event) {
  const box = at("grid").getBoundingClientRect();
  const side = Number(at("grid").dataset.side);
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const found = places.find((place) => x >= place.x && x < place.x + side && y >= place.y && y < place.y + side);
  if (found) at("picked").textContent = describe(found.machine);
}

function drawRollouts() {
  const section = at("rollouts");
  section.hidden = status.rollouts.length === 0;
  section.replaceChildren(...status.rollouts.map((rollout) => {
    const block = node("div", undefined, "rollout");
    const head = node("div", undefined, "rollout-head");
    head.append(node("h2", `${rollout.channel}: release ${rollout.release}`), node("span", rollout.phase, "phase", rollout.phase));
    head.append(node("span", `${rollout.nodes_touched} of ${rollout.nodes} machines touched`, "quiet"));
    const buttons = node("div", undefined, "buttons");
    for (const [act, when, look] of [["pause", ["running"]], ["resume", ["paused", "halted"]], ["retry", ["halted", "paused", "running"]], ["halt", ["running", "paused"], "danger"]]) {
      const button = node("button", act[0].toUpperCase() + act.slice(1), look);
      button.disabled = !when.includes(rollout.phase) || (act === "retry" && rollout.failed.length === 0);
      button.onclick = () => ask(rollout, act);
      buttons.append(button);
    }
    head.append(buttons);
    block.append(head);
    if (rollout.why) block.append(node("p", `Halted: ${rollout.why}`, "phase", "halted"));
    const waves = node("ol", undefined, "waves");
    rollout.waves.forEach((wave, index) => {
      const item = node("li", undefined, wave.state);
      item.append(node("strong", `Wave ${index + 1}: ${wave.wave}`), ` ${wave.state}`);
      const bar = node("div", undefined, "bar");
      for (const [count, stage] of [[wave.healthy, "confirmed"], [wave.told, "applying"], [wave.failed, "failed"]]) {
        const part = node("i");
        part.style.width = `${wave.nodes ? 100 * count / wave.nodes : 0}%`;
        part.style.background = COLOUR.get(stage);
        bar.append(part);
      }
      item.append(bar);
      const gate = wave.state === "done" ? "" : `; the next wave needs ${wave.needed}`;
      item.append(node("div", `${wave.healthy} of ${wave.nodes} healthy, ${wave.told} at it, ${wave.failed} failed${gate}`, "quiet"));
      waves.append(item);
    });
    block.append(waves);
    return block;
  }));
}

function drawAttention() {
  const weight = (machine) => machine.error ? 0 : TROUBLE.has(machine.stage) ? 1 : machine.waits && machine.stage !== "staged" ? 2 : 3;
  const odd = status.nodes.filter((machine) => weight(machine) < 3 || machine.ago_s > SILENT_S)
    .sort((a, b) => weight(a) - weight(b) || b.ago_s - a.ago_s);
  at("calm").hidden = odd.length > 0;
  at("attention").hidden = odd.length === 0;
  const rows = odd.slice(0, ATTENTION_MAX).map((machine) => {
    const row = node("tr");
    const says = machine.error ?? machine.waits ?? (machine.ago_s > SILENT_S ? "silent" : "");
    row.append(node("td", machine.host), node("td", WORDS.get(machine.stage) ?? machine.stage), node("td", says), node("td", since(machine.ago_s)));
    return row;
  });
  if (odd.length > ATTENTION_MAX) {
    const row = node("tr");
    const more = node("td", `and ${odd.length - ATTENTION_MAX} more: shoal-seeder status lists all`);
    more.colSpan = 4;
    row.append(more);
    rows.push(row);
  }
  at("attention").tBodies[0].replaceChildren(...rows);
}

function drawTraffic() {
  const sum = (field) => status.nodes.reduce((total, machine) => total + machine[field], 0);
  const [peers, seeder] = [sum("from_peers_bytes"), sum("from_seeder_bytes")];
  const all = peers + seeder;
  const figures = [
    ["machines receive", `${bytes(sum("down_bytes_per_s"))}/s`],
    ["the seeder sent", bytes(status.sent_bytes)],
    ["came from peers", all ? `${(100 * peers / all).toFixed(1)} %` : "nothing yet"],
    ["received in all", bytes(all)],
  ];
  at("figures").replaceChildren(...figures.map(([name, value]) => {
    const pair = node("div");
    pair.append(node("dt", name), node("dd", value));
    return pair;
  }));
  const height = 90;
  const context = sized(at("rates"), height);
  const most = Math.max(...rates, 1);
  const step = at("rates").clientWidth / RATES_MAX;
  context.strokeStyle = getComputedStyle(document.body).getPropertyValue("--strong");
  context.lineWidth = 1.5;
  context.beginPath();
  rates.forEach((rate, index) => context.lineTo(index * step, height - 4 - (height - 8) * rate / most));
  context.stroke();
  at("rates-note").textContent = `Received by all machines, since this page is open; highest ${bytes(Math.max(...rates))}/s.`;
}

async function drawReleases() {
  const answer = await fetch("/api/releases");
  if (!answer.ok) return;
  const { channels } = await answer.json();
  const rows = channels.flatMap(({ channel, releases }) => releases.slice(-3).reverse().map((release) => {
    const row = node("tr");
    const decided = new Date(release.decided_s * 1000).toLocaleString();
    row.append(node("td", channel), node("td", String(release.number)), node("td", release.name ?? release.image ?? "withdrawn"), node("td", decided));
    return row;
  }));
  at("releases").tBodies[0].replaceChildren(...rows);
}

function ask(rollout, act) {
  const dialog = at("ask");
  const token = sessionStorage.getItem("token");
  at("ask-title").textContent = `${act[0].toUpperCase() + act.slice(1)} the rollout of ${rollout.channel}?`;
  at("ask-text").textContent = act === "halt" ? "No further machine gets leave to apply until it is resumed." : "";
  at("ask-token-label").hidden = token !== null;
  at("ask-yes").textContent = act[0].toUpperCase() + act.slice(1);
  dialog.onclose = () => { if (dialog.returnValue === "yes") send(rollout.channel, act, token ?? at("ask-token").value.trim()); };
  dialog.returnValue = "no";
  dialog.showModal();
}

async function send(channel, act, token) {
  at("ask-token").value = "";
  const headers = { Authorization: `Bearer ${token}` };
  const answer = await fetch(`/api/rollouts/${encodeURIComponent(channel)}/${act}`, { method: "POST", headers });
  if (answer.status === 401) sessionStorage.removeItem("token");
  else sessionStorage.setItem("token", token);
  at("said").textContent = answer.ok ? `${channel}: ${act} was asked for` : await answer.text();
  setTimeout(() => { at("said").textContent = ""; }, 6000);
}

function draw() {
  summarise();
  drawLegend();
  drawGrid();
  drawRollouts();
  drawAttention();
  drawTraffic();
}

function listen() {
  const events = new EventSource("/api/events");
  let releases = "";
  events.onmessage = (event) => {
    status = JSON.parse(event.data);
    rates.push(status.nodes.reduce((total, machine) => total + machine.down_bytes_per_s, 0));
    if (rates.length > RATES_MAX) rates.shift();
    at("connection").textContent = "";
    draw();
    const known = JSON.stringify(status.rollouts.map((rollout) => [rollout.channel, rollout.release]));
    if (known !== releases || releases === "") { releases = known; drawReleases(); }
  };
  events.onerror = () => { at("connection").textContent = "The seeder does not answer; what is shown is its last word."; };
}

at("grid").addEventListener("pointermove", pick);
at("grid").addEventListener("click", pick);
at("by").addEventListener("change", () => status && drawGrid());
at("find").addEventListener("input", () => status && drawGrid());
window.addEventListener("resize", () => status && draw());
listen();
