"use strict";
/* The page of quintic watch. /events says what has changed of the runs; the curves of those that
   are selected are then asked for again, of the changed ones alone where that suffices. */
const AXES = {
  tokens: { label: "training tokens", unit: "tokens" },
  steps: { label: "steps", unit: "steps" },
  seconds: { label: "seconds of training", unit: "s" },
  flops: { label: "floating-point operations of training", unit: "FLOPs" },
};
const FIELDS = {
  val_loss: "validation loss (nats per token)", train_loss: "training loss (nats per token)",
  tokens_per_s: "tokens per second", step_ms: "milliseconds of a step", lr: "learning rate",
  grad_norm: "norm of the gradient", memory_gib: "memory (GiB)", mfu: "MFU",
  optimizer_ms: "milliseconds of the optimizer", val_s: "seconds of a validation",
  tasks_s: "seconds of the scores on tasks",
};
// Of tasks (quintic.tasks.curves) the metrics are curves: their errors are bands, chance is a level.
const isAccuracy = field => field.endsWith("/acc");
const firstShown = field => ["val_loss", "train_loss"].includes(field) || isAccuracy(field);
const isCurve = field => field !== "elapsed_s" && !/\/(chance|.*_stderr)$/.test(field);
const titleOf = field => FIELDS[field]
  ?? field.replace("/", " ") + (isAccuracy(field) ? " (share of items right)" : "");
const POINTS_IN_ALL = 60000, BANDS_UP_TO = 8, REFRESH_MS = 1000, AGES_MS = 5000;

const get = id => document.getElementById(id);
const runs = new Map(), rows = new Map(), charts = new Map();
const selected = new Set(), unselected = new Set(), stale = new Set(), offered = new Set();
let places = new Map();     // style of each run: its place among all, or that of its group
let range = null, one = null, clockAhead = 0, timer = null, source = null, heatMap = null;

const text = (name, content, parent, properties = {}) => {
  const made = Object.assign(document.createElement(name), properties);
  made.textContent = content;
  parent.appendChild(made);
  return made;
};

function put(element, content) {
  if (element.textContent !== content) element.textContent = content;
}

// Made once: they take longer to make than to use.
const english = new Intl.NumberFormat("en"), byName = new Intl.Collator("en", { numeric: true });
const number = v => v === null || v === undefined ? "" : english.format(v);
const loss = v => v === null ? "" : v.toFixed(4);

function duration(seconds) {
  if (seconds === null) return "";
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]])
    if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
  return `${Math.round(seconds)} s`;
}

async function ask(path, query) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

// --- the runs

function connect() {
  source = new EventSource("/events");
  source.onmessage = event => heard(JSON.parse(event.data));
  source.onerror = () => put(get("news"), "quintic watch has ended, or does not answer");
}

function heard(news) {
  clockAhead = news.now - Date.now() / 1000;
  let added = false;
  for (const run of news.runs) {
    added ||= !runs.has(run.id);
    runs.set(run.id, run);
    if (!unselected.has(run.id)) selected.add(run.id);
    stale.add(run.id);
  }
  const fresh = showFields() || added;
  // A long file is read bit by bit: its curve is asked for at first, and when all of it is known.
  // Before the rows, which are made while the server makes the curves.
  const ready = fresh || news.runs.some(run => run.whole && selected.has(run.id));
  if (ready) refreshSoon(fresh ? 0 : REFRESH_MS, fresh);
  news.runs.forEach(showRow);
  if (added) sortRows();
  if (one === null && runs.size) {
    const found = [...runs.values()];
    show((found.find(run => run.state === "running") ?? found[0]).id);
  } else if (news.runs.some(run => run.id === one)) show(one);
  const states = {};
  for (const run of runs.values()) states[run.state] = (states[run.state] ?? 0) + 1;
  const counts = Object.entries(states).map(([state, count]) => `${count} ${state}`);
  const gone = news.missing.map(folder => `${folder} is gone`);
  const reading = [...runs.values()].filter(run => !run.whole).length;
  put(get("news"), [...counts, ...gone, ...(reading ? [`reading on in ${reading}`] : [])].join(", "));
}

const ordered = () => [...runs.values()].sort((a, b) => byName.compare(a.name, b.name));

function sortRows() {
  const body = document.querySelector("#runs tbody"), inOrder = ordered();
  inOrder.forEach(run => body.appendChild(rows.get(run.id).row));
  if (!get("grouped").checked) style(new Map(inOrder.map((run, i) => [run.id, i])));
}

function style(found) {
  places = found;
  for (const [id, { key }] of rows) {
    if (key.dataset.place === String(places.get(id) ?? 0)) continue;
    key.dataset.place = String(places.get(id) ?? 0);
    key.replaceChildren();
    Chart.drawKey(places.get(id) ?? 0, key);
  }
}

function showRow(run) {
  if (!rows.has(run.id)) {
    const row = document.createElement("tr"), head = text("th", "", row, { scope: "row" });
    const label = text("label", "", head), box = document.createElement("input");
    Object.assign(box, { type: "checkbox", checked: selected.has(run.id) });
    box.addEventListener("change", () => { select([run.id], box.checked); });
    label.append(box);
    const key = text("span", "", label);
    label.append(run.name);
    const cells = Array.from({ length: 7 }, () => text("td", "", row));
    const button = text("button", "details", text("td", "", row), { type: "button" });
    button.setAttribute("aria-label", `details of ${run.name}`);
    button.addEventListener("click", () => { show(run.id); get("one").scrollIntoView(); });
    row.hidden = !run.name.includes(get("filter").value);
    rows.set(run.id, { row, box, key, cells });
  }
  const { row, box, cells } = rows.get(run.id);
  box.checked = selected.has(run.id);
  row.classList.toggle("unselected", !box.checked);
  cells[0].className = run.state;
  const step = run.steps === null ? number(run.step) : `${number(run.step)} of ${number(run.steps)}`;
  [run.state + (run.problem ? " !" : ""), step, loss(run.train_loss), loss(run.val_loss),
    run.tokens_per_s === null ? "" : number(Math.round(run.tokens_per_s)), duration(run.left_s),
    age(run)].forEach((content, i) => put(cells[i], content));
}

function age(run) {
  if (run.written_at === null) return "none";
  return `${duration(Math.max(0, Date.now() / 1000 + clockAhead - run.written_at))} ago`;
}

function select(ids, on) {
  for (const id of ids) {
    selected[on ? "add" : "delete"](id);
    unselected[on ? "delete" : "add"](id);
    showRow(runs.get(id));
  }
  ids.forEach(id => stale.add(id));
  refreshSoon(0, true);
}

// --- the curves

// Offer the fields that are new, as scores are some time after a run's start; return whether some
// is shown at once.
function showFields() {
  let drawn = false;
  const known = new Set([...runs.values()].flatMap(run => run.fields));
  const wanted = [...Object.keys(FIELDS), ...[...known].sort()].filter(name => known.has(name));
  for (const name of new Set(wanted)) {
    if (!isCurve(name) || offered.has(name)) continue;
    offered.add(name);
    const label = text("label", "", get("fields")), box = document.createElement("input");
    Object.assign(box, { type: "checkbox", name: "field", value: name,
      checked: firstShown(name) });
    box.addEventListener("change", () => { showChart(name, box.checked); refreshSoon(0, true); });
    label.append(box, ` ${name}`);
    if (box.checked) showChart(name, true);
    drawn ||= box.checked;
  }
  get("axes").querySelector('[value="flops"]').disabled =
    ![...runs.values()].some(run => run.flops);
  return drawn;
}

function showChart(field, on) {
  if (!on) {
    charts.get(field)?.figure.remove();
    charts.delete(field);
    return;
  }
  const figure = text("figure", "", get("charts")), name = titleOf(field);
  text("h2", field.includes("/") ? name : name.charAt(0).toUpperCase() + name.slice(1), figure);
  const chart = new Chart(text("div", "", figure), { axes: AXES, label: name, title: name,
    keys: false, format: field.endsWith("loss") ? y => y.toFixed(4) : y => String(+y.toPrecision(5)),
    onRange: found => { range = found; refreshSoon(0, true); } });
  charts.set(field, { figure, chart, series: new Map() });
}

const axis = () => document.querySelector('[name="axis"]:checked').value;

const look = field => ({ axis: axis(), logX: get("log-x").checked, logY: get("log-y").checked,
  range, skipFirst: field.endsWith("loss") && !get("whole").checked,
  smoothing: Number(get("smoothing").value) });

function redraw() {
  for (const [field, { chart }] of charts) chart.set(look(field));
}

// One at a time: what is asked for meanwhile is asked for at its end.
let all = false, asking = false, waiting = false;

function refreshSoon(ms, everything = false) {
  all ||= everything;
  if (asking) { waiting = true; return; }
  if (timer !== null && ms > 0) return;
  clearTimeout(timer);
  if (ms > 0) timer = setTimeout(refresh, ms);
  else refresh();
}

async function refresh() {
  const grouped = get("grouped").checked, whole = all || grouped;
  const chosen = ordered().filter(run => selected.has(run.id));
  const wanted = whole ? chosen : chosen.filter(run => stale.has(run.id));
  [timer, all, asking] = [null, false, true];
  stale.clear();
  const points = Math.min(1200, Math.max(200, Math.round(POINTS_IN_ALL / Math.max(1, chosen.length))));
  const query = { axis: axis(), points, grouped: Number(grouped),
    band: Number(chosen.length <= BANDS_UP_TO), runs: wanted.map(run => run.id).join(",") };
  if (range) [query.from, query.to] = range;
  try {
    await Promise.all([...charts].map(async ([field, drawn]) => {
      const { series: found, levels } = wanted.length
        ? await ask("/curves", { ...query, field }) : { series: [], levels: [] };
      if (whole) drawn.series.clear();
      else wanted.forEach(run => drawn.series.delete(run.id));  // its file may have been cut
      for (const series of found) drawn.series.set(series.ids[0], series);
      if (grouped) style(new Map(found.flatMap((series, i) => series.ids.map(id => [id, i]))));
      const ids = grouped ? [...drawn.series.keys()] : chosen.map(run => run.id);
      const series = ids.filter(id => drawn.series.has(id)).map((id, i) => {
        const { label, x, y, low, high } = drawn.series.get(id);
        return { label, index: grouped ? i : places.get(id), x: { [query.axis]: x }, y, low, high };
      });
      drawn.chart.set({ ...look(field), series, ...(levels.length && { levels }) });
    }));
    if (whole) await showDifferences(chosen);
  } catch (error) {
    put(get("news"), `no curves: ${error.message}`);
    all = true;  // is asked for with the next news
  }
  asking = false;
  if (waiting) { waiting = false; refreshSoon(0); }
}

// --- configs, and one run alone

async function showDifferences(chosen) {
  const section = get("differences"), [, table, note] = section.children;
  section.hidden = chosen.length < 2;
  if (section.hidden) return;
  const found = await ask("/differences", { runs: chosen.map(run => run.id).join(",") });
  const names = Object.keys(found.fields);
  table.replaceChildren();
  put(note, [...(names.length ? [] : ["nothing but seeds and bookkeeping"]),
    ...(found.unknown.length ? [`unknown: ${found.unknown.join(", ")}`] : [])].join("; "));
  if (!names.length) return;
  const made = text("table", "", table), head = text("tr", "", text("thead", "", made));
  for (const name of ["run", ...names]) text("th", name, head, { scope: "col" });
  const body = text("tbody", "", made);
  found.runs.forEach((run, i) => {
    const row = text("tr", "", body);
    text("th", run, row, { scope: "row" });
    for (const name of names) text("td", found.fields[name][i], row);
  });
}

async function show(id) {
  one = id;
  const run = runs.get(id), found = await ask("/run", { id }).catch(() => null);
  if (one !== id || !found) return;  // else the server is gone, which the news say
  const section = get("one"), facts = section.querySelector("dl"), sample = found.sample;
  section.hidden = false;
  put(get("one-title"), run.name);
  put(get("problem"), run.problem ?? "");
  facts.replaceChildren();
  for (const [name, value] of Object.entries({ folder: found.folder, ...found.started })) {
    text("dt", name, facts);
    text("dd", value, facts);
  }
  showScores(found.scores);
  put(get("sample-step"), sample ? `after step ${number(sample.step)}` : "none yet");
  get("sample").hidden = !sample;
  get("sample").replaceChildren();
  if (sample) {
    text("span", sample.prompt ?? "", get("sample"));
    get("sample").append(sample.text);
  }
  await showHeatMaps(run);
}

function showScores(scores) {
  const section = get("scores"), host = section.querySelector("div");
  section.hidden = !scores.length;
  host.replaceChildren();
  if (section.hidden) return;
  const made = text("table", "", host), head = text("tr", "", text("thead", "", made));
  for (const name of ["task and metric", "score", "± standard error", "chance", "step"])
    text("th", name, head, { scope: "col" });
  const body = text("tbody", "", made);
  for (const score of scores) {
    const row = text("tr", "", body);
    text("th", score.name, row, { scope: "row" });
    for (const value of [score.value, score.stderr, score.chance]) text("td", loss(value), row);
    text("td", number(score.step), row);
  }
}

// The heat maps of a run are asked for again when its file has another size.
async function showHeatMaps(run) {
  const section = get("diagnostics"), [, problem, host] = section.children;
  const drawn = `${run.id} ${run.diagnostics}`;
  section.hidden = !run.diagnostics;
  if (section.hidden || section.dataset.drawn === drawn) return;
  const found = await ask("/diagnostics", { id: run.id }).catch(() => null);
  if (one !== run.id || !found) return;
  section.dataset.drawn = drawn;
  put(problem, found.problem ?? "");
  host.hidden = !found.maps.length;
  if (heatMap) heatMap.set(found);
  else heatMap = new HeatMap(host, found);
}

// --- controls

for (const input of document.querySelectorAll('[name="axis"]'))
  input.addEventListener("change", () => { range = null; refreshSoon(0, true); });
for (const id of ["log-x", "log-y", "whole"]) get(id).addEventListener("change", () => redraw());
get("smoothing").addEventListener("input", event => {
  const share = Number(event.target.value);
  put(get("smoothing-value"), share ? `over ${(100 * share).toFixed(1)}% of the axis` : "none");
  redraw();
});
get("grouped").addEventListener("change", () => { sortRows(); refreshSoon(0, true); });
const named = () => ordered().filter(run => run.name.includes(get("filter").value));
get("filter").addEventListener("input", () => {
  const found = new Set(named().map(run => run.id));
  for (const [id, { row }] of rows) row.hidden = !found.has(id);
});
get("all").addEventListener("click", () => select(named().map(run => run.id), true));
get("none").addEventListener("click", () => select([...runs.keys()], false));
for (const form of document.forms) form.addEventListener("submit", event => event.preventDefault());
setInterval(() => runs.forEach(run => put(rows.get(run.id).cells[6], age(run))), AGES_MS);
// A browser keeps six connections to one place: a page that nobody sees gives its own back.
document.addEventListener("visibilitychange", () => {
  source?.close();
  if (!document.hidden) connect();
});
connect();
