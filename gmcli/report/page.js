// Put it together. This runs before the browser has read the frames, which lie at the end of the page.

const dark = matchMedia("(prefers-color-scheme: dark)");

function showTheme(theme) {
  if (theme) document.documentElement.setAttribute("data-theme", theme);
  const now = theme ?? (dark.matches ? "dark" : "light");
  byId("theme").textContent = now === "dark" ? "Light" : "Dark";
  byId("theme").setAttribute("aria-label", `Use ${now === "dark" ? "light" : "dark"} colours`);
}

function setUpTheme() {
  const saved = () => document.documentElement.getAttribute("data-theme");
  showTheme(null);
  byId("theme").addEventListener("click", () => {
    const now = saved() ?? (dark.matches ? "dark" : "light");
    showTheme(now === "dark" ? "light" : "dark");
  });
  dark.addEventListener("change", () => showTheme(saved()));
}

function openNamed() {
  let name = location.hash.slice(1);
  try {
    name = decodeURIComponent(name);
  } catch {
    return;
  }
  const row = name && data.rows.find((one) => `${data.videos[one.v].id}/${one.q}` === name);
  if (row) openPlayer(row);
}

setUpTheme();
showSummary();
showScores();
showFailures(openPlayer);
showFacts();
setUpTable();
setUpPlayer();
refresh();
document.addEventListener("DOMContentLoaded", () => {
  for (const canvas of document.querySelectorAll("#rows canvas:not(.painted)")) {
    inView.unobserve(canvas);
    inView.observe(canvas);
  }
  if (playing.row) openPlayer(playing.row);
  else openNamed();
});
addEventListener("hashchange", openNamed);
