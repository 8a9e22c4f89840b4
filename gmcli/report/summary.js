// What stands above and below the questions: counts, notes, scores, failures, how it was made.

const REASONS = 6;

function showSummary() {
  const run = data.run;
  document.title = `${run.name} · gmcli report`;
  byId("name").replaceChildren(make("bdi", {}, run.name));
  const started = run.started ? run.started.replace("T", " ").replace(/(\+00:00|Z)$/, " UTC") : null;
  const facts = [run.state, run.checkpoint, started, run.wall_seconds ? duration(run.wall_seconds) : null];
  facts.filter(Boolean).forEach((fact, number) => {
    byId("meta").append(number ? " · " : "", make("bdi", {}, fact));
  });
  const said = [];
  for (const status of Object.keys(STATUS)) {
    const count = run.counts[status];
    if (!count) continue;
    const piece = make("i", { className: status });
    piece.style.flexGrow = count;
    byId("share").append(piece);
    said.push(`${count} ${STATUS[status].toLowerCase()}`);
  }
  byId("share").setAttribute("aria-label", said.join(", "));
  byId("tiles").append(
    tile(run.questions, `question${run.questions === 1 ? "" : "s"} on ${plural(run.videos, "video")}`),
    ...Object.keys(STATUS)
      .filter((status) => run.counts[status])
      .map((status) => tile(run.counts[status], STATUS[status].toLowerCase(), status)),
  );
  byId("notes").hidden = !data.notes.length;
  byId("notes").append(...data.notes.map((note) => make("li", { dir: "auto" }, note)));
}

const tile = (count, words, status = "") =>
  make("li", { className: status }, make("b", {}, count.toLocaleString("en")), make("span", {}, words));

const BASELINE = {
  all_empty: "Says nothing",
  every_pixel: "Marks every pixel, always",
  random_object: "A random true object, always",
};

function showScores() {
  if (!data.scores) return;
  const { tables, missing } = data.scores;
  const used = Object.keys(METRIC).filter((metric) => tables.some((t) => t.rows.some((row) => metric in row)));
  const cells = ["Questions", ...used.map((metric) => METRIC[metric])];
  const own = tables.filter((table) => table.name === "run").flatMap((table) => table.rows);
  // Of the baselines the overall figures say enough.
  const others = tables
    .filter((table) => table.name !== "run")
    .map((table) => ({ ...table.rows[0], name: BASELINE[table.name] ?? table.name }));
  byId("score-table").append(
    make("thead", {}, make("tr", {}, make("td"), ...cells.map((text) => make("th", { scope: "col" }, text)))),
    scoreGroup("This run", own, used),
    ...(others.length ? [scoreGroup("Answers that know nothing", others, used)] : []),
  );
  const sure = own.some((row) => row.ci && Object.keys(row.ci).length);
  byId("score-note").textContent =
    `In percent${sure ? ", with 95 % intervals" : ""}. J, F and J&F reward silence: an empty answer scores 100 in every ` +
    "frame outside the window. Read them beside those of answers that know nothing, and with J&F in window (only frames " +
    "where there is something to find) and tIoU (the windows in time)." +
    (missing ? ` ${plural(missing, "question")} without an answer counted as empty.` : "");
  byId("scores").hidden = false;
}

function scoreGroup(title, rows, used) {
  const heading = make("th", { scope: "rowgroup", colSpan: used.length + 2 }, title);
  return make("tbody", {}, make("tr", { className: "group" }, heading), ...rows.map((row) => scoreRow(row, used)));
}

function scoreRow(row, used) {
  const name = row.name === "overall" ? "All questions" : row.name;
  return make(
    "tr",
    { className: row.name === "overall" ? "overall" : "" },
    make("th", { scope: "row", dir: "auto" }, name),
    make("td", {}, row.n === null ? "–" : row.n.toLocaleString("en")),
    ...used.map((metric) => {
      const interval = row.ci?.[metric];
      const range = interval ? make("small", {}, `${percent(interval[0])}–${percent(interval[1])}`) : null;
      return make("td", {}, percent(row[metric]), range);
    }),
  );
}

// Failures by reason, the most frequent first; the questions of a reason are listed once it is opened.
function showFailures(open) {
  const reasons = new Map();
  for (const row of data.rows.filter((one) => one.s === "failed")) {
    const reason = row.e || "no reason was recorded";
    if (!reasons.has(reason)) reasons.set(reason, []);
    reasons.get(reason).push(row);
  }
  byId("failures").hidden = !reasons.size;
  const sorted = [...reasons].sort((a, b) => b[1].length - a[1].length);
  const show = (some) => byId("failure-list").append(...some.map(([reason, rows]) => failures(reason, rows, open)));
  show(sorted.slice(0, REASONS));
  if (sorted.length <= REASONS) return;
  const rest = make("button", { type: "button" }, `Show ${plural(sorted.length - REASONS, "more reason")}`);
  rest.addEventListener("click", () => {
    rest.remove();
    show(sorted.slice(REASONS));
  });
  byId("failures").append(rest);
}

function failures(reason, rows, open) {
  const list = make("ul");
  const title = make("span", { dir: "auto" }, reason);
  const group = make("details", {}, make("summary", {}, make("b", {}, rows.length.toLocaleString("en")), title), list);
  group.addEventListener("toggle", () => {
    if (group.open && !list.childElementCount) list.append(...rows.map((row) => failure(row, open)));
  });
  return group;
}

function failure(row, open) {
  const name = `${data.videos[row.v].id}/${row.q}`;
  const button = make("button", { type: "button", className: "link" }, make("bdi", {}, name));
  button.addEventListener("click", () => open(row));
  return make("li", {}, button, " ", make("span", { dir: "auto", className: "muted" }, row.t ?? ""));
}

function showFacts() {
  const run = data.run;
  const times = run.stages.map(([name, value]) => [name, duration(value)]);
  const work = run.work.map(([name, value]) => [name, value.toLocaleString("en")]);
  const devices = run.devices.map((name) => ["device", name]);
  const groups = [
    ["Settings", run.settings],
    ["Seconds by stage", times],
    ["Work", work],
    ["Versions and devices", [...run.versions, ...devices]],
  ];
  for (const [title, pairs] of groups) {
    if (!pairs.length) continue;
    byId("facts").append(make("section", {}, make("h3", {}, title), pairsOf(pairs)));
  }
}

const pairsOf = (pairs) =>
  make(
    "dl",
    { className: "pairs" },
    ...pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", { dir: "auto" }, value ?? "–"))),
  );
