// Needle grids: depth against length, a small grid per variant.

const GRIDS = 60; // grids that are shown before "more"

function grids() {
  const parts = shownTables().flatMap(([table, rows]) => table.columns.map((column, c) => [table, rows, c]).filter(([, , c]) => table.columns[c].grid));
  const sections = parts.map(([table, rows, c]) => gridSection(table, rows, c)).filter(Boolean);
  return sections.length ? [scaleBar(), sections] : [nothing("No needle grid: no run of these has lengths and depths.")];
}

function gridSection(table, rows, c) {
  const marked = rows.filter((row) => state.marked.has(row.key));
  const others = sorted(marked.length ? marked : rows).filter((row) => row !== table.full && runOf(row, c)?.grid);
  const all = [table.full && runOf(table.full, c)?.grid ? table.full : null, ...others].filter(Boolean);
  if (!all.length) return null;
  const list = h("div", { class: "grids" });
  const more = h("button", { type: "button", class: "more" });
  let drawn = 0;
  const draw = () => {
    list.append(...all.slice(drawn, drawn + GRIDS).map((row) => gridCard(row, c)));
    drawn = Math.min(all.length, drawn + GRIDS);
    more.hidden = drawn >= all.length;
    more.textContent = `Show more (${all.length - drawn} left)`;
  };
  more.addEventListener("click", draw);
  draw();
  return h("section", { class: "card", "aria-label": table.name }, heading(table, all.length, "grid"), list, more);
}

function scaleBar() {
  const stops = [0, 25, 50, 75, 100].map((score) => rgb(scoreColour(score))).join(",");
  return h(
    "div",
    { class: "scale" },
    h("span", {}, "score 0 ", h("span", { class: "ramp", style: { background: `linear-gradient(90deg, ${stops})` } }), " 100"),
    h("span", {}, h("span", { class: "swatch lost" }, "×"), " out of memory or failed"),
    h("span", {}, h("span", { class: "swatch missing" }), " not run yet"),
    h("span", { class: "axes" }, "depth in % downwards, length in tokens to the right"),
  );
}

function gridCard(row, c) {
  return h(
    "figure",
    { class: "grid-card", "data-row": row.key },
    h("figcaption", {}, h("a", { href: address(["variant", row.table.at, row.at]), "data-item": "" }, breakable(row.brief)), h("span", { class: "quiet" }, `mean ${number(runOf(row, c).score)} · kept ${percent(row.keptShare)}`)),
    gridOf(row, c),
  );
}

// One stop of the tab key per grid; the arrow keys move inside, Enter opens the cell's samples.
function gridOf(row, c, large = false) {
  const axes = row.table.columns[c].grid;
  const scores = runOf(row, c).grid;
  const [columns, lines] = [axes.lengths.length, axes.depths.length];
  const words = `${row.title}: score by length (${axes.lengths[0]} to ${axes.lengths[columns - 1]} tokens) and depth (${axes.depths[0]} to ${axes.depths[lines - 1]}%)`;
  const node = h("div", { class: "grid" + (large ? " large" : "") + (columns > 12 || lines > 12 ? " dense" : ""), role: "grid", "aria-label": words, style: { "grid-template-columns": `auto repeat(${columns}, minmax(0, 1fr))` } });
  axes.depths.forEach((depth, line) => {
    const every = Math.ceil(lines / 8);
    const cells = axes.lengths.map((length, column) => gridCell(row, c, scores[line * columns + column], length, depth, line + column === 0));
    node.append(h("div", { role: "row", class: "line" }, h("span", { class: "depth", role: "rowheader" }, line % every ? "" : depth), cells));
  });
  const step = Math.ceil(columns / (columns > 12 ? 5 : 8));
  node.append(h("div", { role: "row", class: "line" }, h("span", { class: "depth", role: "columnheader" }, h("span", { class: "hidden" }, "depth")), axes.lengths.map((length, i) => h("span", { class: "length", role: "columnheader" }, i % step ? "" : shortLength(length)))));
  node.addEventListener("keydown", (event) => moveInGrid(event, node, columns));
  return node;
}

const shortLength = (length) => (length >= 1000 && length % 100 === 0 ? length / 1000 + "k" : String(length));

function gridCell(row, c, score, length, depth, first) {
  const lost = score === -1;
  const known = isNumber(score) && !lost;
  const words = `${length} tokens, depth ${depth}%: ${known ? number(score) : lost ? "no answer" : "not run yet"}`;
  const colour = known ? scoreColour(score) : null;
  return h("a", {
    class: "cell" + (lost ? " lost" : known ? "" : " missing"),
    role: "gridcell",
    tabindex: first ? 0 : -1,
    href: address(["samples", row.table.at, c], { only: `at:${length}:${depth}`, mark: [row.key, ...(row.table.full && row !== row.table.full ? [row.table.full.key] : [])].join(",") }),
    title: words,
    "aria-label": words,
    style: colour ? { background: rgb(colour), color: inkOn(colour) } : {},
  }, known ? Math.round(score) : lost ? "×" : "");
}

function moveInGrid(event, node, columns) {
  const cells = [...node.querySelectorAll(".cell")];
  const at = cells.indexOf(event.target);
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (at < 0 || !by || !cells[at + by]) return;
  event.preventDefault();
  cells[at].tabIndex = -1;
  cells[at + by].tabIndex = 0;
  cells[at + by].focus();
}
