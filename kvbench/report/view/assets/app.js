// Addresses, filters and the choice of the view. The address holds all state, so that a link shows the same to others.

const FILTERS = ["benchmark", "model", "method", "budget", "q"];
const VIEWS = [["board", "Leaderboard"], ["curves", "Curves"], ["grids", "Needle grids"], ["samples", "Samples"]];
const state = { path: ["board"], filters: {}, sort: "-score", marked: new Set(), order: "", only: "", x: "", all: "" };

function readAddress() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const values = new URLSearchParams(query || "");
  state.path = path ? path.split("/").map(decoded) : ["board"];
  for (const key of FILTERS) state.filters[key] = values.get(key) || "";
  state.sort = values.get("sort") || "-score";
  state.order = values.get("order") || "";
  state.only = values.get("only") || "";
  state.x = values.get("x") || "";
  state.all = values.get("all") || "";
  state.marked = new Set((values.get("mark") || "").split(",").filter((key) => rowByKey(key)));
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function rowByKey(key) {
  const [t, r] = String(key).split(".");
  return index.tables[t]?.rows[r];
}

function address(path, changes = {}) {
  const values = new URLSearchParams();
  const all = { ...state.filters, sort: state.sort, order: state.order, only: state.only, x: state.x, all: state.all, mark: [...state.marked].join(","), ...changes };
  for (const [key, value] of Object.entries(all)) {
    if (value && !(key === "sort" && value === "-score")) values.set(key, value);
  }
  const query = values.toString();
  return "#/" + path.map(encodeURIComponent).join("/") + (query ? "?" + query : "");
}

// Changes a part of the state in place. The element that `focus` selects has the focus afterwards.
function change(changes, focus) {
  history.replaceState(null, "", address(state.path, changes));
  draw(focus);
}

function mark(key) {
  const marked = new Set(state.marked);
  if (!marked.delete(key)) marked.add(key);
  change({ mark: [...marked].join(",") }, `[data-mark="${key}"]`);
  say(marked.size ? `${plural(marked.size, "variant")} marked` : "No variant marked");
}

async function draw(focus) {
  const at = { left: scrollX, top: scrollY };
  readAddress();
  drawBar();
  const main = byId("main");
  const turn = (draw.turn = (draw.turn || 0) + 1);
  const view = { board, curves, grids, samples: samplesView, sample: sampleView, variant: variantView }[state.path[0]] || board;
  let content;
  try {
    content = view();
    if (content instanceof Promise) {
      if (!focus) show(main, nothing("Unpacking …"));
      content = await content;
    }
  } catch (error) {
    content = [nothing(error.message)];
  }
  if (turn !== draw.turn) return;
  show(main, content);
  main.dataset.ready = String(turn);
  document.title = [document.querySelector("h1")?.textContent, "kvbench", index.store].filter(Boolean).join(" · ");
  if (focus) {
    scrollTo(at);
    document.querySelector(focus)?.focus({ preventScroll: true });
  }
}

function drawBar() {
  byId("store").textContent = text(index.store);
  const here = { sample: "samples", variant: "board" }[state.path[0]] || state.path[0];
  show(
    byId("views"),
    VIEWS.filter(([name]) => name !== "samples" || index.answers).filter(([name]) => name !== "grids" || index.tables.some((table) => table.columns.some((column) => column.grid))).map(([name, words]) =>
      h("a", { href: address([name]), "aria-current": here === name ? "page" : null, "data-view": name }, words),
    ),
  );
  drawFilters();
}

function drawFilters() {
  const form = byId("filters");
  const typing = document.activeElement?.id === "q";
  choices ??= allChoices();
  const fields = Object.entries(choices).map(([key, field]) => field && setChoice(key, field));
  const count = state.marked.size;
  const clear = h("button", { type: "button", class: "quiet-button", onclick: () => change({ mark: "" }, "#q") }, `${count} marked ×`);
  const used = FILTERS.some((key) => state.filters[key]);
  const reset = h("button", { type: "button", class: "quiet-button", id: "reset", onclick: () => change(Object.fromEntries(FILTERS.map((key) => [key, ""])), "#q") }, "Clear");
  if (typing) {
    // The field that is being typed into stays, with its cursor.
    form.querySelectorAll("button").forEach((node) => node.remove());
    form.append(...[used && reset, count && clear].filter(Boolean));
    return;
  }
  const search = h("input", { id: "q", type: "search", placeholder: "Search  ( / )", "aria-label": "Search methods, budgets, hashes", autocomplete: "off", spellcheck: "false", oninput: typed });
  search.value = state.filters.q;
  show(form, fields.filter(Boolean), h("label", { class: "search" }, search), used ? reset : null, count ? clear : null);
}

// Letters that come faster than a view is drawn are drawn together.
function typed() {
  cancelAnimationFrame(typed.frame);
  typed.frame = requestAnimationFrame(() => change({ q: byId("q").value }, "#q"));
}

function budgets() {
  const rows = index.tables.flatMap((table) => table.rows);
  return [...new Map(rows.map((row) => [row.budget, row.order])).entries()].sort(([, a], [, b]) => a[0] - b[0] || a[1] - b[1]).map(([name]) => name);
}

// The fields of the filters. A store may have thousands of methods, so they are built once.
let choices = null;

function allChoices() {
  return {
    benchmark: choice("benchmark", "Benchmark", index.tables.map((table) => table.benchmark)),
    model: choice("model", "Model", index.tables.map((table) => table.model)),
    method: choice("method", "Method", index.tables.flatMap((table) => table.rows.map((row) => row.label))),
    budget: choice("budget", "Budget", budgets()),
  };
}

function choice(key, label, values) {
  const names = [...new Set(values)];
  if (key !== "budget") names.sort();
  if (names.length < 2) return null;
  const select = h("select", { id: "filter-" + key, onchange: (event) => change({ [key]: event.target.value }, "#filter-" + key) }, h("option", { value: "" }, `all ${label.toLowerCase()}s`), names.map((name) => h("option", { value: name }, name)));
  return h("label", {}, h("span", { class: "hidden" }, label), select);
}

function setChoice(key, field) {
  field.className = state.filters[key] ? "used" : "";
  field.querySelector("select").value = state.filters[key];
  return field;
}

// Light and dark

function theme(next) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const chosen = document.documentElement.dataset.theme;
  const now = chosen || (dark ? "dark" : "light");
  const value = next || (now === "dark" ? "light" : "dark");
  document.documentElement.dataset.theme = value;
  byId("theme").textContent = value === "dark" ? "☀" : "☾";
  try {
    localStorage.setItem("kvbench-theme", value);
  } catch {
    // a page from a file may have no storage
  }
}

function firstTheme() {
  let stored = null;
  try {
    stored = localStorage.getItem("kvbench-theme");
  } catch {
    // see above
  }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (stored === "dark" || stored === "light") theme(stored);
  else byId("theme").textContent = dark ? "☀" : "☾";
}

async function start() {
  firstTheme();
  byId("theme").addEventListener("click", () => theme());
  byId("ask").addEventListener("click", help);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("main").focus();
  });
  document.addEventListener("keydown", onKey);
  try {
    index = await unpack(byId("index").textContent);
  } catch (error) {
    show(byId("main"), nothing(`This browser cannot unpack the data (${error.message}). It needs DecompressionStream, which all browsers have since 2023.`));
    return;
  }
  prepare();
  addEventListener("hashchange", () => {
    draw();
    scrollTo(0, 0);
  });
  draw();
}

// Curves are drawn for the width of the window.
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => index && state.path[0] === "curves" && draw(), 150);
});
