// The player: the embedded frames of one question's video, its mask over them, and when.

const STEP_MS = 250;
const playing = { row: null, frames: null, position: 0, mask: true, timer: 0 };
const dialog = byId("player");

function openPlayer(row) {
  stop();
  const frames = framesOf(row.v) ?? null;
  Object.assign(playing, { row, frames, position: frames ? frames.k[row.i] : 0 });
  const video = data.videos[row.v];
  byId("player-where").replaceChildren(make("bdi", {}, video.id), " / ", make("bdi", {}, row.q), " ", pill(row.s));
  byId("player-title").replaceChildren(make("span", { dir: "auto" }, row.t || "–"));
  const answer = byId("player-answer");
  answer.replaceChildren(make("span", { dir: "auto", className: row.e ? "error" : "" }, row.e ?? row.a ?? ""));
  answer.hidden = !(row.e || row.a);
  const count = frames?.n.length ?? 0;
  byId("scrub").max = Math.max(count - 1, 0);
  for (const id of ["play", "back", "forth", "mask", "scrub"]) byId(id).disabled = !count;
  byId("stage").classList.toggle("bare", !count);
  byId("stage-note").hidden = Boolean(count);
  byId("stage-note").textContent = document.readyState === "loading" ? "Still loading…" : "No frames are embedded.";
  showLane(row, frames);
  showFigures(row, video, count);
  const at = view.rows.indexOf(row);
  byId("former").disabled = at <= 0;
  byId("next").disabled = at < 0 || at >= view.rows.length - 1;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  remember(`${video.id}/${row.q}`);
  draw();
}

function showLane(row, frames) {
  const lane = byId("lane");
  const video = data.videos[row.v];
  const bar = timeline(row);
  const length = Math.max(video.stop - video.first, 1);
  for (const number of frames?.n ?? []) {
    const tick = make("b", { className: "tick" });
    tick.style.left = `${(100 * (number + 0.5 - video.first)) / length}%`;
    bar.append(tick);
  }
  bar.append(make("b", { className: "playhead" }));
  lane.replaceChildren(bar);
}

function showFigures(row, video, count) {
  const pairs = [];
  if (row.span) pairs.push(["Window", windowText(row, "span")]);
  if (row.win) pairs.push(["True window", windowText(row, "win")]);
  if (row.ta) pairs.push(["True answer", row.ta]);
  if (row.y) pairs.push(["Type", row.y]);
  for (const [name, value] of Object.entries(row.m ?? {})) pairs.push([METRIC[name], percent(value)]);
  if (typeof row.sam === "number") pairs.push(["SAM’s own score", row.sam.toFixed(2)]);
  if (row.cut) pairs.push(["Answer", "cut at the token limit"]);
  if (video.file) pairs.push(["File", video.file]);
  if (count) pairs.push(["Preview", `${count} of ${plural(video.stop - video.first, "frame")}`]);
  byId("player-facts").replaceChildren(...pairsOf(pairs).children);
}

function draw() {
  const { row, frames, position } = playing;
  const canvas = byId("canvas");
  byId("scrub").value = position;
  byId("mask").setAttribute("aria-pressed", String(playing.mask));
  if (!frames || !frames.n.length) {
    byId("clock").textContent = "";
    return;
  }
  const number = frames.n[position];
  const time = frames.t[position];
  const words = `Frame ${number}${time === null ? "" : ` · ${time.toFixed(2)} s`}`;
  byId("clock").textContent = words;
  byId("scrub").setAttribute("aria-valuetext", words);
  const found = frames.m[row.i]?.[position];
  canvas.setAttribute("aria-label", `${words}, ${found ? "with" : "without"} a mask`);
  const video = data.videos[row.v];
  const length = Math.max(video.stop - video.first, 1);
  byId("lane").querySelector(".playhead").style.left = `${(100 * (number + 0.5 - video.first)) / length}%`;
  const width = Math.min(byId("stage").clientWidth * Math.min(devicePixelRatio, 2), 1440);
  canvas.style.aspectRatio = `${frames.w} / ${frames.h}`;
  paint(canvas, row, position, width, playing.mask, () => playing.row === row && playing.position === position);
}

function step(by) {
  const count = playing.frames?.n.length ?? 0;
  if (!count) return;
  playing.position = (playing.position + by + count) % count;
  draw();
}

function stop() {
  clearInterval(playing.timer);
  playing.timer = 0;
  byId("play").textContent = "Play";
}

function toggle() {
  if (playing.timer) return stop();
  if (!playing.frames?.n.length) return undefined;
  playing.timer = setInterval(() => step(1), STEP_MS);
  byId("play").textContent = "Pause";
  return undefined;
}

function neighbour(by) {
  const at = view.rows.indexOf(playing.row);
  const row = at < 0 ? undefined : view.rows[at + by];
  if (row) openPlayer(row);
}

// The address names the open question, so that it can be passed on.
function remember(name) {
  const hash = name === null ? location.pathname + location.search : `#${encodeURIComponent(name)}`;
  try {
    history.replaceState(null, "", hash);
  } catch {
    // Some browsers refuse this for files; nothing else depends on it.
  }
}

const KEYS = {
  " ": toggle,
  ArrowLeft: () => (stop(), step(-1)),
  ArrowRight: () => (stop(), step(1)),
  m: () => byId("mask").click(),
  n: () => neighbour(1),
  p: () => neighbour(-1),
};

function setUpPlayer() {
  byId("play").addEventListener("click", toggle);
  byId("back").addEventListener("click", KEYS.ArrowLeft);
  byId("forth").addEventListener("click", KEYS.ArrowRight);
  byId("former").addEventListener("click", KEYS.p);
  byId("next").addEventListener("click", KEYS.n);
  byId("close").addEventListener("click", () => dialog.close());
  byId("mask").addEventListener("click", () => {
    playing.mask = !playing.mask;
    draw();
  });
  byId("scrub").addEventListener("input", (event) => {
    stop();
    playing.position = Number(event.target.value);
    draw();
  });
  dialog.addEventListener("keydown", (event) => {
    const action = KEYS[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    // A focused button takes the space bar itself.
    if (event.key === " " && event.target instanceof HTMLButtonElement) return;
    event.preventDefault();
    action();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    stop();
    playing.row = null;
    remember(null);
  });
  addEventListener("resize", () => dialog.open && draw());
}
