// The questions: filtered, sorted, and put into the document in chunks as they come into view.

const CHUNK = 40;
const metrics = Object.keys(METRIC).filter((name) => data.rows.some((row) => row.m && name in row.m)).slice(0, 3);
const hasWindows = data.rows.some((row) => row.span || row.win);
const hasAnswers = data.rows.some((row) => row.a);
const types = [...new Set(data.rows.map((row) => row.y).filter((type) => type !== undefined))].sort();
const order = new Map(data.rows.map((row, number) => [row, number]));
const haystack = new Map();

const SORTS = {
  order: ["Order of the run", (row) => order.get(row), 1],
  video: ["Video", (row) => data.videos[row.v].id, 1],
  question: ["Question", (row) => row.t, 1],
  type: ["Type", (row) => row.y, 1],
  answer: ["Answer", (row) => row.a, 1],
  status: ["Status", (row) => Object.keys(STATUS).indexOf(row.s), 1],
  window: ["Window length", (row) => (row.span ? row.span[1] - row.span[0] : undefined), -1],
  sam: ["SAM’s own score", (row) => row.sam, -1],
};
for (const name of metrics) SORTS[name] = [METRIC[name], (row) => row.m?.[name], -1];

const view = { rows: data.rows, shown: 0, sort: "order", direction: 1 };

function searchable(row) {
  if (!haystack.has(row)) {
    const video = data.videos[row.v];
    const parts = [row.t, row.a, video.id, video.file, row.q, `${video.id}/${row.q}`, row.y, row.e];
    haystack.set(row, parts.filter(Boolean).join("\n").toLowerCase());
  }
  return haystack.get(row);
}

function compare(a, b) {
  const value = SORTS[view.sort][1];
  const [x, y] = [value(a), value(b)];
  // What has no value comes last in either direction; equals stay in the run's order.
  if (x === undefined || y === undefined) return (x === undefined) - (y === undefined) || order.get(a) - order.get(b);
  const by = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
  return view.direction * by || order.get(a) - order.get(b);
}

function refresh() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [status, type] = [byId("status").value, byId("type").value];
  view.rows = data.rows
    .filter((row) => !status || row.s === status)
    .filter((row) => !type || row.y === types[Number(type) - 1])
    .filter((row) => words.every((word) => searchable(row).includes(word)))
    .sort(compare);
  view.shown = 0;
  byId("rows").replaceChildren();
  const all = view.rows.length === data.rows.length;
  byId("found").textContent = all
    ? plural(data.rows.length, "question")
    : `${view.rows.length.toLocaleString("en")} of ${plural(data.rows.length, "question")}`;
  byId("none").hidden = view.rows.length > 0;
  byId("sort").value = view.sort;
  for (const cell of byId("head").querySelectorAll("[data-sort]")) {
    const here = cell.getAttribute("data-sort") === view.sort;
    cell.setAttribute("aria-sort", here ? (view.direction > 0 ? "ascending" : "descending") : "none");
  }
  showMore();
}

function showMore(count = CHUNK) {
  const chunk = view.rows.slice(view.shown, view.shown + count);
  const made = chunk.map(tableRow);
  byId("rows").append(...made);
  view.shown += chunk.length;
  byId("more").hidden = view.shown >= view.rows.length;
  // Watched anew: it may still be in view, which would be no change.
  nearEnd.unobserve(byId("more"));
  if (!byId("more").hidden) nearEnd.observe(byId("more"));
}

const nearEnd = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && showMore(), {
  rootMargin: "1200px",
});

const inView = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) thumbnail(target);
  },
  { rootMargin: "300px" },
);

const rowOf = new WeakMap();

function thumbnail(canvas) {
  const row = rowOf.get(canvas);
  const frames = framesOf(row.v);
  if (frames === undefined) return;
  inView.unobserve(canvas);
  if (frames) paint(canvas, row, frames.k[row.i], 192, true).then(() => canvas.classList.add("painted"));
}

function tableRow(row) {
  const video = data.videos[row.v];
  const canvas = make("canvas", { width: 192, height: 108, "aria-hidden": "true" });
  rowOf.set(canvas, row);
  inView.observe(canvas);
  const thumb = make("button", { type: "button", className: "thumb", "aria-label": `Look at ${video.id}/${row.q}` }, canvas);
  const name = make("span", { className: "muted small" }, make("bdi", {}, video.id), " / ", make("bdi", {}, row.q));
  const element = make(
    "tr",
    { role: "row" },
    cell("thumb-cell", "", thumb),
    cell("question", "", make("span", { dir: "auto", className: "text" }, row.t || "–"), name),
    types.length ? cell("type", "Type", make("span", { dir: "auto" }, row.y ?? "–")) : null,
    hasAnswers ? cell("said", "Answer", said(row)) : null,
    hasWindows ? cell("when", "Window", timeline(row), make("span", { className: "muted small" }, windowText(row, "span"))) : null,
    ...metrics.map((metric) => cell("number", METRIC[metric], percent(row.m?.[metric]))),
    cell("number", "SAM", typeof row.sam === "number" ? row.sam.toFixed(2) : "–"),
    cell("status", "", pill(row.s)),
  );
  element.addEventListener("click", () => {
    if (!String(getSelection())) openPlayer(row);
  });
  return element;
}

const cell = (name, label, ...children) =>
  make("td", { className: name, role: "cell", "data-label": label || undefined }, ...children);

function said(row) {
  if (row.e) return make("span", { dir: "auto", className: "error" }, row.e);
  return make("span", { dir: "auto", className: "text" }, row.a ? (row.cut ? `${row.a}…` : row.a) : "–");
}

function sortBy(name, direction) {
  view.direction = direction ?? (view.sort === name ? -view.direction : SORTS[name][2]);
  view.sort = name;
  refresh();
}

function headCell(name, label, className = "") {
  if (!name) return make("th", { scope: "col", role: "columnheader", className }, make("span", { className: "hidden" }, label));
  const button = make("button", { type: "button", className: "sorter" }, label);
  button.addEventListener("click", () => sortBy(name));
  return make("th", { scope: "col", role: "columnheader", className, "data-sort": name }, button);
}

function setUpTable() {
  const head = make(
    "tr",
    { role: "row" },
    headCell(null, "Frame"),
    headCell("question", "Question", "question"),
    types.length ? headCell("type", "Type") : null,
    hasAnswers ? headCell("answer", "Answer") : null,
    hasWindows ? headCell("window", "Window") : null,
    ...metrics.map((metric) => headCell(metric, METRIC[metric], "number")),
    headCell("sam", "SAM", "number"),
    headCell("status", "Status"),
  );
  byId("head").append(head);
  const present = Object.keys(STATUS).filter((status) => data.rows.some((row) => row.s === status));
  choices("status", [["", "All"], ...present.map((status) => [status, STATUS[status]])]);
  choices("type", [["", "All"], ...types.map((type, number) => [String(number + 1), type])]);
  byId("type-label").hidden = !types.length;
  choices("sort", Object.entries(SORTS).map(([name, [label]]) => [name, label]));
  byId("search").addEventListener("input", refresh);
  for (const name of ["status", "type"]) byId(name).addEventListener("change", refresh);
  byId("sort").addEventListener("change", (event) => sortBy(event.target.value, SORTS[event.target.value][2]));
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => showMore());
  addEventListener("beforeprint", () => showMore(Infinity));
  if (hasWindows) byId("legend").append(make("i", { className: "predicted" }), "window of the answer");
  if (data.rows.some((row) => row.win)) byId("legend").append(make("i", { className: "true" }), "true window");
}

const choices = (id, pairs) =>
  byId(id).append(...pairs.map(([value, label]) => make("option", { value }, label)));
