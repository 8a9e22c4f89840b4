// Elements and words. Text of strangers goes through textContent alone.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

const STATUS = {
  done: "Done",
  no_target: "No target",
  failed: "Failed",
  pending: "Pending",
  unreadable: "Unreadable",
};
const METRIC = {
  window_j_and_f: "J&F in window",
  t_iou: "tIoU",
  j_and_f: "J&F",
  j: "J",
  f: "F",
  answer_accuracy: "Answer accuracy",
};

// Makes an element; properties are set by name, "aria-…", "role" and "data-…" as attributes. Children are elements or text.
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key.includes("-") || key === "role" || key === "scope") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const percent = (value) => (typeof value === "number" ? (100 * value).toFixed(1) : "–");
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const seconds = (value) => `${value.toFixed(1)} s`;

function duration(value) {
  if (value < 60) return seconds(value);
  const whole = Math.round(value);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${rest} s`;
}

// Says when a window is: in seconds from the video's start where they are known, else in frames.
function windowText(row, name) {
  const span = row[name];
  if (!span) return "–";
  if (span[1] <= span[0]) return "empty";
  const known = row[`${name}_s`];
  return known ? `${known[0].toFixed(1)}–${known[1].toFixed(1)} s` : `frames ${span[0]}–${span[1] - 1}`;
}

// Draws when: the answer's window above, the true one below, on the clip's length.
function timeline(row) {
  const video = data.videos[row.v];
  const length = Math.max(video.stop - video.first, 1);
  const bar = make("div", { className: "timeline", role: "img" });
  const said = [];
  for (const [name, kind, words] of [["span", "predicted", "window"], ["win", "true", "true window"]]) {
    const span = row[name];
    if (!span) continue;
    const piece = make("i", { className: kind });
    piece.style.left = `${(100 * (span[0] - video.first)) / length}%`;
    piece.style.width = `${(100 * (span[1] - span[0])) / length}%`;
    bar.append(piece);
    said.push(`${words} ${windowText(row, name)}`);
  }
  bar.setAttribute("aria-label", said.join(", ") || "no window");
  return bar;
}

const pill = (status) => make("span", { className: `pill ${status}` }, STATUS[status] ?? status);
